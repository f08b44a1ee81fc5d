"""Figures of the network's inside: drawn and described in every palette, with and without masks."""

import numpy as np
import pytest

from gma_lib.flow.colours import PALETTES
from gma_lib.report import figures, figures_inside


@pytest.fixture
def fields():
    """True flow of 128x160 px, three estimates of it, and a mask."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 5, (2, 128, 160)).astype(np.float32)
    occluded = np.zeros((128, 160), bool)
    occluded[20:50, 30:90] = True
    return truth, [truth + step for step in (3, 2, 1)], occluded


@pytest.mark.parametrize("palette", PALETTES)
def test_updates_and_aggregation_say_their_numbers(fields, palette):
    truth, flows, occluded = fields
    curves = {"all pixels": [3.0, 2.0, 1.0], "occluded": [5.0, 4.0, 2.5]}
    options = {"title": "a/b", "palette": palette}
    drawn = [
        figures_inside.draw_updates(flows, truth, curves, most=2, **options),
        figures_inside.draw_update(flows, truth, 3, **options),
        figures_inside.draw_aggregation(flows[2], flows[1], truth, occluded, **options),
        figures_inside.draw_aggregation(flows[2], flows[1], truth, None, **options),
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
    figure, text = figures_inside.draw_attention(
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
