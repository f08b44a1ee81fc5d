"""The index page is written from what is there."""

import pytest
from command_line import gma

from gma_lib.pipeline.stages import STAGES
from gma_lib.report import index
from gma_lib.report.charts import plot_timeline
from gma_lib.runs.records import write_json


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
    assert index._describe_data(content) == (
        "Demo: 3 pairs of 1024x436 px in 2 scenes, 1 with ground truth."
    )


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
