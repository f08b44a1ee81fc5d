"""Run All, in any order of notebooks: each does its work on what is there, or names the notebook to
run first.
"""

import shutil

import pytest

from gma_lib.convert.batches import gather_batch
from gma_lib.data.sintel import load_pairs
from gma_lib.network import checkpoints
from gma_lib.pipeline.chain import digest_record, read_index, read_records
from gma_lib.pipeline.stages import STAGES, locate_record, read_cells
from gma_lib.runs.files import hash_file
from gma_lib.runs.records import read_json, write_json
from gma_lib.runs.run import open_run

TINY = {"profile": "tiny", "run": "test", "batch_size": 2, "checkpoint": "seeded", "budget_s": 0.5}


def run_all(stage, outputs, **given):
    """Run a notebook's cells as a kernel would, without one; return the error, "" if none."""
    space, given = {}, TINY | given | {"outputs": str(outputs)}
    for cell in read_cells(stage):
        if cell["cell_type"] == "code":
            try:
                exec(compile("".join(cell["source"]), stage, "exec"), space)
            except Exception as error:  # whatever a cell raises ends Run All
                return str(error)
        if "parameters" in cell["metadata"].get("tags", []):
            space |= {name: value for name, value in given.items() if name in space}
    return ""


@pytest.fixture
def outputs(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "outputs")


@pytest.fixture
def run(outputs):
    names = {name: TINY[name] for name in ("profile", "run", "batch_size")}
    return open_run(**names, backend="openvino", precision="float32", outputs=str(outputs))


def test_a_notebook_names_the_one_to_run_first(outputs, run):
    """Whatever has been run so far, from nearly all to nothing."""
    stages = list(STAGES)
    for missing in reversed(stages[:4]):
        locate_record(missing, run).unlink()
        if missing == "02_export":
            run.settings_file.unlink()
        for stage in (name for name in stages if missing in STAGES[name].reads):
            said = run_all(stage, outputs)
            first = "02_export" if missing == "01_data" and stage != "02_export" else missing
            assert f"run {first} first" in said, (missing, stage)
            assert len(said.splitlines()) == 1


def test_a_notebook_refuses_what_contradicts_its_run(finished):
    """Nothing is computed, nothing is relabelled."""
    folder = finished / "tiny/test/bs2"
    before = {path: hash_file(path) for path in folder.rglob("*") if path.is_file()}
    said = run_all("04_infer", finished, precision="bfloat16")
    assert "precision is 'bfloat16' here, and 'float32' in" in said
    assert {path: hash_file(path) for path in folder.rglob("*") if path.is_file()} == before


def test_weights_that_were_replaced_since_02_are_noticed(outputs, monkeypatch):
    """Else 07 looks inside others than those that computed the flow, and 03 converts them."""
    monkeypatch.setattr(checkpoints, "SEED", checkpoints.SEED + 1)
    for stage in ("03_convert", "07_inside"):
        assert "run 02_export again" in run_all(stage, outputs)


def test_rendered_frames_lie_beside_their_index_wherever_it_is(outputs, run, finished):
    """A folder of results that was moved, or copied before the first one changed, can be gone on
    with: the index names the place at which the frames were rendered.
    """
    index = read_records(run, "05_evaluate")["01_data"]
    assert load_pairs(index)[0].image1.is_relative_to(outputs)
    assert load_pairs(index)[0].load_frames()
    recorded = read_json(locate_record("01_data", run), made_by="01_data")
    assert digest_record(recorded) == digest_record(index)
    write_json(locate_record("01_data", run), recorded | {"description": "MPI-Sintel"})
    assert load_pairs(read_index(run))[0].image1.is_relative_to(finished)


def test_a_slow_machine_leaves_the_same_result(outputs, run, monkeypatch):
    """03 compares fewer pairs where time is short; nothing after it has to run again."""
    before = read_records(run, "05_evaluate")["03_convert"]
    monkeypatch.setitem(gather_batch.__kwdefaults__, "limit_s", 0)
    assert run_all("03_convert", outputs) == ""
    after = read_records(run, "05_evaluate")["03_convert"]
    assert after["compared"].keys() != before["compared"].keys()


@pytest.mark.exhaustive
def test_a_setting_is_changed_in_one_cell_of_02(outputs, run):
    """What was made before is refused by each notebook until those before it have run again."""
    assert run_all("05_evaluate", outputs) == ""
    before = read_records(run, "05_evaluate")
    assert run_all("02_export", outputs, num_updates=2, backend="onnxruntime") == ""
    for again in ("03_convert", "04_infer"):
        for stage in ("04_infer", "05_evaluate", "06_perf"):
            if again in STAGES[stage].reads:
                said = run_all(stage, outputs)
                assert f"run {again} again" in said, stage
                assert len(said.splitlines()) == 1
        assert run_all(again, outputs) == ""
    assert run_all("05_evaluate", outputs) == ""
    after = read_records(run, "05_evaluate")
    assert after["03_convert"]["backend"] == "onnxruntime"
    assert after["04_infer"]["summary"]["computed"] == len(after["04_infer"]["pairs"])
    assert after["04_infer"]["flow"] != before["04_infer"]["flow"]
    contradiction = run_all("04_infer", outputs, backend="openvino")
    assert "backend is 'openvino' here, and 'onnxruntime' in" in contradiction
