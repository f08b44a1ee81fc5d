"""A look inside the network: what is shown is what it computed, and the sentences say what the
numbers say.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from gma_lib.data.padding import Padding
from gma_lib.data.pair import FramePair
from gma_lib.evaluate import insight
from gma_lib.evaluate.insight import Examined, Inside
from gma_lib.network.model import GMAConfig

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 120, 150


@pytest.fixture(scope="module")
def model():
    from gma_lib.network.checkpoints import load_model

    return load_model("seeded", GMAConfig(num_updates=3))[0]


@pytest.fixture
def frames(small_frames):
    return tuple(frames[0][:, :HEIGHT, :WIDTH] for frames in small_frames)


@pytest.fixture
def inside(model, frames):
    return insight.look_inside(model, *frames)


def test_the_last_flow_is_the_networks(model, frames, inside):
    padding = Padding.for_size(HEIGHT, WIDTH)
    with torch.inference_mode():
        flow = padding.unpad(
            model(*(torch.from_numpy(padding.pad(frame)[None]) for frame in frames)).numpy()
        )[0]
    np.testing.assert_allclose(inside.flows[-1], flow, atol=1e-4)
    assert len(inside.flows) == len(inside.flows_without) == 3
    assert inside.gamma == pytest.approx(0.7)


def test_without_aggregation_the_flow_differs_and_the_model_is_left_alone(model, inside):
    assert np.abs(inside.flows[-1] - inside.flows_without[-1]).max() > 0.01
    assert float(model.update_block.aggregator.gamma) == pytest.approx(0.7)


def test_attention_sums_to_one_and_a_point_finds_its_cell(inside):
    np.testing.assert_allclose(inside.attention.sum(axis=1), 1, atol=1e-4)
    assert inside.grid == (16, 19)
    assert inside.cell_of((0, 0)) == 0
    assert inside.cell_of((WIDTH - 1, HEIGHT - 1)) == 15 * 19 + 18
    assert inside.attention_from((10, 10)).shape == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="outside the frame"):
        inside.cell_of((WIDTH, 0))


def test_attention_equals_the_reference(small_golden):
    """Rows computed with the authors' implementation."""
    from gma_lib.network.checkpoints import load_model

    model, _ = load_model("seeded", GMAConfig(num_updates=1))
    frames = (small_golden[name][0].astype(np.float32) for name in ("image1", "image2"))
    found = insight.look_inside(model, *frames)
    np.testing.assert_allclose(
        found.attention[0], small_golden["attention_row0"].ravel(), atol=1e-6
    )
    np.testing.assert_allclose(
        found.attention[159], small_golden["attention_row159"].ravel(), atol=1e-6
    )


def test_the_hidden_point_is_deepest_inside_and_stays_in_the_frame():
    truth = np.zeros((2, 100, 100), np.float32)
    occluded = np.zeros((100, 100), bool)
    occluded[40:61, 30:51] = True
    occluded[0:50, 60:100] = True  # larger, but it leaves the frame
    truth[1, 0:50, 60:100] = -200
    assert insight.find_hidden_point(truth, occluded) == (40, 50)
    assert insight.find_hidden_point(truth, None) == (50, 50)


def examined(attention, *, better_without=False) -> Examined:
    """A pair of 128x128 px whose left half moves by (5, 0) and whose right half stands; the left
    half's top is occluded.
    """
    truth = np.zeros((2, 128, 128), np.float32)
    truth[0, :, :64] = 5
    occluded = np.zeros((128, 128), bool)
    occluded[:32, :64] = True
    good, bad = truth.copy(), truth.copy()
    good[0] += 0.5
    bad[0] += np.where(occluded, 4, 0.5)
    flows, without = ([bad, bad], [bad, good]) if better_without else ([bad, good], [bad, bad])
    inside = Inside(flows, without, attention, 0.3, Padding.for_size(128, 128))
    pair = FramePair("clean", "made", 1, "a", "b")
    frame = np.full((3, 128, 128), 100, np.float32)
    return Examined(pair, frame, truth, occluded, inside)


def attention_to(columns: slice) -> np.ndarray:
    """Every cell looks at the cells of some columns, at each as much."""
    grid = np.zeros((16, 16), np.float32)
    grid[:, columns] = 1 / grid[:, columns].size
    return np.repeat(grid.reshape(1, -1), 256, axis=0)


@pytest.mark.parametrize(
    ("columns", "share"),
    [(slice(0, 8), 1.0), (slice(0, 16), 0.5), (slice(8, 16), 0.0)],
)
def test_attention_is_measured_against_the_true_motion(columns, share):
    pair = examined(attention_to(columns))
    point = insight.find_hidden_point(pair.truth, pair.occluded)
    at_point, hidden = insight.measure_attention(pair.inside, pair.truth, pair.occluded, point)
    assert at_point.weight == pytest.approx(share)
    assert hidden.weight == pytest.approx(share)
    assert at_point.chance == hidden.chance == 0.5
    assert insight.measure_attention(pair.inside, pair.truth, None, point) == (at_point, None)
    told = insight.describe_attention(pair, point)
    assert re.findall(r"([\d.]+)%", told) == [f"{100 * share:.1f}", "50.0"] * 2


def test_the_verdict_on_attention_follows_its_share():
    """Above six tenths and below four tenths of it, where an even spread would give half."""
    told = []
    for first, last in ((0, 8), (0, 12), (0, 14), (0, 16), (4, 16), (8, 16)):
        pair = examined(attention_to(slice(first, last)))
        point = insight.find_hidden_point(pair.truth, pair.occluded)
        told.append(blank_numbers(insight.describe_attention(pair, point)))
    high, even, low = told[::2]
    assert len({high, even, low}) == 3
    assert told == [high, high, even, even, low, low]


def test_of_a_visible_point_nothing_is_concluded_about_hidden_ones():
    """Nor is it where every occluded pixel is less than half of a cell; a hidden point is one."""
    few = np.zeros((128, 128), bool)
    few[3, 3] = True
    told = []
    for mask, alike in ((None, slice(8, 16)), (few & False, slice(8, 16)), (few, slice(0, 8))):
        pair = replace(examined(attention_to(alike)), occluded=mask)
        point = insight.find_hidden_point(pair.truth, mask)
        at_point, over_all = insight.measure_attention(pair.inside, pair.truth, mask, point)
        assert (at_point.weight, over_all) == (pytest.approx(1), None)
        told.append("So hidden points do look" in insight.describe_attention(pair, point))
    assert told == [False, False, True]


def test_sentences_follow_the_numbers_both_ways():
    helps, harms = (
        examined(attention_to(slice(0, 16))),
        examined(attention_to(slice(0, 16)), better_without=True),
    )
    idle = replace(helps, inside=replace(helps.inside, flows_without=helps.inside.flows))
    told = [insight.describe_aggregation(pair) for pair in (helps, harms, idle)]
    # over all pixels and the occluded ones, with and without; what was gained there; gamma
    assert [find_numbers(one) for one in told] == [
        ["0.50", "0.94", "0.50", "4.00", "+3.50", "0.300"],
        ["0.94", "0.50", "4.00", "0.50", "-3.50", "0.300"],
        ["0.50", "0.50", "0.50", "0.50", "+0.00", "0.300"],
    ]
    assert len({blank_numbers(one) for one in told}) == 3
    rising = replace(helps, inside=replace(helps.inside, flows=helps.inside.flows[::-1]))
    courses = [insight.describe_updates(pair.measure_curves()) for pair in (helps, rising)]
    found = [re.findall(r"\d+(?:\.\d+)?", one) for one in courses]
    # over all pixels, the occluded ones and the others; the lowest where it is not the last
    assert found[0] == ["0.94", "0.50", "2", "4.00", "0.50", "2", "0.50", "0.50", "2"]
    assert found[1][:5] == ["0.50", "0.94", "2", "0.50", "1"]
    assert found[1][5:] == ["0.50", "4.00", "2", "0.50", "1", "0.50", "0.50", "2"]


NUMBER = r"[-+]?\d+\.\d+"


def find_numbers(told):
    return re.findall(NUMBER, told)


def blank_numbers(told):
    """Which leaves the verdict as the only difference of two sentences."""
    return re.sub(NUMBER, "#", told)


def test_a_pair_without_masks_has_its_sentence_too():
    pair = replace(examined(attention_to(slice(0, 8))), occluded=None)
    assert "no occlusion mask" in insight.describe_aggregation(pair)
    assert list(pair.measure_curves()) == ["all pixels"]


def test_without_truth_there_is_a_reason():
    pair = FramePair("clean", "made", 1, "a", "b")
    assert "no pair has ground truth" in insight.examine_most_hidden([pair], None)[1].lower()
