"""What a reduced precision costs: exact on invented flow, and a verdict that can be no."""

import json

import numpy as np
import pytest
import torch

from gma_lib.perf import precision
from gma_lib.training.scenes import TrainingPair


def pair(value):
    frames = torch.zeros(2, 3, 8, 8)
    return TrainingPair(
        frames[0],
        frames[1],
        torch.full((2, 8, 8), float(value)),
        torch.zeros(8, 8, dtype=torch.bool),
    )


def test_cost_of_known_errors():
    """Float32 is right; reduced, half of the pixels are off by two."""

    def reduced(image1, image2):
        flow = np.full((1, 2, 8, 8), 3.0, np.float32)
        flow[:, 0, :4] += 2
        return flow

    exact = np.full((1, 2, 8, 8), 3.0, np.float32) + np.float32(0.5) * (
        np.arange(2)[None, :, None, None] == 0
    )
    found = precision.cost(reduced, [pair(3), pair(3)], [exact, exact])
    assert found["pairs"] == 2
    assert (found["epe"], found["px1"]) == (1, 0.5)
    assert (found["epe_float32"], found["px1_float32"]) == (0.5, 1)
    assert found["px1_loss"] == pytest.approx(50)
    assert found["epe_loss"] == pytest.approx(1)
    assert found["distance"] == pytest.approx(1)  # 1.5 in one half, 0.5 in the other


@pytest.mark.parametrize(
    ("px1_loss", "epe_loss", "good"),
    [
        (0.0, 0.0, True),
        (0.1, 0.01, True),
        (-1.0, -0.1, True),
        (0.11, 0.0, False),
        (0.0, 0.011, False),
    ],
)
def test_recommended_only_where_it_costs_little_everywhere(px1_loss, epe_loss, good):
    fine = {"px1_loss": 0.0, "epe_loss": 0.0}
    assert (
        precision.is_recommended(
            {"layers": fine, "planes": {"px1_loss": px1_loss, "epe_loss": epe_loss}}
        )
        == good
    )


def test_advice_belongs_to_the_weights(tmp_path):
    assert "make bench" in precision.advice(tmp_path / "nothing.json")
    dear = {"families": {"layers": {"px1_loss": 0.5, "epe_loss": 0.02}}, "recommended": False}
    cheap = {"families": {"layers": {"px1_loss": 0.0, "epe_loss": 0.001}}, "recommended": True}
    about = {"weights": "seeded", "precisions": {"bfloat16": cheap, "int8": dear}}
    path = tmp_path / "precision.json"
    path.write_text(json.dumps(about | {"weights_sha256": "of others"}), encoding="utf-8")
    assert "measured with other weights" in precision.advice(path)
    from gma_lib.network.checkpoints import load_checkpoint

    path.write_text(
        json.dumps(about | {"weights_sha256": load_checkpoint("seeded").sha256}), encoding="utf-8"
    )
    assert precision.advice(path) == (
        "bfloat16 is recommended with seeded: lost on held-out scenes, layers: +0.00 points of 1px, +0.1% EPE. "
        "int8 is not recommended with seeded: lost on held-out scenes, layers: +0.50 points of 1px, +2.0% EPE"
    )
