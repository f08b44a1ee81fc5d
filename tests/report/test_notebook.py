"""What a notebook shows: pictures with their texts, one pair of every scene."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import record_flow

from gma_lib.data import sintel
from gma_lib.data.padding import Padding
from gma_lib.evaluate.insight import Examined, Inside
from gma_lib.flow.files import write_flow
from gma_lib.infer.inference import flow_path
from gma_lib.report import charts, notebook


@pytest.fixture
def pairs(tiny_sintel):
    return sintel.find_pairs(tiny_sintel, pass_name="clean")


@pytest.fixture
def shown(monkeypatch):
    """Alternative texts and sentences, in the order they are shown in."""
    texts = []
    monkeypatch.setattr(notebook, "show", lambda picture, photo=False: texts.append(picture[1]))
    monkeypatch.setattr(notebook, "say", texts.append)
    return texts


def test_one_pair_of_every_scene_with_truth_if_there_is_any(pairs):
    without = replace(pairs[0], flow=None)
    chosen = notebook.choose_from_scenes(
        [without, *pairs[1:], replace(pairs[1], pass_name="final")]
    )
    assert [pair.name for pair in chosen] == ["clean/alley/frame_0002", "clean/cave/frame_0001"]
    assert notebook.choose_from_scenes([without]) == [without]
    many = [replace(pairs[0], scene=f"scene {number}") for number in range(6)]
    assert notebook.choose_from_scenes(many) == many[:4]


def test_data_and_flows_are_shown(pairs, shown, tmp_path):
    for pair in pairs:
        write_flow(flow_path(tmp_path, pair), np.zeros((2, 128, 160), np.float32))
    notebook.show_data(pairs)
    notebook.show_flows(pairs[:1], record_flow(pairs, tmp_path))
    assert [text.split(":")[0] for text in shown] == [
        "clean/alley/frame_0001",
        "clean/cave/frame_0001",
        "clean/alley/frame_0001",
    ]


def test_flow_that_changed_since_it_was_computed_is_not_shown(pairs, shown, tmp_path):
    for pair in pairs:
        write_flow(flow_path(tmp_path, pair), np.zeros((2, 128, 160), np.float32))
    stored = record_flow(pairs, tmp_path)
    write_flow(stored.locate(pairs[0]), np.full((2, 128, 160), 40, np.float32))
    with pytest.raises(ValueError, match=r"frame_0001\.flo has changed .* run 04_infer again"):
        notebook.show_flows(pairs, stored)
    with pytest.raises(ValueError, match=r"frame_0001\.flo has changed .* run 04_infer again"):
        notebook.show_overview({"best": pairs[0]}, stored, tmp_path / "overview.jpg")
    assert not shown


def test_a_page_is_shown_by_its_name_and_in_jupyterlab_by_its_content(monkeypatch, tmp_path):
    """There, no link leads to a file that the server does not have."""
    displayed = []
    monkeypatch.setattr(notebook, "display", lambda data, **options: displayed.append(data))
    (tmp_path / "a.html").write_text('<p title="1">')
    monkeypatch.setenv("GMA_HEADLESS", "1")
    notebook.show_page(tmp_path / "a.html", "A page")
    monkeypatch.setenv("JPY_SESSION_NAME", "any")
    monkeypatch.delenv("GMA_HEADLESS")
    notebook.show_page(tmp_path / "a.html", "A page")
    assert 'src="a.html" title="A page"' in displayed[0]["text/html"]
    assert 'href="a.html"' in displayed[0]["text/html"]
    assert 'srcdoc="&lt;p title=&quot;1&quot;&gt;"' in displayed[1]["text/html"]
    assert "href=" not in displayed[1]["text/html"]
    assert f"<code>{tmp_path / 'a.html'}</code>" in displayed[1]["text/html"]


def test_the_inside_is_shown_with_its_sentences(pairs, shown):
    pair = pairs[0].load()
    attention = np.full((320, 320), 1 / 320, np.float32)
    flows = [pair.flow + 2, pair.flow + 1]
    inside = Inside(flows, flows, attention, 0.3, Padding(0, 0, 0, 0))
    examined = Examined(pairs[0], pair.frame1, pair.flow, pair.occluded, inside)
    for show in (notebook.show_attention, notebook.show_updates, notebook.show_aggregation):
        show(examined)
    assert len(shown) == 6
    assert shown[4].endswith(shown[5])
    assert "next to no difference" in shown[5]


def test_a_picture_carries_its_text(monkeypatch):
    displayed = []
    monkeypatch.setattr(
        notebook, "display", lambda data, **options: displayed.append((data, options))
    )
    notebook.show(charts.plot_work({"GRU": 1.0}))
    notebook.say("two words")
    (data, options), (words, _) = displayed
    assert words == {"text/html": "<p>two words</p>", "text/plain": "two words"}
    assert options["metadata"]["image/png"]["alt"] == data["text/plain"]
