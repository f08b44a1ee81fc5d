"""The index page is written from what is there."""

import json
import re
import zipfile

import pytest
from command_line import gma

from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.pipeline.stamps import Stamp, write_stamp
from gma_lib.report import index
from gma_lib.report.charts import plot_timeline
from gma_lib.runs.records import write_json
from gma_lib.runs.run import Run
from gma_lib.verify.replay import METADATA


@pytest.mark.parametrize("profile", ["tiny", "typo", "..", "", "a/b"])
def test_where_nothing_has_run_there_is_no_page(tmp_path, profile):
    """Nor an archive; a mistyped profile leaves nothing."""
    (tmp_path / "outputs/other").mkdir(parents=True)
    for more in ([], ["--archive"]):
        wanted = ["--profile", profile, "--outputs", str(tmp_path / "outputs"), *more]
        assert len(gma("report", *wanted, exit_code=1).splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs", "other"]


def test_the_data_line_counts_pairs_scenes_and_ground_truth():
    pairs = [
        {"scene": "alley", "files": {"flow": "a.flo"}},
        {"scene": "alley", "files": {}},
        {"scene": "cave", "files": {}},
    ]
    content = {"description": "Demo", "pairs": pairs, "height": 436, "width": 1024}
    line = index._describe_data(content)
    assert line.startswith("Demo")
    assert re.findall(r"\d[\dx]*", line) == ["3", "1024x436", "2", "1"]


def test_without_a_row_there_is_an_empty_table():
    """As where the first stage of every run failed; the page then says so."""
    assert index._tabulate_headline([], ["clean", "final"]).empty


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_timeline_where_workers_computed(tmp_path, monkeypatch, workers):
    """None, and no empty section, for a run that the notebook computed itself."""
    monkeypatch.setattr(index, "read_statuses", lambda run: dict.fromkeys(STAGES, "ok"))
    folder = tmp_path / "tiny/openvino-float32/bs1"
    folder.mkdir(parents=True)
    (folder / ".04_infer.json").write_text("{}")
    names = [f"worker {number + 1}" for number in range(workers)]
    shards = [
        {"first": "clean/a/frame_0001", "pairs": 2, "worker": name, "start": 1.0, "seconds": 3.0}
        for name in names or ["worker 1"]
    ]
    summary = {"workers": {name: {"pairs": 2} for name in names}, "shards": shards, "seconds": 4.1}
    write_json(folder / "infer.json", {"summary": summary, "subset": None})
    page = index.write_index(tmp_path, "tiny").read_text()
    said = plot_timeline(shards, 4.1)[1]
    assert page.count(f'alt="{said}"') == (workers > 0)
    assert ("Workers" in page) == (workers > 0)


MAKER = {
    "package": "1.0",
    "commit": "abc",
    "created": "2026-01-01T00:00:00+00:00",
    "machine": {"processor": "A card's host", "cores": 3, "memory_bytes": 10**9},
    "versions": {"openvino": "2025.1"},
    "modules": [],
}
EXPORT = {"num_updates": 6, "lookup": "matmul", "opset": 13, "save_work": True}


@pytest.fixture
def write_run(tmp_path, monkeypatch):
    """Write records and stamps of a batch size, made by another machine than this one."""
    monkeypatch.setattr(index, "read_statuses", lambda run: dict.fromkeys(STAGES, "ok"))

    def write(batch_size, *, weights="mine", name="openvino-float32", **more):
        run = Run(tmp_path, "tiny", "openvino", "float32", batch_size, name)
        checkpoint = {"name": weights, "sha256": 64 * "0", "note": f"Weights: {weights}."}
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / "run.json", {"backend": "openvino", "precision": "float32"})
        perf = {"status": "ok", "pairs_per_second": 0.5, "simulated": False, "device": "CPU"}
        contents = {
            "02_export": EXPORT | {"checkpoint": checkpoint} | more,
            "03_convert": {"device": "CPU", "precision": "float32", "at_once": 1},
            "06_perf": perf | {"median_s": 1.0},
        }
        for stage, content in contents.items():
            path = locate_record(stage, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"provenance": MAKER} | content)
            product = {f"{stage} {path.name}": ""}
            write_stamp(run, Stamp(stage, "ok", "", 1.0, {}, {}, product))

    return write


def test_batch_sizes_that_were_made_otherwise_are_told_apart(tmp_path, write_run):
    """In the notes, in what differs, and in the chart, where a line joins what was made alike."""
    write_run(1)
    write_run(4)
    page = index.write_index(tmp_path, "tiny").read_text()
    assert "openvino-float32 bs1: 0.50, bs4: 0.50" in page
    assert '<p class="note">Weights: mine.</p>' in page
    write_run(4, weights="others", num_updates=12)
    page = index.write_index(tmp_path, "tiny").read_text()
    for size, weights in ((1, "mine"), (4, "others")):
        name = f"openvino-float32, batch size {size}"
        assert f"{name} bs{size}: 0.50" in page
        assert f'<p class="note">{name}: Weights: {weights}.</p>' in page
        assert re.search(rf"<th[^>]*>{name}</th>", page)


@pytest.mark.parametrize("compared", [(), (4,), (1, 4)])
def test_the_first_screen_shows_what_there_is(tmp_path, write_run, compared):
    """The first run that was compared with other methods; without any, the first evaluated one."""
    scores = {"epe": 0.5, "px1": 0.9}
    methods = {"pairs": 2, "network": {"all": scores}, "DIS": {"all": scores}}
    for size in (1, 4):
        write_run(size)
        run = Run(tmp_path, "tiny", "openvino", "float32", size, "openvino-float32")
        write_json(run.folder / "metrics.json", {"classical": methods if size in compared else {}})
        (run.folder / "viewer.html").touch()
    page = index.write_index(tmp_path, "tiny").read_text()
    shown = compared[0] if compared else 1
    assert re.findall('href="([^"]*viewer.html)"', page) == [
        f"openvino-float32/bs{shown}/viewer.html"
    ]
    assert ("DIS 0.50 px" in page) == bool(compared)


def test_links_of_different_runs_have_different_names(tmp_path, write_run):
    write_run(1)
    write_run(1, name="other")
    page = index.write_index(tmp_path, "tiny").read_text()
    names = re.findall('aria-label="numbers, ([^"]*)"', page)
    assert len(set(names)) == len(names) == 6


def test_page_and_crate_name_the_machine_that_computed(tmp_path, write_run):
    """Not the one that packs what was copied to it; each of several, once."""
    write_run(1)
    makers = [MAKER, MAKER | {"machine": MAKER["machine"] | {"cores": 7}}]
    for number, maker in enumerate(makers):
        write_run(4, provenance=maker)
        with zipfile.ZipFile(index.write_archive(tmp_path, "tiny")) as archive:
            entities = json.loads(archive.read(METADATA))["@graph"]
            page = archive.read("tiny/index.html").decode()
        kinds = {one["@id"]: one for one in entities}
        machines = [kinds[one["@id"]]["description"][:7] for one in kinds["./"]["instrument"]]
        assert machines == ["3 cores", "7 cores"][: number + 1]
        assert [kinds[one["@id"]]["identifier"] for one in kinds["./"]["mentions"]] == (
            ["abc"] * (number + 1)
        )
        versions = [one["softwareVersion"] for one in entities if one.get("name") == "openvino"]
        assert versions == ["2025.1"]
        assert [f"{cores} cores" in page for cores in (3, 7)] == [True, number == 1]


@pytest.mark.parametrize("later", [1, 4])
def test_the_date_of_a_maker_is_its_latest(tmp_path, write_run, later):
    """Whichever record is read first."""
    last = "2026-01-02T00:00:00+00:00"
    for size in (1, 4):
        created = last if size == later else MAKER["created"]
        write_run(size, provenance=MAKER | {"created": created})
    page = index.write_index(tmp_path, "tiny").read_text()
    assert f"on {last}" in page
    assert f"on {MAKER['created']}" not in page


def test_the_files_of_a_stage_are_read_in_one_order(tmp_path, write_run):
    write_run(1)
    run = Run(tmp_path, "tiny", "openvino", "float32", 1, "openvino-float32")
    names = [f"{letter}.json" for letter in "hgfedcba"]
    for name in names:
        (run.folder / name).touch()
    write_stamp(run, Stamp("06_perf", "ok", "", 1.0, {}, {}, dict.fromkeys(names, "")))
    found = [path.name for path in index._list_vouched(tmp_path / "tiny")]
    assert found[-len(names) :] == sorted(names)
