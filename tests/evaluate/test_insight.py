"""A look inside the network: what is shown is what it computed, and the sentences say what the
numbers say.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gma_lib.data.padding import Padding
from gma_lib.data.sintel import FramePair
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
    ("columns", "share", "verdict"),
    [
        (slice(0, 8), 1.0, "hidden points do look at what moves like them"),
        (slice(0, 16), 0.5, "no more than an even spread: with these weights"),
        (slice(8, 16), 0.0, "less than an even spread"),
    ],
)
def test_attention_is_measured_against_the_true_motion(columns, share, verdict):
    pair = examined(attention_to(columns))
    point = insight.find_hidden_point(pair.truth, pair.occluded)
    at_point, hidden = insight.measure_attention(pair.inside, pair.truth, pair.occluded, point)
    assert at_point.weight == pytest.approx(share)
    assert hidden.weight == pytest.approx(share)
    assert at_point.chance == hidden.chance == 0.5
    assert insight.measure_attention(pair.inside, pair.truth, None, point) == (at_point, None)
    assert verdict in insight.describe_attention(pair, point)


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
    assert "0.50 px with, 4.00 px without: it helps there" in insight.describe_aggregation(helps)
    assert (
        "4.00 px with, 0.50 px without: with these weights it does not help"
        in insight.describe_aggregation(harms)
    )
    assert "(-3.50 px)" in insight.describe_aggregation(harms)
    assert "next to no difference" in insight.describe_aggregation(idle)
    assert (
        "occluded: 4.00 px after the first update, 0.50 px after update 2"
        in insight.describe_updates(helps.measure_curves())
    )
    rising = replace(helps, inside=replace(helps.inside, flows=helps.inside.flows[::-1]))
    assert "4.00 px after update 2, lowest (0.50 px) after update 1" in insight.describe_updates(
        rising.measure_curves()
    )


def test_a_pair_without_masks_has_its_sentence_too():
    pair = replace(examined(attention_to(slice(0, 8))), occluded=None)
    assert "no occlusion mask" in insight.describe_aggregation(pair)
    assert list(pair.measure_curves()) == ["all pixels"]


def test_without_truth_there_is_a_reason():
    pair = FramePair("clean", "made", 1, "a", "b")
    assert "no pair has ground truth" in insight.examine_most_hidden([pair], None)[1].lower()
