"""Tables, curves and sentences about scores."""

import re

import numpy as np
import pytest

from gma_lib.evaluate import tables
from gma_lib.evaluate.evaluation import Comparison
from gma_lib.flow.metrics import GROUP_LABELS, Deviation, ErrorSums, sum_errors
from gma_lib.report.pages import table_to_html


@pytest.fixture
def scores():
    """Two passes as ``metrics.json`` holds them: one pair of four scored, 5 px off everywhere."""
    truth = np.full((2, 8, 10), [[[3.0]], [[4.0]]], np.float32)
    occluded = np.zeros((8, 10), bool)
    occluded[:, 0] = True
    sums = sum_errors(np.zeros_like(truth), truth, occluded=occluded)
    groups = {name: value.to_metrics() for name, value in sums.items()}
    shares = sums["all"].shares_within()
    one = {"pairs_inferred": 4, "pairs_scored": 1, "share_within": shares, **groups}
    return {name: one | {"scenes": {"cave": groups}} for name in ("clean", "final")}


def test_tables(scores):
    groups = tables.tabulate_groups(scores)
    every = "all pixels (also: valid pixels; speed below 10 px)"
    assert groups.loc[("clean", every), "EPE, px"] == 5
    labels = " ".join(groups.loc["final"].index)
    assert all(label in labels for label in GROUP_LABELS.values())
    assert groups["pixels"].tolist() == 2 * [80, 72, 8, 5, 40, 0]
    assert tables.tabulate_scenes(scores).loc[("final", "cave"), "pixels"] == 80
    published = tables.tabulate_published(scores)
    assert published["1px, %"].max() == 93.0
    assert any("1 of 4 pairs scored" in what for _, what in published.index)


EXPORT = {"num_updates": 6, "checkpoint": {"name": "gma-sintel"}}
INDEX = {"description": "MPI-Sintel, training split, as found on disk"}


def judge(scores, *, export=EXPORT, index=INDEX, confirmed=True):
    return tables.judge_accuracy(scores, export, index, weights_and_data_are_published=confirmed)


def test_no_verdict_unless_vouched_for(scores):
    assert "No verdict" in judge(scores, confirmed=False)
    assert "1 of 1041" in judge(scores)


@pytest.mark.parametrize(
    "other",
    [
        {"export": EXPORT | {"num_updates": 32}},
        {"export": EXPORT | {"checkpoint": {"name": "gma-procedural"}}},
        {"index": {"description": "Demo set, rendered by this package"}},
    ],
    ids=["updates", "weights", "frames"],
)
def test_no_verdict_where_the_records_know_better(other):
    scores = {"clean": {"pairs_scored": 1041, "all": {"px1": 0.9263}}}
    assert "clean: reproduced" in judge(scores)
    assert judge(scores, **other).startswith("No verdict")


@pytest.mark.parametrize(("px1", "word"), [(0.9263, "clean: reproduced"), (0.9, "NOT reproduced")])
def test_verdict(px1, word):
    scores = {"clean": {"pairs_scored": 1041, "all": {"px1": px1}}}
    assert word in judge(scores)


def test_the_sentence_says_who_is_ahead():
    def sums(error):
        return {"all": ErrorSums(pixels=10, error=10 * error, below=[8, 9, 9])}

    ahead = tables.describe_classical(
        {"network": sums(1), "DIS": sums(2), "Farneback": sums(3), "no motion": sums(0.5)}
    )
    assert re.findall(r"(\w+) \(([\d.]+) px, 1px ([\d.]+)%\)", ahead) == [
        ("network", "1.00", "80.0"),
        ("DIS", "2.00", "80.0"),
    ]
    assert "ahead of DIS" in ahead
    assert "is behind DIS (2.00 px, " in tables.describe_classical(
        {"network": sums(2.5), "DIS": sums(2)}
    )
    both = {"network": sums(2.5), "network + variational refinement": sums(1), "DIS": sums(2)}
    assert "the network (2.50 px, 1px 80.0%) is behind DIS" in tables.describe_classical(both)
    assert "refinement (1.00 px, 1px 80.0%) is ahead of DIS" in tables.describe_classical(both)
    assert tables.describe_classical({}).startswith("No pair was compared")
    alone = tables.describe_classical({"network": sums(2.5), "no motion": sums(2)})
    assert re.findall(r"\d+\.\d+", alone) == ["2.50", "80.0"]  # no motion is no method


def test_methods_have_a_row_each():
    truth = np.full((2, 8, 10), [[[3.0]], [[4.0]]], np.float32)
    truth[:, :2] *= 4  # 20 px
    occluded = np.zeros((8, 10), bool)
    occluded[0] = True
    flows = {"network": truth + 0.5, "DIS": np.zeros_like(truth)}
    sums = {name: sum_errors(flow, truth, occluded=occluded) for name, flow in flows.items()}
    compared = Comparison(1, sums, {"DIS": 0.25})
    table, half = tables.tabulate_methods(compared), pytest.approx(0.5**0.5)
    assert table.columns.tolist() == [
        *("median, px", "EPE, px", "1px, %", "3px, %", "5px, %", "EPE occluded, px", "s per pair")
    ]
    row = table.loc["network"]
    assert row.iloc[:-1].tolist() == [pytest.approx(0.725), half, 100, 100, 100, half]
    assert table["s per pair"].isna().tolist() == [True, False]
    assert table.loc["DIS", ["EPE, px", "EPE occluded, px", "1px, %"]].tolist() == [8.75, 20, 0]
    assert table.loc["DIS", "median, px"] == pytest.approx(4.95 + 0.05 * 40 / 60)
    speeds = tables.tabulate_speeds(compared)
    captions = ["clean, pairs: 1, all pixels", "clean, pairs: 1, by true speed"]
    assert list(tables.tabulate_comparisons({"clean": compared})) == captions
    assert speeds.loc["DIS"].dropna().tolist() == [5, 0, 20, 0]
    assert speeds.columns[-2:].tolist() == ["EPE speed from 40 px, px", "1px speed from 40 px, %"]
    assert speeds.loc["network"].dropna().tolist() == [half, 100, half, 100]
    without = {name: {"all": groups["all"]} for name, groups in sums.items()}
    table = tables.tabulate_methods(Comparison(1, without, {}))
    assert table["EPE occluded, px"].isna().all()  # no masks
    for each in (table, speeds):  # columns of nothing had None, where a dash was asked for
        assert set(each.dtypes) == {np.dtype(float)}
        assert "None" not in table_to_html(each, number="{:.2f}", missing="-")


def test_passes_and_methods_without_scores_are_named():
    one = Comparison(1, {}, {})
    told = tables.describe_left_out(["clean", "final"], {"clean": one}, {"DIS": "clean/s: 3 px"})
    assert re.findall(r"(?:clean|final|DIS)\b", told) == ["final", "DIS", "clean"]
    assert "clean/s: 3 px" in told
    assert tables.describe_left_out(["clean"], {"clean": one}, {}) == ""
    assert tables.describe_left_out(["clean", "final"], {}, {}) == ""  # which is said elsewhere


def test_curves_and_scene_errors(scores):
    nothing = scores["clean"] | {"pairs_scored": 0, "scenes": {}}
    curves = tables.collect_error_curves({"clean": nothing, "final": scores["final"]})
    assert list(curves) == ["final"]
    assert curves["final"][-2:] == [0, 1]
    errors = tables.collect_scene_errors({"clean": nothing, "final": scores["final"]})
    assert errors == {"clean": {}, "final": {"cave": 5}}


def test_distances_are_told_with_the_largest():
    found = {"one pair": Deviation(1e-6, 2e-6, 3e-5), "a batch": Deviation(1e-5, 2e-5, 4e-4)}
    assert tables.tabulate_deviations(found).loc["a batch"].tolist() == [1e-5, 2e-5, 4e-4]
    told = tables.describe_deviations(found)
    assert "4.0e-04 px" in told
    assert "(a batch): rounding." in told
    assert "more than rounding" in tables.describe_deviations({"int8": Deviation(0.03, 0.2, 1.0)})


def test_one_sentence_for_all_methods():
    def score(epe, px1):
        return {"all": {"epe": epe, "px1": px1}}

    told = tables.summarise_scores(
        {"pairs": 12, "network": score(0.984, 0.8781), "DIS": score(1.372, 0.8391)}
    )
    for number in ("0.98 px", "12 pairs", "87.8%", "DIS 1.37 px", "83.9%"):
        assert number in told
    alone = tables.summarise_scores({"pairs": 1, "left_out": {}, "network": score(0.5, 0.9)})
    assert alone.endswith("over 1 pair, and 90.0% of the pixels are less than 1 px off.")
    assert tables.summarise_scores({}) == tables.summarise_scores({"pairs": 0}) == ""
