"""Configurations are checked, and refused by the name of what is wrong."""

import dataclasses

import pytest
import yaml

from gma_lib.runs.files import PROJECT
from gma_lib.training.config import load_config, parse_config


def test_the_shipped_configuration_is_fine():
    config = load_config(PROJECT / "params" / "train.yaml")
    assert config.steps > 0
    assert config.precision == "bfloat16"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("precision", "float8", "precision must be one of bfloat16, float32, not 'float8'"),
        ("optimiser", "sgd", "optimiser must be one of adamw, muon, not 'sgd'"),
        ("clip", 0.0, "clip must be above 0"),
        ("clip", "one", "clip must be of type float, not 'one'"),
        ("seed", 1.5, "seed must be of type int, not 1.5"),
        ("seed", True, "seed must be of type int, not True"),
        ("weight_decay", float("nan"), "finite number, not nan"),
        ("ema_decay", 1.5, "at most 1, not 1.5"),
        ("phases", [], "at least one phase"),
        ("photographs", -1, "photographs must be at least 0, not -1"),
        ("momentum", 0.9, "unknown momentum"),
    ],
)
def test_impossible_values_are_refused_by_name(tmp_path, tiny, name, value, message):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(tiny | {name: value}))
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("height", 100, "100x128"),
        ("steps", 0, "steps must be above 0, not 0"),
        ("photometric", 2.0, "photometric must be between 0 and 1"),
        ("relief", -0.1, "relief must be between 0 and 1, not -0.1"),
        ("dim", 1.5, "dim must be between 0 and 1, not 1.5"),
        ("final_learning_rate", 1.0, "between 0 and learning_rate"),
        ("learn_occluded", "yes", "learn_occluded must be of type bool"),
        ("max_displacement", 1.0, "above min_displacement"),
        ("matching", -1.0, "matching must be at least 0"),
        ("loss_power", 0.0, "loss_power must be above 0 and at most 1, not 0"),
        ("layers", [5, 2], "layers must be two rising numbers"),
        ("layers", 5, "phase 1: layers must be two integers"),
        ("lr", 1.0, "phase 1: unknown lr"),
    ],
)
def test_impossible_phases_are_refused_by_name(tiny, name, value, message):
    tiny["phases"][1][name] = value
    with pytest.raises(ValueError, match=message):
        parse_config(tiny)


def test_a_missing_entry_is_named(tiny):
    content = {name: value for name, value in tiny.items() if name != "clip"}
    with pytest.raises(ValueError, match="missing clip"):
        parse_config(content)


def test_the_learning_rate_rises_and_falls_within_each_phase(config):
    phase = dataclasses.replace(config.phases[0], steps=100)
    rates = [
        dataclasses.replace(config, phases=(phase, phase)).learning_rate(step)
        for step in range(200)
    ]
    assert max(rates) == pytest.approx(phase.learning_rate)
    assert rates[:100] == rates[100:]
    assert rates[0] < rates[4]
    assert rates[99] == pytest.approx(phase.final_learning_rate, rel=0.2)
