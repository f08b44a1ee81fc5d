"""Flow that is deleted once it is scored, and comes back where it is needed."""

import json
import shutil
import subprocess

import pytest
from conftest import list_command, open_tiny, run_stage

from gma_lib.pipeline import walk
from gma_lib.pipeline.chain import describe_uncompared, find_comparable
from gma_lib.pipeline.dropped import drop_flow, list_dropped, locate_note
from gma_lib.pipeline.parameters import resolve_parameters
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.pipeline.stamps import read_statuses
from gma_lib.runs.files import PROJECT
from gma_lib.runs.records import read_json, write_json


def content(path):
    return json.loads(path.read_text())


def resolve(outputs):
    given = {"outputs": str(outputs), "run": "test", "batch_size": 2}
    return resolve_parameters("tiny", given)


@pytest.fixture(scope="module")
def dropped(finished, tmp_path_factory):
    """A finished run, run again with keep_flow=false."""
    outputs = tmp_path_factory.mktemp("dropped") / "outputs"
    shutil.copytree(finished, outputs)
    command = list_command(outputs, "keep_flow=false", batch_sizes=(2, 3))
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    assert "running" not in done.stdout
    return outputs


@pytest.fixture
def outputs(dropped, tmp_path):
    copied = tmp_path / "outputs"
    shutil.copytree(dropped, copied)
    return copied


def test_dropped_flow_is_gone_and_all_else_holds(finished, dropped):
    for size in (2, 3):
        run, before = (open_tiny(one, batch_size=size) for one in (dropped, finished))
        assert [*before.flow_folder.glob("*/*/*.flo")]
        assert not [*run.flow_folder.glob("*/*/*.flo")]
        assert set(read_statuses(run).values()) == {"ok"}
        recorded = content(locate_record("04_infer", run))["flow"]
        assert list_dropped(run) == {f"flow/{name}.flo": one for name, one in recorded.items()}
        assert list_dropped(before) == {}


def test_nothing_runs_again_for_want_of_it(dropped):
    """Whatever keep_flow says by then."""
    done = subprocess.run(
        list_command(dropped, batch_sizes=(2, 3)), capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 0
    assert done.stdout.count("up to date") == 1 + 2 * (len(STAGES) - 1)
    assert not [*open_tiny(dropped).flow_folder.glob("*/*/*.flo")]


@pytest.mark.exhaustive
def test_it_is_computed_again_for_a_stage_that_needs_it(finished, outputs):
    done = run_stage("05_evaluate", outputs, "palette=twilight")
    assert "04_infer bs2: done" in done.stdout, done.stdout + done.stderr
    assert "05_evaluate bs2: done" in done.stdout
    run, before = open_tiny(outputs), open_tiny(finished)
    scores, expected = (content(locate_record("05_evaluate", one)) for one in (run, before))
    assert scores["clean"] == expected["clean"]
    assert not locate_note(run).exists()
    names = [path.relative_to(before.flow_folder) for path in before.flow_folder.glob("*/*/*.flo")]
    for name in names:
        assert (run.flow_folder / name).read_bytes() == (before.flow_folder / name).read_bytes()


def test_flow_that_is_gone_without_having_been_dropped_is_missed(outputs):
    run = open_tiny(outputs)
    locate_note(run).unlink()
    assert read_statuses(run)["04_infer"] == "altered"


def test_a_damaged_record_stands_for_no_flow(outputs):
    run = open_tiny(outputs)
    path = locate_record("04_infer", run)
    record = read_json(path, made_by="04_infer")
    write_json(path, record | {"flow": dict.fromkeys(record["flow"], "0" * 64)})
    assert read_statuses(run)["04_infer"] == "altered"
    path.write_text("{}")
    assert list_dropped(run) == {}
    assert read_statuses(run)["04_infer"] == "altered"


def test_flow_that_not_all_has_read_stays(finished, tmp_path):
    """As where another run has computed it again meanwhile."""
    outputs = tmp_path / "outputs"
    shutil.copytree(finished, outputs)
    run, asked = open_tiny(outputs), [resolve(outputs) | {"keep_flow": False}]
    path = locate_record("04_infer", run)
    record = path.read_text()
    write_json(path, read_json(path, made_by="04_infer") | {"subset": "of another run"})
    walk._drop_scored_flow(asked)
    assert [*run.flow_folder.glob("*/*/*.flo")]
    path.write_text(record)
    walk._drop_scored_flow(asked)
    assert not [*run.flow_folder.glob("*/*/*.flo")]


def test_what_could_not_be_compared_is_said(finished, outputs):
    run = open_tiny(outputs)
    assert find_comparable(run) == {}
    assert "bs3" in describe_uncompared(run, [])
    whole = open_tiny(finished)
    assert describe_uncompared(whole, ["bs3"]) == ""
    assert "Not compared: bs3" in describe_uncompared(whole, [])  # of other weights, say
    (whole.folder.parent / "bs9").mkdir()  # not inferred yet
    try:
        assert "bs9" not in describe_uncompared(whole, ["bs3"])
    finally:
        (whole.folder.parent / "bs9").rmdir()


@pytest.mark.exhaustive
def test_flow_stays_where_a_stage_failed(finished, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(finished, outputs)
    settings = ("keep_flow=false", "limit_s=0.5", "palette=twilight")
    done = subprocess.run(
        list_command(outputs, *settings), capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 124
    run = open_tiny(outputs)
    assert [*run.flow_folder.glob("*/*/*.flo")]
    assert not locate_note(run).exists()


def test_flow_that_no_record_names_is_not_dropped(tmp_path):
    """A record that names none as it should is damaged, and deletes nothing."""
    run = open_tiny(tmp_path)
    path = run.flow_folder / "clean/a/frame_0001.flo"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"flow")
    record = locate_record("04_infer", run)
    write_json(record, {"flow": ["clean/a/frame_0001"]})
    with pytest.raises(ValueError, match="flow"):
        drop_flow(run)
    assert path.exists()
    assert not locate_note(run).exists()
    write_json(record, {"flow": {"clean/a/frame_0001": "0" * 64}})
    assert drop_flow(run) == 4
    assert list_dropped(run) == {"flow/clean/a/frame_0001.flo": "0" * 64}
    write_json(record, {"flow": ["clean/a/frame_0001"]})
    assert list_dropped(run) == {}
