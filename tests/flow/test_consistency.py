"""Occlusion by the forward-backward check, and a frame warped by its flow."""

import numpy as np
import pytest

from gma_lib.flow.consistency import LARGEST_SIDE, find_occluded, warp_to_first
from gma_lib.flow.refine import check_refinable


def move_right(by, shape=(20, 30)):
    flow = np.zeros((2, *shape), np.float32)
    flow[0] = by
    return flow


def test_flow_there_and_back_that_cancels_hides_only_what_leaves_the_frame():
    occluded = find_occluded(move_right(4), move_right(-4))
    assert occluded[:, 26:].all()
    assert not occluded[:, :26].any()


def test_flow_that_does_not_come_back_is_occluded():
    backward = move_right(-4)
    backward[0, 5:10, 12:16] = 0  # something that stays covers these pixels in the second frame
    occluded = find_occluded(move_right(4), backward)
    assert occluded[5:10, 8:12].all()
    assert occluded[:, :26].sum() == 20


def test_half_a_pixel_is_allowed_and_more_is_not():
    assert not find_occluded(move_right(0), move_right(0.7)).any()
    assert find_occluded(move_right(0), move_right(0.72)).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_side_beyond_16_bits_is_refused(transposed):
    def make(side, other=2):
        return np.zeros((2, side, other) if transposed else (2, other, side), np.float32)

    longest = make(LARGEST_SIDE)
    assert not find_occluded(longest, longest).any()
    longer = make(LARGEST_SIDE + 1)
    with pytest.raises(ValueError, match="32,766 px a side"):
        find_occluded(longer, longer)
    with pytest.raises(ValueError, match="32,766 px a side"):
        warp_to_first(longer, longer)
    with pytest.raises(ValueError, match="32,766 px a side"):
        check_refinable(make(LARGEST_SIDE + 1, 16), "frame1")


def test_the_second_frame_is_warped_to_the_first():
    frame1 = np.random.default_rng(0).uniform(0, 255, (3, 20, 30)).astype(np.float32)
    frame2 = np.roll(frame1, (2, 4), axis=(1, 2))
    flow = move_right(4)
    flow[1] = 2
    warped = warp_to_first(frame2, flow)
    np.testing.assert_array_equal(warped[:, :18, :26], frame1[:, :18, :26])
    half = warp_to_first(frame2, flow - 0.5)
    between = frame2[:, 1:-1, 3:-1] + frame2[:, 2:, 3:-1] + frame2[:, 1:-1, 4:] + frame2[:, 2:, 4:]
    np.testing.assert_allclose(half[:, :18, :26], between[:, :18, :26] / 4, rtol=1e-4)
