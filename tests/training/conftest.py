"""Configurations that the training tests share: a tiny one, and the shipped one, cut down."""

import copy
import dataclasses
from typing import Any

import pytest

from gma_lib.runs.files import PROJECT
from gma_lib.training.config import TrainingConfig, load_config, parse_config
from gma_lib.training.pairs import VALIDATION, PairSource, render_held_out

TINY = {
    "seed": 3,
    "textures": 6,
    "photographs": 0,
    "precision": "float32",
    "optimiser": "adamw",
    "sequence_gamma": 0.8,
    "weight_decay": 1.0e-4,
    "clip": 1.0,
    "ema_decay": 0.9,
    "checkpoint_minutes": 1.0e-6,
    "validate_every": 100,
    "validation_pairs": 1,
    "phases": [
        {
            "name": name,
            "steps": 2,
            "height": 128,
            "width": 128,
            "batch_size": 1,
            "num_updates": updates,
            "lead_updates": 0,
            "loss_power": 1.0,
            "learning_rate": 1.0e-4,
            "final_learning_rate": 1.0e-5,
            "layers": [2, 4],
            "min_displacement": 1.5,
            "max_displacement": 12.0,
            "matching": 0.1,
            "photometric": 0.5,
            "relief": 0.5,
            "dim": 0.5,
            "learn_occluded": name == "second",
            "freeze_batch_norm": name == "second",
        }
        for name, updates in (("first", 1), ("second", 2))
    ],
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Content of a configuration of four steps; the test may change it."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def kept_tiny() -> dict[str, Any]:
    """The same for fixtures of whole modules, which leave it as it is."""
    return TINY


@pytest.fixture(scope="session")
def config() -> TrainingConfig:
    return parse_config(TINY)


@pytest.fixture(scope="session")
def source(config) -> PairSource:
    return PairSource(config)


@pytest.fixture(scope="session")
def shipped() -> TrainingConfig:
    """The shipped configuration, with few textures and few held-out scenes."""
    return dataclasses.replace(
        load_config(PROJECT / "params" / "train.yaml"), textures=6, validation_pairs=6
    )


@pytest.fixture(scope="session")
def shipped_source(shipped) -> PairSource:
    return PairSource(shipped)


@pytest.fixture
def small_validation(monkeypatch):
    """Validation at the smallest size: these tests ask whether it happens, not what it says."""
    small = dataclasses.replace(VALIDATION, height=128, width=128)
    monkeypatch.setattr(render_held_out, "__defaults__", (small,))
