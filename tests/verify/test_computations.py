"""A wrong computation is outside the tolerances by its numbers alone: the cases of
``tests/torture/computations.py`` on small frames, and their siblings.
"""

import numpy as np
import pytest
import torch
from torch import nn

from gma_lib.flow.metrics import sum_errors
from gma_lib.network.checkpoints import load_model
from gma_lib.network.model import LEVELS, WINDOW, GMAConfig
from gma_lib.verify.expected import FAILURES, describe_values, judge_values
from gma_lib.verify.values import _collect_metrics


def scale(module: nn.Conv2d) -> None:
    module.weight.mul_(1.01)
    module.bias.mul_(1.01)


def swap_axes(model):
    def swap(module, inputs):
        windows = inputs[0].unflatten(1, (LEVELS, WINDOW, WINDOW))
        return (windows.transpose(2, 3).flatten(1, 3), *inputs[1:])

    model.update_block.encoder.convc1.register_forward_pre_hook(swap)


def set_epsilon(model, kind):
    for module in model.modules():
        if isinstance(module, kind):
            module.eps = 1e-3


CASES = {
    "one convolution scaled by 1.01": lambda model: scale(model.update_block.encoder.convf1),
    "x and y of the lookup swapped": swap_axes,
    "epsilon of the instance norms": lambda model: set_epsilon(model, nn.InstanceNorm2d),
    "epsilon of the batch norms": lambda model: set_epsilon(model, nn.BatchNorm2d),
}


def collect(frames, change=None):
    """Values of the scores of a changed network with the bundled weights."""
    model, _ = load_model("gma-procedural", GMAConfig(num_updates=3))
    if change:
        change(model)
    flow = model(*(torch.from_numpy(frame[:1]) for frame in frames))[0].numpy()
    truth = np.broadcast_to(np.float32([[[5]], [[2]]]), flow.shape)
    scores = {name: sums.to_metrics() for name, sums in sum_errors(flow, truth).items()}
    return dict(_collect_metrics("clean", scores))


@pytest.fixture(scope="module")
def expected(small_frames):
    return describe_values(collect(small_frames), {})


def find_outside(values, expected):
    verdicts = judge_values(values, expected, digests=False)
    return {verdict.name for verdict in verdicts if verdict.status in FAILURES}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_computation_is_noticed(case, small_frames, expected):
    assert find_outside(collect(small_frames, CASES[case]), expected)


def test_the_same_computation_is_not(small_frames, expected):
    assert not find_outside(collect(small_frames), expected)
