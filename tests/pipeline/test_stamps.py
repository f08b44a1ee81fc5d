"""Nothing runs twice, and nothing old passes for new."""

import json
import os
import time

import pytest
from conftest import copy_until, run_stage

from gma_lib.pipeline import stamps
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.pipeline.stamps import compute_key, read_status
from gma_lib.report import index as report
from gma_lib.runs import run as runs
from gma_lib.runs.files import PROJECT


@pytest.fixture
def run(tmp_path):
    return runs.open_run(
        profile="tiny",
        backend="openvino",
        precision="float32",
        batch_size=2,
        outputs=str(tmp_path),
    )


def test_nothing_to_do(finished):
    start = time.monotonic()
    for stage in STAGES:
        done = run_stage(stage, finished)
        assert done.returncode == 0
        assert "up to date" in done.stdout
    assert time.monotonic() - start < 10


def test_a_touched_notebook_changes_nothing(finished):
    os.utime(PROJECT / "notebooks/05_evaluate.ipynb")
    assert "up to date" in run_stage("05_evaluate", finished).stdout


def test_an_edited_cell_and_another_parameter_run_again(finished, monkeypatch):
    """What depends on it, and nothing else."""
    run = runs.open_run(
        profile="tiny",
        backend="openvino",
        precision="float32",
        batch_size=2,
        run="test",
        outputs=str(finished),
    )

    def key(stage, **parameters):
        return compute_key(stage, run, {"checkpoint": "seeded"} | parameters)

    before = {stage: key(stage) for stage in STAGES}
    cells = [dict(cell) for cell in stamps.read_cells("04_infer")]
    cells[-2] = cells[-2] | {"source": ["another line"]}
    monkeypatch.setattr(
        stamps,
        "read_cells",
        lambda stage, real=stamps.read_cells: cells if stage == "04_infer" else real(stage),
    )
    after = {stage: key(stage) for stage in STAGES}
    assert [stage for stage in STAGES if after[stage] != before[stage]] == ["04_infer"]
    assert key("05_evaluate", passes=["clean"]) != after["05_evaluate"]
    # 05 reads 04: as soon as 04 has run under its new key, 05 is out of date
    real_stamp = stamps.read_stamp
    monkeypatch.setattr(
        stamps,
        "read_stamp",
        lambda stage, run: {"key": "new"} if stage == "04_infer" else real_stamp(stage, run),
    )
    assert key("05_evaluate") != after["05_evaluate"]
    assert key("06_perf") == after["06_perf"]


def test_a_lost_result_is_made_again(finished):
    (finished / "tiny/test/bs3/metrics.json").unlink()
    done = run_stage("05_evaluate", finished, batch_size="3")
    assert "done" in done.stdout
    assert (finished / "tiny/test/bs3/metrics.json").is_file()


def test_old_numbers_do_not_outlive_what_they_came_from(finished, tmp_path):
    """04 fails after everything had run: its own and 05's numbers are gone from the index, 06's are
    not.
    """
    outputs = tmp_path / "outputs"
    copy_until(finished, outputs, "nothing")
    before = report.write_index(outputs, "tiny").read_text()
    assert before.count("<td>4/4</td>") == 4  # two passes at two batch sizes
    run = runs.open_run(
        profile="tiny",
        backend="openvino",
        precision="float32",
        batch_size=2,
        run="test",
        outputs=str(outputs),
    )
    (run.model_folder / "gma.xml").write_text("no model")
    done = run_stage("04_infer", outputs, "full_batch_size=2")
    assert done.returncode == 1
    assert not (run.folder / "infer.json").exists()
    assert [read_status(stage, run) for stage in STAGES] == [
        "ok",
        "ok",
        "ok",
        "failed",
        "stale",
        "ok",
    ]
    assert report._result(run, "05_evaluate") == {}
    assert report._result(run, "06_perf")["status"] == "ok"
    page = report.write_index(outputs, "tiny").read_text()
    assert page.count("<td>4/4</td>") == 2
    assert "stale" in page
    assert "✗ failed" in page


def test_another_version_s_stamp_counts_as_absent(run, caplog):
    """With one line that says so, however often it is read."""
    stamps.write_stamp("02_export", run, status="ok", reason="", key="k")
    assert read_status("02_export", run) == "stale"  # 01_data has not run
    path = stamps.locate_stamp("02_export", run)
    old = json.loads(path.read_text())
    del old["schema"]
    path.write_text(json.dumps(old))
    with caplog.at_level("WARNING"):
        assert [stamps.read_stamp("02_export", run) for _ in range(3)] == [None] * 3
        assert read_status("02_export", run) is None
    assert len(caplog.records) == 1
    assert str(run.outputs / run.profile) in caplog.text
    assert not stamps.is_up_to_date("02_export", run, "k")


def test_modules_that_no_stage_runs_exist():
    """Whoever moves one has to change the list."""
    for name in stamps.NOT_IN_STAGES:
        assert (PROJECT / "gma_lib" / name).is_file()


def test_what_lies_outside_the_project_is_in_the_key(run, tmp_path):
    folder = tmp_path / "sintel"
    folder.mkdir()
    parameters = {"sintel_root": str(folder)}
    empty = compute_key("01_data", run, parameters)
    (folder / "frame.png").write_bytes(b"1")
    assert compute_key("01_data", run, parameters) != empty
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"1")
    one = compute_key("02_export", run, {"checkpoint": str(weights)})
    weights.write_bytes(b"2")
    assert compute_key("02_export", run, {"checkpoint": str(weights)}) != one
    assert locate_record("02_export", run) == run.folder / "export.json"
