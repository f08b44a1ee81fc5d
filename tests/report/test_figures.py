"""Figures are drawn, labelled and described; colours mean the same everywhere."""

import base64

import cv2
import numpy as np
import pytest

from gma_lib.report import figures


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 128, 160)).astype(np.float32)
    truth = rng.normal(0, 5, (2, 128, 160)).astype(np.float32)
    occluded = rng.random((128, 160)) < 0.1
    return frames, truth, occluded


def test_direction_decides_the_hue_and_speed_the_saturation():
    still, right, left, fast = (
        np.full((2, 1, 1), 0.0),
        np.array([[[5.0]], [[0.0]]]),
        np.array([[[-5.0]], [[0.0]]]),
        np.array([[[10.0]], [[0.0]]]),
    )
    colours = [
        figures.flow_to_rgb(flow, 10)[0, 0].astype(int) for flow in (still, right, left, fast)
    ]
    assert colours[0].tolist() == [255, 255, 255]
    assert colours[1][0] > colours[1][2]  # to the right is red
    assert colours[2][0] < colours[2][2]  # to the left is blue
    assert colours[3].min() < colours[1].min()  # faster is more saturated


def test_a_shared_radius_makes_fields_comparable():
    flow = np.full((2, 4, 4), 3.0)
    assert (figures.flow_to_rgb(flow, 10) != figures.flow_to_rgb(2 * flow, 10)).any()
    np.testing.assert_array_equal(figures.flow_to_rgb(flow, 10), figures.flow_to_rgb(2 * flow, 20))


@pytest.mark.parametrize("unknown", [np.nan, np.inf, 2e9])
def test_unknown_flow_is_black(unknown):
    flow = np.ones((2, 2, 2))
    flow[0, 0, 0] = unknown
    colours = figures.flow_to_rgb(flow, 2)
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert colours[1, 1].any()


def test_radius_ignores_a_few_wild_pixels():
    flow = np.ones((2, 100, 100))
    flow[:, 0, 0] = 1e6
    assert figures.flow_radius(flow) == pytest.approx(np.sqrt(2))
    assert figures.flow_radius(np.zeros((2, 4, 4))) == 1


def test_every_figure_says_its_numbers(scene):
    (frame1, frame2), truth, occluded = scene
    drawn = {
        "data": figures.draw_pair(frame1, frame2, truth, occluded, title="a/b"),
        "data without truth": figures.draw_pair(frame1, frame2, None, None, title="a/b"),
        "flow": figures.draw_flow(frame1, truth, title="a/b"),
        "error": figures.draw_errors(
            frame1, frame2, truth + 2, truth, occluded=occluded, invalid=None, title="worst: a/b"
        ),
        "error without masks": figures.draw_errors(
            frame1, frame2, truth, truth, occluded=None, invalid=None, title="a/b"
        ),
    }
    for name, (figure, text) in drawn.items():
        media_type, data = figures.encode_figure(figure)
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert media_type == "image/png"
        assert picture.shape[1] > 400, name
        assert "a/b: " in text, name
    assert "EPE 2.83 px" in drawn["error"][1]
    assert "EPE 0.00 px" in drawn["error without masks"][1]


def test_a_saved_figure_has_the_format_of_its_suffix(scene, tmp_path):
    (frame1, _), truth, _ = scene
    picture = figures.draw_flow(frame1, truth, title="a")
    figures.save_figure(picture, tmp_path / "flow.jpg")
    assert (tmp_path / "flow.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_photographs_are_jpeg(scene):
    (frame1, _), truth, _ = scene
    media_type, data = figures.encode_figure(
        figures.draw_flow(frame1, truth, title="a")[0], photo=True
    )
    assert media_type == "image/jpeg"
    assert base64.b64decode(data)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("palette", figures.PALETTES)
def test_every_palette_tells_direction_and_speed(palette):
    def colour(u, v):
        return figures.flow_to_rgb(np.array([[[u]], [[v]]]), 10, palette)[0, 0].astype(int)

    still = colour(0.0, 0.0)
    assert len(set(still)) == 1  # white or grey
    four = [colour(8.0, 0.0), colour(0.0, 8.0), colour(-8.0, 0.0), colour(0.0, -8.0)]
    for first in range(4):
        for second in range(first):
            assert np.abs(four[first] - four[second]).max() > 40
    for u, v in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        slow, fast, too_fast = (colour(float(speed * u), float(speed * v)) for speed in (2, 8, 20))
        assert np.abs(fast - still).max() > np.abs(slow - still).max() > 5
        assert too_fast.sum() < colour(10.0 * u, 10.0 * v).sum()


def test_an_unknown_palette_lists_the_known():
    with pytest.raises(ValueError, match="middlebury, twilight"):
        figures.flow_to_rgb(np.zeros((2, 2, 2)), 1, "jet")
