"""What a reduced precision costs: exact on invented flow, and a verdict that can be no."""

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
    found = precision.measure_cost(reduced, [pair(3), pair(3)], [exact, exact])
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
