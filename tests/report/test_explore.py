"""Sliders move pictures; without a front end there is a picture."""

from dataclasses import replace

import numpy as np
import pytest

from gma_lib.data.padding import Padding
from gma_lib.data.sintel import FramePair
from gma_lib.evaluate.insight import Examined, Inside
from gma_lib.report import explore


@pytest.fixture
def examined():
    """A pair of 128x128 px with two updates and attention that decreases to the right."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (3, 128, 128)).astype(np.float32)
    truth = rng.normal(0, 5, (2, 128, 128)).astype(np.float32)
    attention = np.repeat(np.linspace(1, 0, 256, dtype=np.float32)[None], 256, axis=0)
    inside = Inside([truth + 2, truth + 1], [truth, truth], attention, 0.3, Padding(0, 0, 0, 0))
    return Examined(FramePair("clean", "made", 1, "a", "b"), frame, truth, None, inside)


def test_where_nobody_can_slide_there_is_a_picture(monkeypatch, examined):
    shown = []
    monkeypatch.setenv("GMA_HEADLESS", "1")
    monkeypatch.setattr(explore, "show", lambda sheet, photo: shown.append(sheet[1]))
    monkeypatch.setattr(explore, "say", shown.append)
    explore.explore([examined.pair], None, examined)
    assert len(shown) == 2
    assert "make lab" in shown[1]


def test_sliders_move_the_pictures(examined):
    first = replace(examined, pair=replace(examined.pair, flow="a.flo"))
    other = replace(
        first,
        pair=replace(first.pair, number=2),
        inside=replace(first.inside, flows=first.inside.flows[:1]),
    )
    asked = []

    def examine(pair):
        asked.append((pair.name, status.value))
        return other

    panel = explore.build_panel([first.pair, other.pair], examine, first)
    choice, update, places, flow_picture, attention_picture = panel.children
    menu, status = choice.children
    assert (update.value, update.max) == (2, 2)
    seen = flow_picture.value
    update.value = 1
    assert flow_picture.value != seen
    seen = attention_picture.value
    places.children[0].value = 100
    assert attention_picture.value != seen
    menu.value = other.pair.name
    assert asked == [(other.pair.name, "looking inside clean/made/frame_0002 ...")]
    assert status.value == ""
    assert update.max == 1
