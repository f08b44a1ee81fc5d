"""``gma show`` and ``gma cache``."""

import json

import numpy as np
import pytest
from command_line import FAST, gma

from gma_lib.flow.colours import flow_to_rgb
from gma_lib.flow.files import write_flow_file, write_kitti_flow
from gma_lib.flow.images import read_frame, write_frame

pytestmark = pytest.mark.slow


@pytest.fixture
def flow(tmp_path):
    rng = np.random.default_rng(0)
    field = rng.uniform(-20, 20, (2, 8, 12)).astype(np.float32)
    write_flow_file(tmp_path / "flow.npy", field)
    return field


def test_an_image_of_the_flows_size_and_colours(flow, tmp_path):
    gma("show", tmp_path / "flow.npy", "-o", tmp_path / "a.png", "--radius", 5)
    wanted = flow_to_rgb(flow, 5).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), wanted)
    gma("show", tmp_path / "flow.npy", "-o", tmp_path / "b.png", "--radius", 50)
    assert (read_frame(tmp_path / "b.png") != wanted).any()


def test_the_radius_is_told_as_json_or_not_at_all(flow, tmp_path):
    said = gma("show", tmp_path / "flow.npy", "-o", tmp_path / "a.png", "--json")
    record = json.loads(said)
    assert (record["width"], record["height"]) == (12, 8)
    assert record["radius_px"] == pytest.approx(np.percentile(np.hypot(*flow), 99.5), rel=0.05)
    assert gma("show", tmp_path / "flow.npy", "-o", tmp_path / "b.png", "-q") == ""
    assert "middlebury" in gma("show", tmp_path / "flow.npy", "-o", tmp_path / "c.png", "-v")


def test_over_a_frame_it_is_half_of_each(flow, tmp_path):
    frame = np.full((3, 8, 12), 100, np.float32)
    write_frame(tmp_path / "frame.png", frame)
    gma("show", tmp_path / "flow.npy", "-o", tmp_path / "a.png", "--over", tmp_path / "frame.png")
    gma("show", tmp_path / "flow.npy", "-o", tmp_path / "b.png")
    blended, alone = read_frame(tmp_path / "a.png"), read_frame(tmp_path / "b.png")
    np.testing.assert_allclose(blended, (alone + 100) / 2, atol=0.51)
    write_frame(tmp_path / "frame.png", frame[:, 1:])
    wrong = ("-o", tmp_path / "c.png", "--over", tmp_path / "frame.png")
    assert "12x7" in gma("show", tmp_path / "flow.npy", *wrong, exit_code=1)
    assert not (tmp_path / "c.png").exists()


def test_unknown_pixels_are_black_and_do_not_count(tmp_path):
    field, valid = np.ones((2, 4, 4), np.float32), np.ones((4, 4), bool)
    valid[0, 0] = False
    field[:, 0, 0] = 300
    write_kitti_flow(tmp_path / "k.png", field, valid)
    said = gma("show", tmp_path / "k.png", "-o", tmp_path / "a.png")
    assert f"{np.sqrt(2):.2f} px" in said
    picture = read_frame(tmp_path / "a.png")
    assert picture[:, 0, 0].max() == 0
    assert picture[:, 1, 1].max() > 0


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.exr", "a.pbm"])
def test_what_no_picture_is_written_in_is_refused_before_the_flow_is_read(tmp_path, name):
    said = gma("show", tmp_path / "none.flo", "-o", tmp_path / name, exit_code=1)
    assert "ends in" in said
    assert ".png" in said


def test_flow_that_is_known_nowhere_is_not_drawn(tmp_path):
    write_flow_file(tmp_path / "a.flo", np.full((2, 4, 4), np.nan, np.float32))
    write_kitti_flow(tmp_path / "k.png", np.ones((2, 4, 4), np.float32), np.zeros((4, 4), bool))
    for name in ("a.flo", "k.png"):
        said = gma("show", tmp_path / name, "-o", tmp_path / "b.png", exit_code=1)
        assert "known in no pixel" in said
        assert not (tmp_path / "b.png").exists()


def test_a_name_of_two_lines_makes_one_line(flow, tmp_path):
    (tmp_path / "a\nb.png").touch()
    said = gma("show", tmp_path / "flow.npy", "-o", tmp_path / "a\nb.png", exit_code=1)
    assert said.strip().count("\n") == 0
    assert "exists" in said


@pytest.mark.parametrize("options", [("--radius", 0), ("--radius", "nan"), ("--palette", "jet")])
def test_wrong_options_are_refused(flow, tmp_path, options):
    gma("show", tmp_path / "flow.npy", "-o", tmp_path / "a.png", *options, exit_code=2)
    assert not (tmp_path / "a.png").exists()


def test_the_cache_is_shown_and_cleared(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("GMA_CACHE", str(tmp_path / "cache"))
    assert "0 models" in gma("cache")
    frames = photos / "shot 1.png", photos / "shot 2.png"
    gma("flow", *frames, "-o", tmp_path / "a.flo", *FAST)
    other = tmp_path / "cache" / "thesis" / "chapter1.tex"
    other.parent.mkdir()
    other.write_text("mine")
    assert "1 model," in gma("cache")
    assert "deleted" in gma("cache", "--clear")
    assert "0 models" in gma("cache")
    assert other.read_text() == "mine"
