"""Colours of flow mean the same everywhere."""

import numpy as np
import pytest

from gma_lib.flow.colours import PALETTES, choose_radius, flow_to_rgb


def test_direction_decides_the_hue_and_speed_the_saturation():
    still, right, left, fast = (
        np.full((2, 1, 1), 0.0),
        np.array([[[5.0]], [[0.0]]]),
        np.array([[[-5.0]], [[0.0]]]),
        np.array([[[10.0]], [[0.0]]]),
    )
    colours = [flow_to_rgb(flow, 10)[0, 0].astype(int) for flow in (still, right, left, fast)]
    assert colours[0].tolist() == [255, 255, 255]
    assert colours[1][0] > colours[1][2]  # to the right is red
    assert colours[2][0] < colours[2][2]  # to the left is blue
    assert colours[3].min() < colours[1].min()  # faster is more saturated


def test_a_shared_radius_makes_fields_comparable():
    flow = np.full((2, 4, 4), 3.0)
    assert (flow_to_rgb(flow, 10) != flow_to_rgb(2 * flow, 10)).any()
    np.testing.assert_array_equal(flow_to_rgb(flow, 10), flow_to_rgb(2 * flow, 20))


@pytest.mark.parametrize("unknown", [np.nan, np.inf, 2e9])
def test_unknown_flow_is_black(unknown):
    flow = np.ones((2, 2, 2))
    flow[0, 0, 0] = unknown
    colours = flow_to_rgb(flow, 2)
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert colours[1, 1].any()


def test_radius_ignores_a_few_wild_pixels():
    flow = np.ones((2, 100, 100))
    flow[:, 0, 0] = 1e6
    assert choose_radius(flow) == pytest.approx(np.sqrt(2))
    assert choose_radius(np.zeros((2, 4, 4))) == 1
    assert choose_radius(np.full((2, 4, 4), np.nan)) == 1
    assert choose_radius(np.full((2, 4, 4), 1e10), flow) == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("palette", PALETTES)
def test_every_palette_tells_direction_and_speed(palette):
    def colour(u, v):
        return flow_to_rgb(np.array([[[u]], [[v]]]), 10, palette)[0, 0].astype(int)

    still = colour(0.0, 0.0)
    assert len(set(still)) == 1  # white or grey
    four = [colour(8.0, 0.0), colour(0.0, 8.0), colour(-8.0, 0.0), colour(0.0, -8.0)]
    for first in range(4):
        for second in range(first):
            assert np.abs(four[first] - four[second]).max() > 40
    for u, v in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        slow, fast, too_fast = (colour(float(speed * u), float(speed * v)) for speed in (2, 8, 20))
        assert np.abs(fast - still).max() > np.abs(slow - still).max() > 5
        np.testing.assert_array_equal(too_fast, colour(10.0 * u, 10.0 * v))


def test_an_unknown_palette_lists_the_known():
    with pytest.raises(ValueError, match="middlebury, twilight"):
        flow_to_rgb(np.zeros((2, 2, 2)), 1, "jet")
