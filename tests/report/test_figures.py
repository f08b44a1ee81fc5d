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
        "data": figures.data_figure(frame1, frame2, truth, occluded, title="a/b"),
        "data without truth": figures.data_figure(frame1, frame2, None, None, title="a/b"),
        "flow": figures.flow_figure(frame1, truth, title="a/b"),
        "error": figures.error_figure(
            frame1, frame2, truth + 2, truth, occluded=occluded, invalid=None, title="worst: a/b"
        ),
        "error without masks": figures.error_figure(
            frame1, frame2, truth, truth, occluded=None, invalid=None, title="a/b"
        ),
        "curve": figures.error_curve({"clean": np.linspace(0, 1, 100)}, np.arange(1, 101) / 20),
        "curve of nothing": figures.error_curve({}, np.arange(1, 101) / 20),
        "work": figures.work_figure({"GRU": 83.0, "lookup": 4.0}),
        "parts": figures.parts_figure({"GRU": 0.2, "lookup": 0.1}, {"GRU": 83.0}, 1e12),
        "parts without a peak": figures.parts_figure(
            {"GRU": 0.2, "lookup": 0.1}, {"GRU": 83.0}, None
        ),
        "rounds": figures.rounds_figure([1.0, 1.1, 0.9], 4),
        "throughput": figures.throughput_figure(
            {
                "openvino-float32": {
                    1: {"status": "ok", "pairs_per_second": 0.6, "peak_rss_bytes": 8e8},
                    16: {"status": "out_of_memory"},
                }
            }
        ),
    }
    for name, (figure, text) in drawn.items():
        media_type, data = figures.encoded(figure)
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert media_type == "image/png"
        assert picture.shape[1] > 400, name
        assert len(text) > 30, name
    assert "EPE 2.83 px" in drawn["error"][1]
    assert "EPE 0.00 px" in drawn["error without masks"][1]
    assert "bs1: 0.60" in drawn["throughput"][1]
    assert (
        "300 ms in all where the arithmetic alone takes 166 ms; most in GRU (200 ms)"
        in drawn["parts"][1]
    )
    assert "300 ms in all; most in GRU (200 ms)" in drawn["parts without a peak"][1]


def test_every_run_has_its_line_and_none_is_under_the_legend():
    runs = {
        f"run {number}": {
            1: {"status": "ok", "pairs_per_second": 0.8 + number, "peak_rss_bytes": 8e8}
        }
        for number in range(6)
    }
    figure, text = figures.throughput_figure(runs)
    speed = figure.axes[0]
    assert [line.get_label() for line in speed.get_lines()][:6] == list(runs)
    assert len({(line.get_color(), line.get_marker()) for line in speed.get_lines()[:6]}) == 6
    assert "run 5 bs1: 5.80" in text
    figures.encoded(figure)  # lays it out
    below_legend = speed.transData.inverted().transform(speed.get_legend().get_window_extent())[
        0, 1
    ]
    assert max(max(line.get_ydata()) for line in speed.get_lines()) < below_legend


def test_photographs_are_jpeg(scene):
    (frame1, _), truth, _ = scene
    media_type, data = figures.encoded(figures.flow_figure(frame1, truth, title="a")[0], photo=True)
    assert media_type == "image/jpeg"
    assert base64.b64decode(data)[:2] == b"\xff\xd8"


def test_scenes_stand_in_the_order_of_their_error():
    scores = {
        name: {"scenes": {scene: {"all": {"epe": epe}} for scene, epe in scenes.items()}}
        for name, scenes in {
            "clean": {"alley": 1.0, "cave": 5.0},
            "final": {"alley": 2.0, "cave": 6.0},
        }.items()
    }
    figure, text = figures.scenes_figure(scores)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["alley", "cave"]
    assert text == "EPE by scene and pass, 2 scenes; largest in cave."
    assert "0 scenes" in figures.scenes_figure({"clean": {"scenes": {}}})[1]
    figures.encoded(figures.scenes_figure({"clean": {"scenes": {}}})[0])


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
