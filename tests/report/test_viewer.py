"""What the pair viewer packs; tests/report/test_browser.py looks at it in a browser."""

import base64
import json
import re
import zlib

import cv2
import numpy as np
import pytest
from conftest import record_flow

from gma_lib.data import sintel
from gma_lib.data.padding import Padding
from gma_lib.data.pair import FramePair
from gma_lib.evaluate.insight import Examined, Inside
from gma_lib.flow.files import write_flow
from gma_lib.flow.images import write_frame
from gma_lib.infer.inference import flow_path
from gma_lib.report import viewer
from gma_lib.runs.run import Run


def unpack(packed, height, width):
    """As viewer.js does: each value from what its three neighbours predict."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    planes = planes.reshape(2, 2, height, width).astype(np.int64)
    folded = planes[:, 0] << 8 | planes[:, 1]
    values = ((folded >> 1) ^ -(folded & 1)).cumsum(axis=1).cumsum(axis=2).astype(np.int16)
    return np.where(values == -32768, np.nan, values * packed["step"])


@pytest.mark.parametrize(("largest", "within"), [(300, 0.005), (3000, 0.05)])
def test_flow_is_packed_to_a_hundredth_of_a_pixel(largest, within):
    flow = np.random.default_rng(0).uniform(-largest, largest, (2, 40, 50)).astype(np.float32)
    np.testing.assert_allclose(unpack(viewer.pack_flow(flow), 40, 50), flow, atol=within + 1e-4)


def test_unknown_flow_stays_unknown():
    flow = np.ones((2, 3, 4), np.float32)
    flow[:, 1, 2], flow[0, 0, 0] = 1e10, np.nan
    found = unpack(viewer.pack_flow(flow), 3, 4)
    assert np.isnan(found).any(axis=0).sum() == 2
    assert np.nanmin(found) == np.nanmax(found) == pytest.approx(1)


def test_the_epe_of_a_pair_is_exact_whatever_the_step():
    """One pixel of 20,000 px makes the step of all others 0.6 px."""
    truth = np.zeros((2, 40, 50), np.float32)
    flow = np.full_like(truth, 0.03)
    flow[0, 0, 0] = 20_000
    expected = np.hypot(*flow).mean()
    assert viewer._pack_scored(flow, truth)["epe"] == pytest.approx(expected, abs=0.005)
    truth[:, 0, 0] = np.nan  # unknown there
    assert viewer._pack_scored(flow, truth)["epe"] == pytest.approx(0.03 * 2**0.5, rel=1e-4)
    assert viewer._pack_scored(flow, np.full_like(truth, np.nan))["epe"] is None


@pytest.fixture
def pairs(tiny_sintel):
    return sintel.find_pairs(tiny_sintel, pass_name="clean")


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "tiny", "openvino", "float32", 2, "test")


def read_pairs(page):
    found = re.search(r'id="pairs">(.*?)</script>', page.read_text())
    return json.loads(found[1])["pairs"]


@pytest.mark.slow
def test_pairs_with_a_role_are_embedded_and_others_lie_beside(pairs, run, monkeypatch):
    for pair in pairs:
        write_flow(flow_path(run.flow_folder, pair), np.zeros((2, 128, 160), np.float32))
    stored = record_flow(pairs, run.flow_folder)
    write = {"most": 4, "num_updates": 6}
    page = viewer.write_viewer(run, stored, {"best": pairs[0], "<worst>": pairs[2]}, pairs, **write)
    first, second, beside, _ = read_pairs(page)
    assert first["title"] == "best: clean/alley/frame_0001"
    assert second["title"] == "<worst>: clean/cave/frame_0001"
    assert beside == {"title": "clean/alley/frame_0002", "file": "viewer/1.js"}
    assert (run.folder / "viewer/1.js").read_text().startswith("gmaPair({")
    assert page.read_text().count("EPE 5.00 px") == 2  # pictures for those without JavaScript
    assert "best: <" not in page.read_text()
    before = page.read_bytes()
    viewer.write_viewer(run, stored, {"best": pairs[0], "<worst>": pairs[2]}, pairs, **write)
    assert page.read_bytes() == before  # so that a stage that runs again changes nothing
    assert "<title>Pair viewer · test, batch size 2</title>" in page.read_text()
    assert (page.parent / re.search('href="([^"]*index.html)"', page.read_text())[1]).resolve() == (
        run.outputs / "tiny/index.html"
    )
    assert "4 of 4 pairs" in page.read_text()
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")  # JupyterLab, without pages around it
    viewer.write_viewer(run, stored, {"best": pairs[0]}, pairs, **write | {"most": 0})
    assert "index.html" not in page.read_text()
    assert "1 of 4 pairs" in page.read_text()
    assert not (run.folder / "viewer/1.js").exists()


def test_a_page_embeds_what_fits(pairs, run, monkeypatch):
    for pair in pairs:
        write_flow(flow_path(run.flow_folder, pair), np.zeros((2, 128, 160), np.float32))
    stored = record_flow(pairs, run.flow_folder)
    loaded = pairs[0].load()
    one = len(viewer._to_json(viewer._pack_pair("best", loaded, loaded.flow, 6)))
    monkeypatch.setattr(viewer, "MOST_LETTERS", 1.5 * one)
    roles = {"best": pairs[0], "worst": pairs[2]}
    page = viewer.write_viewer(run, stored, roles, pairs, most=1, num_updates=6)
    assert [entry.get("file") for entry in read_pairs(page)] == [None, "viewer/1.js"]


def test_a_frame_between_two_grey_levels_is_shown_as_the_nearer():
    data = viewer._to_jpeg(np.full((3, 8, 8), 99.6)).partition(",")[2]
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert (shown == 100).all()


def test_a_pair_without_truth_is_shown(tiny_sintel, run):
    pair = sintel.find_pairs(tiny_sintel, pass_name="clean")[3]
    write_flow(flow_path(run.flow_folder, pair), np.zeros((2, 128, 160), np.float32))
    page = viewer.write_viewer(
        run, record_flow([pair], run.flow_folder), {"first": pair}, [pair], most=0, num_updates=6
    )
    (found,) = read_pairs(page)
    assert found["truth"] is found["occluded"] is None


def test_flow_that_changed_since_it_was_scored_is_not_shown(pairs, run):
    for pair in pairs:
        write_flow(flow_path(run.flow_folder, pair), np.zeros((2, 128, 160), np.float32))
    stored = record_flow(pairs, run.flow_folder)
    write_flow(stored.locate(pairs[2]), np.full((2, 128, 160), 40, np.float32))
    with pytest.raises(ValueError, match=r"cave/frame_0001\.flo has changed .* run 04_infer again"):
        viewer.write_viewer(run, stored, {"best": pairs[0]}, pairs, most=4, num_updates=6)


def test_updates_are_packed_at_most_twelve_before_the_last(pairs, run):
    pair = pairs[0].load()
    flows = [pair.flow + number for number in range(20, 0, -1)]
    inside = Inside(flows, flows, np.zeros((320, 320), np.float32), 0.3, Padding(0, 0, 0, 0))
    examined = Examined(pairs[0], pair.frame1, pair.flow, pair.occluded, inside)
    (found,) = read_pairs(viewer.write_update_viewer(run, examined))
    numbers = [update["number"] for update in found["updates"]]
    assert (len(numbers), numbers[0], numbers[-1], found["num_updates"]) == (12, 1, 19, 20)
    np.testing.assert_allclose(unpack(found["updates"][0], 128, 160), flows[0], atol=0.03)


@pytest.mark.exhaustive
def test_a_page_of_updates_is_below_5_mb_whatever_its_flow(run, tmp_path):
    """At Sintel's size, with flow of noise, as many updates as fit."""
    rng, shape = np.random.default_rng(0), (436, 1024)
    frame = np.full((3, *shape), 128, np.float32)
    flows = [rng.normal(0, 0.3, (2, *shape)).astype(np.float32) for _ in range(13)]
    attention = rng.random((7040, 7040), np.float32)
    inside = Inside(flows, flows, attention, 0.3, Padding(top=2, bottom=2, left=0, right=0))
    write_frame(tmp_path / "noise.png", frame)
    truth = np.zeros_like(flows[0])
    write_flow(tmp_path / "noise.flo", truth)
    files = tmp_path / "noise.png", tmp_path / "noise.png", tmp_path / "noise.flo"
    pair = FramePair("clean", "noise", 1, *files)
    examined = Examined(pair, frame, truth, None, inside)
    page = viewer.write_update_viewer(run, examined)
    (found,) = read_pairs(page)
    assert 0 < len(found["updates"]) < 12
    assert page.stat().st_size < 5e6


def test_attention_is_packed_in_blocks_on_a_logarithmic_scale(pairs, tmp_path, monkeypatch):
    """Every cell looks twice as much as evenly at the left half of the frame, and not elsewhere."""
    weights = np.zeros((16, 20), np.float32)
    weights[:, :10] = 2 / 320
    attention = np.repeat(weights.reshape(1, 320), 320, axis=0)
    flow = np.zeros((2, 126, 160), np.float32)
    inside = Inside([flow], [flow], attention, 0.3, Padding(top=1, bottom=1, left=0, right=0))
    for most, factor in ((320**2, 1), (320**2 / 16, 2), (320**2 / 17, 3)):
        monkeypatch.setattr(viewer, "MOST_WEIGHTS", most)
        packed = viewer._pack_attention(inside)
        rows, columns = -(-16 // factor), -(-20 // factor)
        assert (packed["rows"], packed["columns"], packed["side"]) == (rows, columns, 8 * factor)
        assert (packed["left"], packed["top"]) == (0, 1)
        steps = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
        steps = steps.reshape(rows * columns, rows, columns)
        assert (steps[:, :, : 10 // factor] == 128 + 32).all()
        assert (steps[:, :, columns - 10 // factor + 1 :] == 0).all()
