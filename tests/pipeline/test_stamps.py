"""Nothing runs twice, and nothing old passes for new."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import copy_until, list_command, open_tiny, run_stage

from gma_lib.flow.files import read_flow, write_flow
from gma_lib.pipeline import stages, stamps
from gma_lib.pipeline.chain import (
    digest_record,
    find_comparable,
    locate_earlier,
    read_records,
    write_record,
)
from gma_lib.pipeline.stages import NOTEBOOKS, STAGES, locate_record
from gma_lib.pipeline.stamps import Stamp, digest_consumed, read_stamp, read_statuses
from gma_lib.report import index as report
from gma_lib.runs.code import hash_code
from gma_lib.runs.digests import Digests
from gma_lib.runs.files import PROJECT, hash_file, hash_value
from gma_lib.runs.records import read_json, write_json
from gma_lib.runs.run import Run


def content(path):
    return json.loads(path.read_text())


def flip_byte(path, place=-1):
    """Change one byte; size and modification time stay."""
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.fixture
def outputs(finished, tmp_path):
    """A copy of a finished run, to be damaged; its index leads to the copied frames."""
    copied = tmp_path / "outputs"
    shutil.copytree(finished, copied)
    return copied


@pytest.fixture
def empty_run(tmp_path):
    return open_tiny(tmp_path)


def test_nothing_to_do(finished):
    """One process looks at all stages of all batch sizes, and starts no kernel."""
    command = list_command(finished, batch_sizes=(2, 3))
    page = finished / "tiny/index.html"
    written = page.stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0
    labels = [f"{stage} bs{size}" for size in (2, 3) for stage in list(STAGES)[1:]]
    assert {line for line in done.stdout.splitlines() if "up to date" in line} == {
        f"{label}: up to date" for label in ["01_data", *labels]
    }
    assert page.stat().st_mtime_ns == written


def test_what_a_stage_consumes(finished, monkeypatch, tmp_path):
    """An edited cell concerns its stage alone, and a notebook that is only touched none; a
    parameter, the weights and frames are in it.
    """
    run, digests = open_tiny(finished), Digests(tmp_path / "digests.json")

    def consumed(stage, **parameters):
        return digest_consumed(stage, run, {"checkpoint": "seeded"} | parameters, digests)

    before = {stage: consumed(stage) for stage in STAGES}
    copied = tmp_path / "notebooks"
    shutil.copytree(NOTEBOOKS, copied, copy_function=shutil.copyfile)  # and so at another time
    monkeypatch.setattr(stages, "NOTEBOOKS", copied)
    assert {stage: consumed(stage) for stage in STAGES} == before
    edited = content(copied / "04_infer.ipynb")
    edited["cells"][-2]["source"] = ["another line"]
    (copied / "04_infer.ipynb").write_text(json.dumps(edited))
    after = {stage: consumed(stage) for stage in STAGES}
    assert [stage for stage in STAGES if after[stage] != before[stage]] == ["04_infer"]
    assert consumed("05_evaluate", passes=["clean"]) != after["05_evaluate"]
    assert consumed("05_evaluate", cluster="processes:2") == after["05_evaluate"]
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"1")
    one = consumed("02_export", checkpoint=str(weights))
    weights.write_bytes(b"2")
    other = consumed("02_export", checkpoint=str(weights))
    weights.with_suffix(".json").write_text("{}")  # their card, whose note the pages show
    assert (
        len(
            {
                hash_value(found)
                for found in (one, other, consumed("02_export", checkpoint=str(weights)))
            }
        )
        == 3
    )
    frame = tmp_path / "sintel/training/clean/cave/frame_0001.png"
    data = {"sintel_root": str(tmp_path / "sintel"), "split": "training", "passes": ["clean"]}
    empty = consumed("01_data", **data)
    frame.parent.mkdir(parents=True)
    frame.write_bytes(b"1")
    assert consumed("01_data", **data) != empty


def test_what_is_timed_depends_on_the_number_of_cores(finished, monkeypatch, tmp_path):
    """Times of two cores were up to date on one."""
    run, digests = open_tiny(finished), Digests(tmp_path / "digests.json")
    given = {"checkpoint": "seeded"}
    before = {stage: digest_consumed(stage, run, given, digests) for stage in STAGES}
    for what, value in (("count_cores", 77), ("find_memory", 2**33)):
        with monkeypatch.context() as patch:
            patch.setattr(stamps, what, lambda value=value: value)
            after = {stage: digest_consumed(stage, run, given, digests) for stage in STAGES}
        assert [stage for stage in STAGES if after[stage] != before[stage]] == ["06_perf"]


def test_what_a_gpu_computes_depends_on_its_name(tmp_path, monkeypatch):
    """04 was resumed on another GPU, and its page named the first."""
    run, digests = Run(tmp_path, "tiny", "cuda", "float32", 1, "r"), Digests(tmp_path / "d.json")
    given, found = {"checkpoint": "seeded"}, []
    monkeypatch.setattr(Digests, "digest_code", lambda *_: "")  # which takes seconds
    for name in "AB":
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device, name=name: name)
        found.append({stage: digest_consumed(stage, run, given, digests) for stage in STAGES})
    changed = [stage for stage in STAGES if found[0][stage] != found[1][stage]]
    assert changed == ["03_convert", "04_infer", "06_perf"]


WITHOUT_A_GPU = """
import sys
from pathlib import Path
from gma_lib.pipeline.stages import STAGES
from gma_lib.pipeline.stamps import digest_consumed
from gma_lib.runs.digests import Digests
from gma_lib.runs.run import Run

run = Run(Path(sys.argv[1]), "tiny", "openvino", "float32", 1, "r")
for stage in STAGES:
    consumed = digest_consumed(stage, run, {"checkpoint": "seeded"}, Digests(run.outputs / "d"))
    assert "GPU" not in consumed
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_without_a_gpu_the_runner_loads_no_pytorch(tmp_path):
    command = [sys.executable, "-c", WITHOUT_A_GPU, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr


def test_pages_depend_on_their_templates(finished, monkeypatch, tmp_path):
    run, digests = open_tiny(finished), Digests(tmp_path / "digests.json")
    given = {"checkpoint": "seeded"}
    before = {stage: digest_consumed(stage, run, given, digests) for stage in STAGES}
    assert any(name.endswith("viewer.js") for name in before["05_evaluate"])
    templates = stamps.list_templates()
    monkeypatch.setattr(stamps, "list_templates", lambda: templates[:-1])
    after = {stage: digest_consumed(stage, run, given, digests) for stage in STAGES}
    changed = [stage for stage in STAGES if after[stage] != before[stage]]
    assert changed == ["05_evaluate", "07_inside"]


def test_times_of_what_was_computed_outlive_a_call_that_computes_nothing(finished, tmp_path):
    """The runner takes the record away first: the timeline and `gma plan` live on its summary."""
    outputs = tmp_path / "outputs"
    shutil.copytree(finished, outputs)
    run = open_tiny(outputs)
    path = locate_record("04_infer", run)
    record = read_json(path, made_by="04_infer")
    assert record["summary"]["computed"] > 0
    os.replace(path, locate_earlier(path))
    kept = ("schema", "provenance", "made_from")
    content = {name: value for name, value in record.items() if name not in kept}
    idle = content | {"summary": record["summary"] | {"computed": 0, "shards": []}}
    made_from = read_records(run, "04_infer")
    write_record(run, "04_infer", idle, made_from=made_from)
    assert read_json(path, made_by="04_infer")["summary"] == record["summary"]
    assert not locate_earlier(path).exists()
    os.replace(path, locate_earlier(path))
    write_record(run, "04_infer", idle | {"subset": "of another run"}, made_from=made_from)
    assert read_json(path, made_by="04_infer")["summary"]["computed"] == 0


def test_a_comment_recomputes_nothing(tmp_path):
    """Docstrings and layout neither; a statement does."""
    module = tmp_path / "module.py"
    digests = set()
    for text in ('"""Says."""\nx = 1\n', "x  =  1  # why\n", '"""Other."""\n\nx = 1'):
        module.write_text(text)
        digests.add(hash_code(module))
    assert len(digests) == 1
    module.write_text("x = 2\n")
    assert hash_code(module) not in digests


def test_code_counts_where_a_stage_has_loaded_it(finished):
    """05 scores and 06 does not; neither runs the command line or training."""
    consumed = read_stamp("05_evaluate", open_tiny(finished)).consumed
    assert "code flow/metrics.py" in consumed
    assert "code evaluate/evaluation.py" in consumed
    assert not [name for name in consumed if name.startswith(("code cli/", "code training/"))]
    perf = read_stamp("06_perf", open_tiny(finished)).consumed
    assert "code perf/timing.py" in perf
    assert "code backends/openvino.py" in perf  # loaded by the process that measures
    assert "code evaluate/evaluation.py" not in perf


@pytest.mark.exhaustive
def test_a_lost_result_is_made_again(finished):
    (finished / "tiny/test/bs3/metrics.json").unlink()
    done = run_stage("05_evaluate", finished, batch_size=3)
    assert "05_evaluate bs3: done" in done.stdout
    assert (finished / "tiny/test/bs3/metrics.json").is_file()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "damaged", ["flow/rush/frame_0001.flo", "clean/rush/frame_0001.png"], ids=["truth", "frame"]
)
def test_rendered_files_that_changed_are_rendered_again(outputs, damaged):
    """And nothing is scored against them."""
    path = outputs / "tiny/data/frames/training" / damaged
    whole = hash_file(path)
    flip_byte(path, 20)
    assert hash_file(path) != whole
    assert read_statuses(open_tiny(outputs))["01_data"] == "altered"
    done = run_stage("01_data", outputs)
    assert damaged in done.stdout
    assert hash_file(path) == whole
    assert "05_evaluate bs2: up to date" in run_stage("05_evaluate", outputs).stdout


@pytest.mark.exhaustive
def test_frames_of_the_user_that_changed_are_taken_over(tiny_sintel, tmp_path):
    """Same size, same time of modification: 01 runs again, and the record of before is refused."""
    outputs = tmp_path / "outputs"
    setting = f"sintel_root={tiny_sintel}"
    assert run_stage("01_data", outputs, setting).returncode == 0
    index = content(outputs / "tiny/data/index.json")
    truth = tiny_sintel / "training/flow/alley/frame_0001.flo"
    flip_byte(truth)
    done = run_stage("01_data", outputs, setting)
    assert "frame_0001.flo" in done.stdout
    changed = content(outputs / "tiny/data/index.json")
    assert digest_record(changed) != digest_record(index)
    assert "up to date" in run_stage("01_data", outputs, setting).stdout


@pytest.mark.exhaustive
def test_fewer_frames_leave_none_of_before(tmp_path):
    """Another rendering, also of another size, is that rendering alone."""
    outputs = tmp_path / "outputs"
    assert run_stage("01_data", outputs, "demo_frames=4").returncode == 0
    again = run_stage("01_data", outputs, "demo_frames=2", "demo_height=136")
    assert again.returncode == 0, again.stdout
    index = content(outputs / "tiny/data/index.json")
    assert (len(index["pairs"]), index["height"]) == (4, 136)
    assert len(list((outputs / "tiny/data/frames").rglob("*.flo"))) == 2
    assert len(list((outputs / "tiny/data/frames").rglob("clean/*/*.png"))) == 4


@pytest.mark.exhaustive
def test_numbers_edited_by_hand_are_not_shown(outputs):
    run = open_tiny(outputs)
    record = locate_record("05_evaluate", run)
    metrics = content(record)
    metrics["clean"]["all"]["epe"] = 0.123
    record.write_text(json.dumps(metrics))
    assert read_statuses(run)["05_evaluate"] == "altered"
    assert "0.123" not in report.write_index(outputs, "tiny").read_text()
    assert "05_evaluate bs2: done" in run_stage("05_evaluate", outputs).stdout
    assert content(record)["clean"]["all"]["epe"] != 0.123


@pytest.mark.parametrize(
    ("stage", "name"),
    [("01_data", "index.json"), ("02_export", "export.json"), ("03_convert", "03_convert.html")],
)
def test_what_rests_on_an_altered_file_is_neither_shown_nor_sent(outputs, stage, name):
    """Also where only a record was edited, or a page, on which nothing rests: then the numbers of
    its stage stay, as those of later ones need them.
    """
    run = open_tiny(outputs)
    folder = run.data_folder if stage == "01_data" else run.folder
    text = (folder / name).read_text()
    edited = text.replace("rush", "RUSH", 1).replace("seeded", "famous")
    (folder / name).write_text(edited + "\n")
    statuses = read_statuses(run)
    spoilt = [one for one in STAGES if (one == stage if "html" in name else one >= stage)]
    word = "page altered" if "html" in name else "altered"
    assert statuses == {one: word if one in spoilt else "ok" for one in STAGES}
    archive = report.write_archive(outputs, "tiny")
    with zipfile.ZipFile(archive) as sent:
        page, names = sent.read("tiny/index.html").decode(), sent.namelist()
    assert f"! {word}: run {stage} again" in page
    assert ("tiny/test/bs2/convert.json" in names) == ("html" in name)
    assert "RUSH" not in page
    assert "famous" not in page
    for one in STAGES:
        place = "data" if one == "01_data" else "test/bs2"
        assert (f"tiny/{place}/{one}.html" in names) == (one not in spoilt)
    assert ("tiny/test/bs3/05_evaluate.html" in names) == (stage != "01_data")


@pytest.mark.exhaustive
def test_altered_flow_is_computed_again_and_nothing_else(outputs):
    run = open_tiny(outputs)
    flow = run.flow_folder / "clean/rush/frame_0001.flo"
    before = read_flow(flow)
    write_flow(flow, before + np.float32(1))
    assert read_statuses(run)["04_infer"] == "altered"
    done = run_stage("05_evaluate", outputs)
    assert "03_convert bs2: up to date" in done.stdout
    assert "04_infer bs2: done" in done.stdout
    assert np.array_equal(read_flow(flow), before)
    assert content(run.folder / "infer.json")["summary"]["computed"] == 1
    assert "05_evaluate bs2: up to date" in run_stage("05_evaluate", outputs).stdout


def test_a_record_of_another_model_is_refused(outputs):
    """The chain is checked by whoever reads, also without the runner."""
    run = open_tiny(outputs)
    assert set(read_records(run, "05_evaluate")) == set(STAGES["05_evaluate"].reads)
    path = locate_record("02_export", run)
    write_json(path, read_json(path, made_by="02_export") | {"num_updates": 3})
    with pytest.raises(ValueError, match="run 03_convert again"):
        read_records(run, "05_evaluate")
    path.write_text("[]")
    with pytest.raises(ValueError, match="run 02_export again"):
        read_records(run, "05_evaluate")


def test_a_copied_or_renamed_folder_is_not_shown_as_what_its_name_says(outputs):
    run = open_tiny(outputs)
    shutil.rmtree(open_tiny(outputs, batch_size=3).folder)
    shutil.copytree(run.folder, run.folder.with_name("bs4"))
    shutil.copytree(run.folder, run.folder.with_name("bs2.bak"))
    assert find_comparable(run) == {}
    page = report.write_index(outputs, "tiny").read_text()
    assert "altered: run 02_export again" in page
    statuses = read_statuses(open_tiny(outputs, batch_size=4))
    assert {statuses[stage] for stage in STAGES if stage > "02"} == {"altered"}
    assert set(read_statuses(run).values()) == {"ok"}


def test_an_index_page_that_was_edited_or_shows_a_run_that_is_gone_is_written_again(outputs):
    page = report.write_index(outputs, "tiny")
    assert report.is_current(outputs, "tiny")
    text = page.read_text()
    page.write_text(text.replace("EPE", "EPF"))
    assert not report.is_current(outputs, "tiny")
    page.write_text(text)
    assert report.is_current(outputs, "tiny")
    shutil.rmtree(open_tiny(outputs, batch_size=3).folder)
    assert not report.is_current(outputs, "tiny")


def test_only_runs_of_the_same_flow_are_compared(outputs):
    run, other = open_tiny(outputs), open_tiny(outputs, batch_size=3)
    assert list(find_comparable(run)) == [other]
    for name in ("02_export", "03_convert", "04_infer"):
        path = locate_record(name, other)
        record = read_json(path, made_by=name)
        if name == "02_export":
            record["num_updates"] += 1
        else:
            records = read_records(other, name)
            record["made_from"] = {name: digest_record(made) for name, made in records.items()}
        write_json(path, record)
    assert read_records(other, "05_evaluate")  # whole in itself, and of another flow
    assert find_comparable(run) == {}


@pytest.mark.parametrize("damage", [b"[]", b"{}", b"null", b"\xff\xfe", b'{"stage": "02_export"'])
def test_a_damaged_stamp_counts_as_absent(empty_run, damage, messages):
    stamps._warn_once.cache_clear()  # the folder of the case before had the same name
    stamp = Stamp("02_export", "ok", "", 1.0, {"a": 1}, {"x": "1"}, {"y": "2"})
    stamps.write_stamp(empty_run, stamp)
    assert read_stamp("02_export", empty_run).products == {"y": "2"}
    path = stamps.locate_stamp("02_export", empty_run)
    path.write_bytes(damage)
    assert [read_stamp("02_export", empty_run) for _ in range(3)] == [None] * 3
    assert read_statuses(empty_run)["02_export"] is None
    assert len(messages) == 1


def test_another_version_s_stamp_counts_as_absent(empty_run):
    stamps.write_stamp(empty_run, Stamp("02_export", "ok", "", 1.0, {}, {}, {}))
    path = stamps.locate_stamp("02_export", empty_run)
    for change in ({"schema": 1}, {"unknown": 1}, {"seconds": "1"}):
        whole = read_json(path, made_by="02_export")
        write_json(path, whole | change)
        assert read_stamp("02_export", empty_run) is None
        write_json(path, whole)
    assert read_stamp("02_export", empty_run) is not None


@pytest.mark.exhaustive
def test_a_damaged_stamp_heals(outputs):
    stamps.locate_stamp("05_evaluate", open_tiny(outputs)).write_bytes(b"null")
    assert "05_evaluate bs2: done" in run_stage("05_evaluate", outputs).stdout
    assert "05_evaluate bs2: up to date" in run_stage("05_evaluate", outputs).stdout


@pytest.mark.exhaustive
def test_old_numbers_do_not_outlive_what_they_came_from(finished, tmp_path):
    """04 ends badly after everything had run: its own and 05's numbers are gone from the index,
    06's are not.
    """
    outputs = tmp_path / "outputs"
    copy_until(finished, outputs, "nothing")
    before = report.write_index(outputs, "tiny").read_text()
    assert before.count("<td>4/4</td>") == 4  # two passes at two batch sizes
    run = open_tiny(outputs)
    done = run_stage("04_infer", outputs, "full_batch_size=2", "limit_s=0.5")
    assert done.returncode == 124
    assert "took longer than 0.5 s" in done.stdout
    assert not (run.folder / "infer.json").exists()
    assert list(read_statuses(run).values()) == [
        *("ok", "ok", "ok", "timeout", "stale", "ok", "stale")
    ]
    page = report.write_index(outputs, "tiny").read_text()
    assert page.count("<td>4/4</td>") == 2
    assert "stale" in page
    assert "✗ timed out" in page


@pytest.mark.slow
def test_another_chip_named_means_converting_again(tmp_path):
    """03 is up to date for one chip and one keep list only."""
    run = Run(tmp_path, "tiny", "ascend", "float16", 1, "ascend-float16")
    asked = [{}, {}, {"soc": "310P1"}, {"soc": "310P3"}, {"keep": "coordinates"}]
    digests = Digests(tmp_path / "digests.json")
    found = [hash_value(digest_consumed("03_convert", run, one, digests)) for one in asked]
    assert found[0] == found[1]
    assert len(set(found)) == 4
