"""The guide's table beside a run's own rows: what is the same, what differs, what was never run."""

import json
from dataclasses import replace

import pytest

from gma_lib.evaluate import guide
from gma_lib.evaluate.guide import GUIDE, NOT_PUBLISHED, OUT_OF_MEMORY, StageRecords
from gma_lib.runs import run as runs

EXPORT = {
    "checkpoint": {"name": "gma-procedural", "sha256": "0123456789abcdef"},
    "num_updates": 6,
    "lookup": "matmul",
    "opset": 13,
    "save_work": True,
    "provenance": {"versions": {"openvino": "2024.1"}, "machine": {"processor": "A laptop's"}},
}
MEASURED = {"versions": {"openvino": "2026.1"}, "machine": {"processor": "Some CPU"}}
INDEX = {"description": "Demo set", "split": "training"}
COLUMNS = ["1px clean, %", "1px final, %", "pairs scored", "pairs/s"]


def records(tmp_path, *, backend="openvino", precision="float32", batch_size=1, scored=2, **more):
    run = runs.Run(tmp_path, "tiny", backend, precision, batch_size, f"{backend}-{precision}")
    scores = {
        name: {"pairs_scored": scored, "pairs_inferred": scored, "all": {"px1": px1}}
        for name, px1 in (("clean", 0.75), ("final", 0.5))
    }
    given = {
        "index": INDEX,
        "export": EXPORT,
        "convert": {"device": "CPU", "precision": precision, "at_once": 1},
        "metrics": scores,
    }
    given["perf"] = {
        "status": "ok",
        "pairs_per_second": 0.6,
        "rounds": 12,
        "provenance": MEASURED,
    }
    return StageRecords(run, **given | more)


def test_every_row_of_the_guide_and_ours_below_it(tmp_path):
    table = guide.compare_with_guide([records(tmp_path)])
    assert list(table.columns) == COLUMNS
    assert list(table.index) == [
        ("batch size 1", GUIDE),
        ("batch size 1", "openvino-float32"),
        *((f"batch size {size}", GUIDE) for size in (4, 8, 16)),
    ]
    assert table.loc["batch size 1", GUIDE].tolist() == [
        "92.65",
        "88.95",
        "1041 of 1041 a pass",
        "0.766",
    ]
    assert table.loc["batch size 1", "openvino-float32"].tolist() == [
        "75.00",
        "50.00",
        "clean 2 of 2; final 2 of 2",
        "0.600",
    ]
    assert table.loc["batch size 8", GUIDE].tolist() == [NOT_PUBLISHED, NOT_PUBLISHED, "", "0.678"]
    assert table.loc["batch size 16", GUIDE]["pairs/s"] == OUT_OF_MEMORY


def test_a_batch_size_that_the_guide_lacks_and_one_without_accuracy(tmp_path):
    table = guide.compare_with_guide([records(tmp_path, batch_size=2, metrics={})])
    assert list(table.index)[1:3] == [
        ("batch size 2", GUIDE),
        ("batch size 2", "openvino-float32"),
    ]
    assert table.loc["batch size 2", GUIDE]["pairs/s"] == NOT_PUBLISHED
    assert table.loc["batch size 2", "openvino-float32"].tolist() == ["", "", "", "0.600"]


def test_memory_that_ran_out_and_pairs_without_truth(tmp_path):
    nothing = {"clean": {"pairs_scored": 0, "pairs_inferred": 3, "all": {"px1": None}}}
    row = guide.compare_with_guide(
        [records(tmp_path, batch_size=16, perf={"status": "out_of_memory"}, metrics=nothing)]
    ).loc["batch size 16", "openvino-float32"]
    assert row["pairs/s"] == OUT_OF_MEMORY
    assert (row["1px clean, %"], row["pairs scored"]) == ("", "clean 0 of 3")


def test_what_differs_on_a_processor(tmp_path):
    found = guide.list_differences([records(tmp_path), records(tmp_path, batch_size=4)])
    assert list(found.columns) == [GUIDE, "openvino-float32"]
    ours = found["openvino-float32"]
    assert ours["updates"] == "the same"
    assert ours["weights"] == "gma-procedural, SHA-256 0123456789ab"
    assert ours["frames"] == "Demo set; scored: 2 clean, 2 final"
    assert ours["precision"] == "float32"
    assert ours["tools"] == "openvino 2026.1"
    assert ours["hardware"] == "Some CPU (CPU)"
    assert ours["computed at once"] == "1 pair"
    assert "12 calls" in ours["throughput"]
    assert (
        guide.list_differences([records(tmp_path, export=EXPORT | {"num_updates": 12})])[
            "openvino-float32"
        ]["updates"]
        == "12"
    )


@pytest.mark.parametrize(
    ("backend", "precision", "more", "graph"),
    [
        ("openvino", "float32", {}, ("matmul lookup", "opset 13", "nothing")),
        ("torch", "float32", {"save_work": False}, ("matmul lookup", "PyTorch's", "every layer")),
        ("cuda", "float32", {}, ("matmul lookup", "rearranged", "nothing")),
        ("cuda", "float16", {}, ("matmul lookup", "rearranged", "only attention")),
        ("cuda", "float16", {"attention": "position"}, ("matmul lookup", "rearranged", "nothing")),
    ],
)
def test_the_graph_is_what_was_run(tmp_path, backend, precision, more, graph):
    mine = records(
        tmp_path,
        backend=backend,
        precision=precision,
        export=EXPORT | {"attention": "content"} | more,
    )
    words = guide.list_differences([mine]).loc["graph", mine.label]
    assert [part in words for part in graph] == [True] * 3
    assert ("opset" in words) == (backend == "openvino")


def test_all_pairs_of_both_passes_are_as_many_as_sintel_has(tmp_path):
    """Regression: rendered frames in Sintel's layout were called the same as the guide's."""
    sintel = {"description": "MPI-Sintel, training split, as found on disk", "split": "training"}
    same = {}
    for scored, index in ((1041, sintel), (1040, sintel), (1041, INDEX)):
        table = guide.list_differences([records(tmp_path, scored=scored, index=index)])
        words = table["openvino-float32"]["frames"]
        same[scored, index["description"][:4]] = "not checked" in words
    assert same == {(1041, "MPI-"): True, (1040, "MPI-"): False, (1041, "Demo"): False}


def test_batch_sizes_that_were_made_otherwise_have_a_column_of_their_own(tmp_path):
    """What is not known, as where memory ran out, and how often was timed are no difference."""
    first, fourth = records(tmp_path), records(tmp_path, batch_size=4)
    nowhere = {"convert": {}, "metrics": {}, "perf": {"status": "out_of_memory"}}
    none = records(
        tmp_path, batch_size=16, **nowhere | {"perf": nowhere["perf"] | {"provenance": MEASURED}}
    )
    again = records(tmp_path, batch_size=8, perf=fourth.perf | {"rounds": 100})
    name = "openvino-float32"
    assert list(guide.group_by_settings([first, fourth, again, none])) == [name]
    checkpoint = {"name": "mine", "sha256": "fedcba9876543210"}
    others = [
        {"export": EXPORT | {"num_updates": 12}},
        {"export": EXPORT | {"checkpoint": checkpoint}},
        {"convert": first.convert | {"at_once": None}},
        {"perf": first.perf | {"provenance": EXPORT["provenance"]}},
    ]
    for other in others:
        found = [first, records(tmp_path, batch_size=4, **other), again]
        table = guide.list_differences(found)
        assert list(table.columns) == [GUIDE, f"{name}, batch size 1, 8", f"{name}, batch size 4"]
        assert table.iloc[:, 1].tolist() != table.iloc[:, 2].tolist()


def test_machine_and_tools_are_those_of_the_measurement(tmp_path, monkeypatch):
    """Else of the scoring; of a record that is not written yet, this process's."""
    now = {"versions": {"openvino": "2026.2"}, "machine": {"processor": "Here"}}
    monkeypatch.setattr(guide, "trace_provenance", lambda: now)
    scored = records(tmp_path).metrics
    for given, expected in (
        ({}, ["Some CPU (CPU)", "openvino 2026.1"]),
        (
            {"perf": {}, "metrics": scored | {"provenance": MEASURED}},
            ["Some CPU (CPU)", "openvino 2026.1"],
        ),
        ({"perf": {}}, ["Here (CPU)", "openvino 2026.2"]),
    ):
        ours = guide.list_differences([records(tmp_path, **given)])["openvino-float32"]
        assert [ours["hardware"], ours["tools"]] == expected
        assert (ours["throughput"] == "not measured") == ("perf" in given)


def test_what_no_record_says_is_unknown(tmp_path):
    ours = guide.list_differences([records(tmp_path, convert={})])["openvino-float32"]
    assert ours["hardware"] == ours["computed at once"] == "unknown"


@pytest.mark.parametrize(
    ("simulated", "label"), [(False, "ascend-float16"), (True, "ascend-float16 (SIMULATED)")]
)
def test_what_differs_on_a_card(tmp_path, simulated, label):
    convert = {
        "device": f"Ascend310P3{' (SIMULATED)' if simulated else ''}",
        "precision": "float16",
        "at_once": None,
        "simulated": simulated,
    }
    perf = {
        "status": "ok",
        "pairs_per_second": 0.7721,
        "pairs_per_second_with_transfers": 0.767,
        "rounds": 100,
    }
    mine = records(
        tmp_path, backend="ascend", precision="float16", batch_size=4, convert=convert, perf=perf
    )
    mine.run.model_folder.mkdir(parents=True)
    manifest = {
        "cann": "7.0.0",
        "soc": "Ascend310P3",
        "options": {"keep_dtype": ["OpType::InstanceNorm"]},
    }
    (mine.run.model_folder / "gma.om.json").write_text(json.dumps(manifest))
    ours = guide.list_differences([mine])[label]
    same = {what for what, words in ours.items() if words == "the same"}
    assert same == {"updates", "computed at once"} | (
        set() if simulated else {"precision", "throughput", "hardware"}
    )
    assert not simulated or (
        "asked for" in ours["precision"] and "not measured" in ours["throughput"]
    )
    assert ours["tools"] == "CANN 7.0.0, atc, ais_bench"
    nowhere = records(
        tmp_path,
        backend="ascend",
        precision="float16",
        batch_size=4,
        convert={},
        perf={"simulated": simulated},
    )
    assert (
        guide.list_differences([nowhere])[label]["hardware"] == ours["hardware"]
    )  # memory ran out before it was loaded
    too_large = replace(nowhere, run=replace(mine.run, batch_size=16))  # was not even converted
    assert list(guide.group_by_settings([mine, too_large])) == [label]
    assert guide.compare_with_guide([mine]).loc["batch size 4", label][
        ["pairs/s", "pairs/s with transfers"]
    ].tolist() == ["0.772", "0.767"]


def test_nothing_has_run(tmp_path):
    assert len(guide.compare_with_guide([])) == 4
    assert len(guide.compare_with_guide([records(tmp_path, metrics={}, perf={})])) == 4
    assert list(guide.list_differences([]).columns) == [GUIDE]
