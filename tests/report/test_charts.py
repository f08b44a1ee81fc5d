"""Charts are drawn, labelled and described."""

import numpy as np
import pytest

from gma_lib.report import charts
from gma_lib.report.figures import encode_figure

GUIDE = {1: 0.766, 4: 0.772, 8: 0.678}


def test_every_curve_is_drawn_and_none_looks_like_another():
    names = "network", "refined", "DIS", "Farneback", "no motion"
    figure, told = charts.plot_error_curves(
        {name: np.linspace(0, 1, 10) for name in names}, np.arange(1, 11) / 5
    )
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == list(names)
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)
    assert all(name in told for name in names)


def test_every_pass_has_its_bars():
    figure, _ = charts.plot_scenes({name: {"a": 1.0} for name in ("clean", "final", "albedo")})
    assert len({bar.get_facecolor() for bar in figure.axes[0].patches}) == 3


@pytest.mark.parametrize(
    ("chart", "words"),
    [
        (
            charts.plot_error_curves({"clean": np.linspace(0, 1, 100)}, np.arange(1, 101) / 20),
            "within 1.00 px: clean 19.2 %",
        ),
        (charts.plot_error_curves({}, np.arange(1, 101) / 20), "within 1.00 px: ."),
        (charts.plot_work({"GRU": 83.0, "lookup": 4.0}), "87 GMAC in all; most in GRU (83 GMAC)"),
        (
            charts.plot_parts({"GRU": 0.2, "lookup": 0.1}, {"GRU": 83.0}, 1e12),
            "300 ms in all where the arithmetic alone takes 166 ms; most in GRU (200 ms)",
        ),
        (
            charts.plot_parts({"GRU": 0.2, "lookup": 0.1}, {"GRU": 83.0}, None),
            "300 ms in all; most in GRU (200 ms)",
        ),
        (charts.plot_rounds([1.0, 1.1, 0.9], 4), "3 calls at batch size 4: median 1.00 s"),
        (
            charts.plot_timeline(
                [
                    {"worker": "worker 1", "start": 1.0, "seconds": 3.0},
                    {"worker": "worker 10", "start": 1.0, "seconds": 2.0},
                    {"worker": "worker 10", "start": 3.0, "seconds": 1.0},
                ],
                4.2,
            ),
            "3 shards on 2 workers in 4.0 s; the workers computed 75% of the time",
        ),
        (
            charts.plot_throughput({"run": {1: 0.6, 16: None}}, {"run": {1: 0.8}}, GUIDE),
            "run bs1: 0.60, bs1: 0.80 GB; ",
        ),
    ],
    ids=[
        "curve",
        "no curve",
        "work",
        "parts",
        "parts without a peak",
        "rounds",
        "timeline",
        "throughput",
    ],
)
def test_every_chart_says_its_numbers(chart, words):
    figure, text = chart
    assert encode_figure(figure)[0] == "image/png"
    assert words in text


@pytest.mark.parametrize(
    ("offset", "starts"),
    [(0, [1, 4, 0.5]), (-60, [1, 4, 0]), (60, [1, 4, 7.0])],
    ids=["one clock", "behind", "ahead"],
)
def test_a_worker_whose_clock_differs_computes_within_the_call(offset, starts):
    """And no share of a time is told that no clock has measured."""
    shards = [
        {"worker": name, "start": start, "seconds": 3.0}
        for name, start in (("worker 1", 1), ("worker 1", 4), ("worker 2", 0.5 + offset))
    ]
    figure, text = charts.plot_timeline(shards, 10.0)
    assert [bar.get_x() for bar in figure.axes[0].patches] == starts
    assert figure.axes[0].get_xlim()[1] == max(starts) + 3
    assert ("% of the time" in text) == (offset == 0)
    assert ("worker 2" in text) == (offset != 0)


def test_a_size_that_was_not_timed_has_its_tick_and_no_point():
    figure, text = charts.plot_throughput(
        {"run": {1: 0.6, 16: None}, "idle": {2: None}}, {"run": {1: 0.8}, "idle": {}}, GUIDE
    )
    speed = figure.axes[0]
    assert [line.get_label() for line in speed.get_lines()] == [
        "run",
        "guide, Ascend 310P3 float16",
    ]
    assert list(speed.get_lines()[0].get_xdata()) == [1]
    assert list(speed.get_xticks()) == [1, 2, 4, 8, 16]
    assert "idle" not in text


def test_a_measurement_with_a_caution_has_a_hollow_marker():
    rates = {"run": {1: 0.6, 4: 0.2}}
    figure, text = charts.plot_throughput(rates, {"run": {}}, GUIDE, {"run": [4, 8]})
    (hollow,) = figure.axes[0].collections
    assert hollow.get_offsets().tolist() == [[4, 0.2]]
    assert "run bs1: 0.60, bs4: 0.20 (with a caution)" in text


def test_every_run_has_its_line_and_none_is_under_the_legend():
    rates = {f"run {number}": {1: 0.8 + number} for number in range(6)}
    figure, text = charts.plot_throughput(rates, {run: {1: 0.8} for run in rates}, GUIDE)
    speed = figure.axes[0]
    assert [line.get_label() for line in speed.get_lines()][:6] == list(rates)
    assert len({(line.get_color(), line.get_marker()) for line in speed.get_lines()[:6]}) == 6
    assert "run 5 bs1: 5.80, bs1: 0.80 GB" in text
    encode_figure(figure)  # lays it out
    below_legend = speed.transData.inverted().transform(speed.get_legend().get_window_extent())[
        0, 1
    ]
    assert max(max(line.get_ydata()) for line in speed.get_lines()) < below_legend


def test_scenes_are_sorted_by_their_error():
    epe = {"clean": {"cave": 5.0, "alley": 1.0}, "final": {"alley": 2.0, "cave": 6.0, "ice": 3.0}}
    figure, text = charts.plot_scenes(epe)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["alley", "ice", "cave"]
    assert "3 scenes" in text
    assert "cave" in text
    assert "alley" not in text
    nothing = charts.plot_scenes({"clean": {}})
    assert "0 scenes" in nothing[1]
    encode_figure(nothing[0])
