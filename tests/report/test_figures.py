"""Figures are drawn, labelled and described; colours mean the same everywhere."""

import base64

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from gma_lib.flow.colours import PALETTES
from gma_lib.report import charts, figures


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 128, 160)).astype(np.float32)
    truth = rng.normal(0, 5, (2, 128, 160)).astype(np.float32)
    occluded = rng.random((128, 160)) < 0.1
    return frames, truth, occluded


def test_a_frame_between_two_grey_levels_is_shown_as_the_nearer():
    axes = Figure().subplots()
    figures.add_frame(axes, np.full((3, 8, 8), 99.6), "a")
    assert (axes.images[0].get_array() == 100).all()


@pytest.mark.slow
def test_every_figure_says_its_numbers(scene):
    (frame1, frame2), truth, occluded = scene
    drawn = {
        "data": figures.draw_pair(frame1, frame2, truth, occluded, title="a/b"),
        "data without truth": figures.draw_pair(frame1, frame2, None, None, title="a/b"),
        "flow": figures.draw_flow(frame1, truth, title="a/b"),
        "error": figures.draw_errors(
            frame1, frame2, truth + 2, truth, occluded=occluded, invalid=None, title="worst: a/b"
        ),
        "overview": figures.draw_overview({"best: a/b": (frame1, truth, truth + 2)}),
        "error without masks": figures.draw_errors(
            frame1, frame2, truth, truth, occluded=None, invalid=None, title="a/b"
        ),
    }
    for name, (figure, text) in drawn.items():
        media_type, data = figures.encode_figure(figure)
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert media_type == "image/png"
        assert picture.shape[1] > 400, name
        assert "a/b" in text, name
    assert "EPE 2.83 px" in drawn["error"][1]
    assert "EPE 2.83 px" in drawn["overview"][1]
    assert "EPE 0.00 px" in drawn["error without masks"][1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("share", [0, 1])
def test_a_group_without_pixels_has_no_number(scene, share):
    (frame1, frame2), truth, occluded = scene
    masks = {"occluded": np.full_like(occluded, share), "invalid": None}
    _, text = figures.draw_errors(frame1, frame2, truth + 2, truth, **masks, title="a")
    assert "occluded" not in text
    assert "nan" not in text
    _, text = figures.draw_pair(frame1, frame2, truth, None, title="a")
    assert "%" not in text


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


@pytest.mark.parametrize("name", [r"$\frac{", "a$b$c", "🌊", "x" * 200, "<b>&", "_"])
def test_any_scene_name_can_be_drawn(scene, name, recwarn):
    """A dollar sign begins a formula to matplotlib, and its font lacks most characters."""
    (frame1, frame2), truth, occluded = scene
    figure, text = figures.draw_pair(frame1, frame2, truth, occluded, title=name)
    figures.encode_figure(figure)
    assert text.startswith(f"{name}: ")
    assert figure.get_suptitle() == name
    figures.encode_figure(charts.plot_scenes({"clean": {name: 1.0, "b": 2.0}})[0])
    assert not recwarn.list


# --- the network's inside -------------------------------------------------------------------------


@pytest.fixture
def fields():
    """True flow of 128x160 px, three estimates of it, and a mask."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 5, (2, 128, 160)).astype(np.float32)
    occluded = np.zeros((128, 160), bool)
    occluded[20:50, 30:90] = True
    return truth, [truth + step for step in (3, 2, 1)], occluded


@pytest.mark.slow
@pytest.mark.parametrize("palette", PALETTES)
def test_updates_and_aggregation_say_their_numbers(fields, palette):
    truth, flows, occluded = fields
    curves = {"all pixels": [3.0, 2.0, 1.0], "occluded": [5.0, 4.0, 2.5]}
    options = {"title": "a/b", "palette": palette}
    drawn = [
        figures.draw_updates(flows, truth, curves, most=2, **options),
        figures.draw_update(flows, truth, 3, **options),
        figures.draw_aggregation(flows[2], flows[1], truth, occluded, **options),
        figures.draw_aggregation(flows[2], flows[1], truth, None, **options),
    ]
    for figure, text in drawn:
        assert figures.encode_figure(figure)[0] == "image/png"
        assert text.startswith("a/b: ")
    assert "occluded 5.00 px after the first update, 2.50 after the last" in drawn[0][1]
    titles = [axes.get_title() for axes in drawn[0][0].axes]
    assert [title for title in titles if "after update" in title] == [
        "after update 1: EPE 4.24 px",
        "after update 3: EPE 1.41 px",
    ]
    assert "after update 3, EPE 1.41 px" in drawn[1][1]


@pytest.mark.parametrize("masked", [True, False])
def test_attention_names_the_point_and_the_strongest_place(fields, masked):
    weights = np.full((128, 160), 0.001, np.float32)
    weights[64, 120] = 0.05
    figure, text = figures.draw_attention(
        np.full((3, 128, 160), 100, np.float32),
        fields[2] if masked else None,
        weights,
        (40, 30),
        even=0.01,
        title="a/b",
    )
    figures.encode_figure(figure)
    what = "occluded" if masked else "visible"
    assert f"{what} point (40, 30)" in text
    assert text.endswith("at most 5.0 times an even spread, at (120, 64).")
