"""Attention in 8-bit integers: against exact sums, on a graph that holds nothing else."""

import numpy as np
import openvino
import pytest
from openvino import opset13

from gma_lib.convert.int8_attention import attend_in_integers
from gma_lib.runs.machine import has_bf16

CELLS, CHANNELS = 600, 8


def _graph(*, transposed: bool, queries: bool = False):
    """Scores (or queries and keys) and values in, attention times values out, with the names of the
    exported network.
    """
    values = _input("values", CHANNELS, CELLS) if transposed else _input("values", CELLS, CHANNELS)
    if queries:
        inputs = [_input(name, CELLS, 16) for name in ("queries", "keys")]
        scores = opset13.matmul(*inputs, False, True)
    else:
        inputs = [_input("scores", CELLS, CELLS)]
        scores = inputs[0]
    attention = opset13.softmax(scores, 2)
    attention.set_friendly_name("/att/Softmax")
    product = opset13.matmul(attention, values, False, transposed)
    product.set_friendly_name("/update_block/aggregator/MatMul")
    return openvino.Model([product], [*inputs, values])


def _input(name: str, rows: int, columns: int):
    parameter = opset13.parameter([1, rows, columns], np.float32)
    parameter.output(0).set_names({name})
    return parameter


def _run(model, *inputs: np.ndarray) -> np.ndarray:
    return next(
        iter(
            openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
                [*inputs]
            ).values()
        )
    )[0]


def _softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def _rounding(shares: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What steps of 1/255 of a row's largest share and 1/127 of a channel's largest value can move,
    were all errors on one side.
    """
    size = np.abs(values - values.mean(axis=0)).max(axis=0)
    return (
        shares.max(axis=1)[:, None] / 510 * np.abs(values - values.mean(axis=0)).sum(axis=0)
        + 1.01 * size / 254
    )


@pytest.mark.parametrize("transposed", [True, False])
def test_the_aggregation_is_near_whatever_the_sizes_of_its_channels(transposed):
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (CELLS, CELLS)).astype(np.float32)
    # flow in cells beside features after a ReLU, and a channel that is the same everywhere
    values = rng.random((CELLS, CHANNELS), np.float32) * np.array(
        [90, 30, 1, 0.5, 0.1, 0.01, 1, 0], np.float32
    )
    values[:, 6] = 3
    model = _graph(transposed=transposed)
    assert attend_in_integers(model, []) == 1
    found = _run(model, scores[None], (values.T if transposed else values)[None])
    exact = _softmax(scores) @ values
    size = values.max(axis=0)
    assert (np.abs(found - exact) <= _rounding(_softmax(scores), values) + 1e-5 * size).all()
    assert (np.abs(found - exact).mean(axis=0)[:6] < 0.002 * size[:6]).all()
    assert np.abs(found - exact).max() > 1e-4  # it does round
    np.testing.assert_allclose(found[:, 6], 3, rtol=1e-5)


def test_what_is_too_small_for_a_step_does_not_vanish():
    """Half of every row lies on one cell, the other half evenly on all: each of those shares is a
    third of a step.
    """
    rng = np.random.default_rng(1)
    even = 0.5 / CELLS
    scores = np.full((CELLS, CELLS), np.log(even), np.float32)
    np.fill_diagonal(scores, np.log(0.5 + even))
    values = rng.random((CELLS, CHANNELS), np.float32) + 1
    shares = _softmax(scores)
    assert even < shares.max() / 510
    model = _graph(transposed=True)
    attend_in_integers(model, [])
    exact = shares @ values
    assert np.abs(_run(model, scores[None], values.T[None]) - exact).max() < 0.01
    # rounded as they are, those shares are gone, and half of the mean with them
    plainly = np.round(shares / shares.max() * 255) / 255 * shares.max() @ values
    assert np.abs(plainly - exact).min() > 0.5


@pytest.mark.skipif(not has_bf16(), reason="needs a processor with bfloat16")
def test_scores_take_their_range_from_the_samples():
    """Older processors add pairs of products in 16 bits, which saturate; int8 is refused there."""
    rng = np.random.default_rng(2)
    samples = [
        {
            name: rng.normal(0, 0.7, (1, CELLS, 16)).astype(np.float32)
            for name in ("queries", "keys")
        }
        | {"values": rng.random((1, CHANNELS, CELLS), np.float32)}
        for _ in range(2)
    ]
    exact_model, model = (_graph(transposed=True, queries=True) for _ in range(2))
    assert attend_in_integers(model, samples) == 2
    inputs = [samples[1][name] for name in ("queries", "keys", "values")]
    assert 1e-6 < np.abs(_run(model, *inputs) - _run(exact_model, *inputs)).max() < 0.02
    # what no sample showed is cut off
    inputs[0] = 5 * inputs[0]
    assert np.abs(_run(model, *inputs) - _run(exact_model, *inputs)).max() > 0.05
