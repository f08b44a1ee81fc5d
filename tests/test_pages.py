"""What ``make numbers`` writes into the pages: from the stored measurements, one a table."""

import json
import shutil

import blocks
import pages
import pytest
from click.testing import CliRunner

from gma_lib.runs.files import BadFile
from gma_lib.runs.records import write_json


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A project whose measurements and pages are another's."""
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    monkeypatch.setattr(blocks, "RESULTS", results)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "PAGES", [page])
    monkeypatch.setattr(pages, "BEGUN", tmp_path / "begun.json")
    return page


def keep(found, name="a", created="2026-01-02T03:04:05+00:00"):
    machine = {"processor": "P", "cores": 2}
    made = {"commit": "0123456789+changes", "created": created, "machine": machine}
    path = blocks.RESULTS / f"{name}.json"
    path.write_text(json.dumps({"provenance": made} | found))


def test_every_page_says_what_was_measured():
    found = []
    for path in pages.PAGES:
        text = path.read_text(encoding="utf-8")
        assert text == pages.fill(path), f"{path.name}: make numbers, or pages.py --write"
        found += pages.BLOCK.findall(text)
    assert {name for _, name, *_ in found} == set(pages.BLOCKS)


def test_a_difference_that_is_not_finite_is_not_none(elsewhere):
    """Regression: null (not finite) was shown as 0, which means equal to the last bit."""
    kinds = {kind: 0.0 for kinds in blocks.DETERMINISM.values() for kind in kinds}
    keep({"largest_difference": {"again": kinds, "T=1": kinds | {blocks.DIS: None}}}, "determinism")
    same, other = blocks.determinism().splitlines()[2:4]
    assert "not finite" not in same
    assert other.count("not finite") == 1


def test_how_many_real_pairs_were_scored_is_said(elsewhere, monkeypatch, tmp_path):
    card = json.loads(blocks.CARD.read_text())
    card["scores"]["sintel_frames"]["pairs"] = 1041
    other = tmp_path / "card.json"
    other.write_text(json.dumps(card))
    assert "two real Sintel pairs" in blocks.against_dis()
    monkeypatch.setattr(blocks, "CARD", other)
    assert "On 1041 real Sintel pairs" in blocks.against_dis()
    assert "1041 real Sintel pairs, clean" in blocks.refined()


def test_another_measurement_is_another_page(elsewhere):
    costs = dict.fromkeys(("epe", "epe_float32", "px1", "px1_float32", "distance"), 0.5)
    families = {"layers": costs | {"pairs": 8, "epe_loss": -0.01, "px1_loss": 0.25}}
    about = blocks.CLAIMED["precision"]
    found = {"precisions": {"int8": {"families": families, "recommended": False}}}
    keep(about | found, "precision")
    elsewhere.write_text("a\n<!-- numbers: precision -->\nold\n<!-- end -->\nz\n")
    pages.write_pages()
    written = elsewhere.read_text()
    row = "| int8 | layers | 8 | 0.500 | 0.500 | -1.00% | 50.00 | 50.00 | +0.25 | 0.500 |"
    assert row in written.splitlines()
    assert written.startswith("a\n<!-- numbers: precision -->\n| precision |")
    assert written.endswith("<!-- end -->\nz\n")
    assert "old" not in written
    for other in ({"weights": "mine"}, {"backend": "cuda"}, {"num_updates": 12}, {"height": 128}):
        keep(about | found | other, "precision")
        with pytest.raises(BadFile, match="as the pages say"):
            pages.write_pages()
    assert elsewhere.read_text() == written


def test_the_error_of_every_family_is_named(elsewhere):
    families = {name: {"epe_float32": error} for name, error in (("a", 11.2), ("b", 2.4))}
    found = {"precisions": {"bfloat16": {"families": families}}}
    keep(blocks.CLAIMED["precision"] | found, "precision")
    assert blocks.fast_motion().startswith("EPE 2-11 px ")


@pytest.mark.parametrize("other", [{"checkpoint": "mine.pth"}, {"width": 128}, {"num_updates": 32}])
def test_a_comparison_of_other_settings_is_not_shown_under_these(elsewhere, other):
    """Nor is one in which the shown variant could not be measured."""
    settings = {"num_updates": 6} | other
    variants = {"bfloat16": {"settings": settings, "ratio": 3}}
    variants["all steps, OpenVINO"] = variants["bfloat16"] | {"ratio": 1.5}
    keep(blocks.CLAIMED["cpu"] | {"variants": variants} | other, "cpu")
    with pytest.raises(BadFile, match=r"cpu\.json"):
        blocks.read("cpu")
    settings["num_updates"] = 6
    keep(blocks.CLAIMED["cpu"] | {"variants": variants}, "cpu")
    assert blocks.bfloat16_speed_up() == "2.0"
    variants["bfloat16"]["error"] = "the process ended with -9"
    keep(blocks.CLAIMED["cpu"] | {"variants": variants}, "cpu")
    with pytest.raises(BadFile, match="ended with -9"):
        blocks.bfloat16_speed_up()


def test_what_changes_the_flow_is_told_per_setting(elsewhere):
    moved = {"epe": 2e-7, "share": 0.0, "wauc": 0.01}
    kinds = dict.fromkeys((kind for kinds in blocks.DETERMINISM.values() for kind in kinds), 0.0)
    other = {kind: value for kind, value in kinds.items() if kind != "openvino bfloat16"}
    found = {
        "largest_difference": {
            "first, again": kinds,
            "A=b c": other | {"truth": 3.0, "openvino float32": 1e-4},
        },
        "distance_from_torch": {"openvino int8": {"mean": 0.0256, "max": 1.96}},
        "largest_difference_of_scores": {
            "first, again": dict.fromkeys((blocks.DIS, *blocks.FLOAT32), moved),
            "A=b c": {"openvino float32": moved | {"epe": 4e-7, "share": 2.0}},
        },
    }
    keep(found, "determinism")
    zeros = ["0"] * 10
    lines = blocks.determinism().splitlines()
    assert f"| nothing | {' | '.join(zeros)} |" in lines
    cells = ["3.0e+00", "0", "0", "1.0e-04", "refused", *zeros[5:]]
    assert f"| `A=b c` | {' | '.join(cells)} |" in lines
    assert "| mean | 0.026 px |" in blocks.distance().splitlines()
    told = blocks.moved_scores()
    assert "at most 4.0e-07 px (the network) and 2.0e-07 px (DIS)" in told
    assert "At most 2 (the network) and 0 pixels (DIS)" in told
    assert "1.0/N points (the network)" in told


def test_the_minutes_of_a_rehearsal_are_of_its_stages(elsewhere):
    stage = {"seconds": 60.0, "peak_bytes": 1.5e9, "disk_bytes": 2e6}
    names = [*blocks.STAGES, "report", "nothing to do"]
    about = {"pairs": 30, "precision": "int8", "cluster": "processes:2"}
    keep({"stages": dict.fromkeys(names, stage)} | about, "rehearsal")
    written = blocks.rehearsal()
    assert "| 04_infer | 60 s, 0.50 pairs/s | 1.50 GB | 2 MB |" in written.splitlines()
    assert "CLUSTER=processes:2): 8 minutes" in written


def test_a_torture_tells_how_often_it_held(elsewhere):
    tried = {"SIGKILL moment": {"held": 3, "ended before": 1}, "SIGTERM moment": {"held": 1}}
    whole = {"cases": 7, "done": 7}
    stages = {"01_data": tried, "02_export": {"SIGTERM moment": {"held": 2}}}
    keep(whole | {"stages": stages}, "kills")
    assert "cases" not in blocks.kills()
    lines = blocks.kills().splitlines()
    assert "| stage killed | SIGKILL | SIGTERM |" in lines
    assert "| 01_data | 3 held; 1 ended before | 1 held |" in lines
    assert "| 02_export | not tried | 2 held |" in lines
    stages = {"01_data": {"a.png": {"held": 1}, "b.flo": {"held": 1}}}
    keep({"cases": 7, "done": 2, "stages": stages}, "faults")
    assert "2 of 7 cases; the others were not run." in blocks.faults()
    assert "| 01_data | `a.png`, `b.flo` | 2 held |" in blocks.faults().splitlines()
    known = {"inputs": 4000, "results": 1000, "past_header": 3000, "refusals": 99}
    keep({"readers": {"flo": known | {"slowest_s": 0.014, "most_mb": 6.6}}}, "readers")
    row = "| flo | 4,000 | 25% | 75% | 99 or more | 0.01 s | 7 MB |"
    assert row in blocks.readers().splitlines()
    cases = {"nothing": {"exit_code": 0, "worst": "fine"}, "x": {"exit_code": 1, "worst": "a/epe"}}
    keep({"cases": cases}, "computations")
    assert "| nothing | 0 |  |" in blocks.computations().splitlines()
    assert "| x | 1 | a/epe |" in blocks.computations().splitlines()
    counts = {"changed": 5, "with reasons": 4, "refused whole": 1}
    keep({"random": counts, "pytorch": {"changed": 2}}, "graphs")
    told = "Random graphs: 5 rewritten, 1 refused whole. PyTorch's graphs: 2 rewritten."
    assert blocks.graphs().startswith(told)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- numbers: a -->1\n\n## Mine\n\n<!-- numbers: a -->2<!-- end -->",
        "<!-- numbers: a -->1\n\n## Mine",
        "## Mine\n\n<!-- end -->",
    ],
)
def test_a_block_without_its_end_deletes_nothing(elsewhere, monkeypatch, text):
    monkeypatch.setattr(pages, "BLOCKS", {"a": lambda: "new"})
    whole = elsewhere.with_name("whole.md")
    monkeypatch.setattr(pages, "PAGES", [whole, elsewhere])
    whole.write_text("<!-- numbers: a -->1<!-- end --> <!-- numbers: a -->\n1\n<!-- end -->")
    elsewhere.write_text(text)
    with pytest.raises(BadFile, match=r"page\.md"):
        pages.write_pages()
    assert elsewhere.read_text() == text
    elsewhere.write_text("nothing")
    pages.write_pages()
    assert whole.read_text() == (
        "<!-- numbers: a -->new<!-- end --> <!-- numbers: a -->\nnew\n<!-- end -->"
    )


def test_a_block_that_nothing_writes_is_an_error(elsewhere):
    elsewhere.write_text("<!-- numbers: of-nothing --><!-- end -->")
    with pytest.raises(KeyError, match="of-nothing"):
        pages.write_pages()


@pytest.mark.parametrize("busy", [False, True])
def test_the_origin_of_a_table(elsewhere, busy):
    keep({"load": {"busy": busy}})
    told = blocks.tell_origin("gma x", blocks.read("a"))
    assert told.startswith("`gma x`, commit 0123456 with changes, P, 2 cores, 2026-01-02")
    assert ("busy" in told) is busy


@pytest.mark.parametrize("key", ["checkpoint_sha256", "weights_sha256"])
def test_the_origin_names_weights_that_are_not_the_bundled_ones_now(elsewhere, key):
    """Also where no note is; an older record does not say which it has."""
    now = json.loads(blocks.CARD.read_text())["sha256"]
    for about in ({}, {key: now}):
        keep(about)
        assert "weights" not in blocks.tell_origin("gma x", blocks.read("a"))
    keep({key: "0123456789abcdef", "note": "n"})
    for short in (False, True):
        told = blocks.tell_origin("gma x", blocks.read("a"), short=short)
        assert "; **other weights than today's, SHA-256 0123456789ab**." in told


@pytest.mark.parametrize("file", ["weights/gma-procedural.safetensors", "params/train.yaml"])
def test_what_other_weights_or_parameters_gave_is_measured_again(elsewhere, monkeypatch, file):
    """New weights of the same name got the numbers of the old."""
    monkeypatch.setattr(pages, "WEIGHTS_FOLDER", pages.ROOT / "weights")
    monkeypatch.setattr(pages.runs, "RESOURCES", pages.ROOT)
    changed = pages.ROOT / file
    changed.parent.mkdir()
    changed.write_text("old")
    keep({}, "pictures", created="2998")
    assert pages.choose(("pictures",), None) == []
    monkeypatch.setattr(pages, "datetime", Later)
    assert pages.choose(("pictures",), None) == []
    changed.write_text("new")
    assert pages.choose(("pictures",), None) == ["pictures"]


def test_what_other_code_measured_is_measured_again(elsewhere, monkeypatch):
    """Also where it was changed and not committed."""
    (pages.ROOT / "outputs/torture").mkdir(parents=True)
    keep({}, "pictures", created="2998")
    assert pages.choose(("pictures",), None) == []
    monkeypatch.setattr(pages, "describe_software", lambda: {"the code": "another"})
    monkeypatch.setattr(pages, "datetime", Later)
    (pages.ROOT / "outputs/torture").mkdir(exist_ok=True)  # of the code that was
    assert pages.choose(("pictures",), None) == ["pictures"]
    assert not (pages.ROOT / "outputs/torture").exists()
    (pages.ROOT / "outputs/torture").mkdir()  # of the run that goes on
    assert pages.choose(("pictures",), None) == ["pictures"]
    assert (pages.ROOT / "outputs/torture").exists()


class Later(pages.datetime):
    """A clock of the year 2999."""

    @classmethod
    def now(cls, zone):
        return cls(2999, 1, 1, tzinfo=zone)


def test_what_is_measured_outside_a_checkout_has_no_commit(elsewhere):
    keep({}, "cpu")
    record = json.loads((blocks.RESULTS / "cpu.json").read_text())
    record["provenance"]["commit"] = None
    assert "commit unknown, P" in blocks.tell_origin("gma x", record)
    record["provenance"]["commit"] = "0123456789+unknown"
    assert "commit 0123456 (state unknown), P" in blocks.tell_origin("gma x", record)


def test_a_run_goes_on_with_what_it_has_not_measured(elsewhere, monkeypatch):
    code = (
        "import json, pathlib, sys; name = sys.argv[1]; print(name);"
        "made = {'created': '2999-01-01', 'commit': '', 'machine': {}};"
        "sys.exit(3) if pathlib.Path('bad').exists() and name == 'b' else "
        "pathlib.Path(f'results/{name}.json').write_text(json.dumps({'provenance': made}))"
    )
    measurements = {name: pages.Measurement((f'-c "{code}" {name}',), 1) for name in "ab"}
    measurements["c"] = pages.Measurement(("-c 1 SINTEL",), 1)
    monkeypatch.setattr(pages, "MEASUREMENTS", measurements)
    elsewhere.write_text("")
    (pages.ROOT / "bad").touch()
    assert pages.choose((), None) == ["a", "b"]
    with pytest.raises(pages.click.ClickException, match="exit code 3"):
        pages.measure(["a", "b"], None, busy=False)
    assert pages.choose((), None) == ["b"]
    (pages.ROOT / "bad").unlink()
    pages.measure(["b"], None, busy=False)
    assert not pages.BEGUN.exists()


@pytest.mark.parametrize(
    "other", [{"height": 224}, {"variants": {"a": {"settings": {"num_updates": 12}}}}, "{"]
)
def test_what_is_not_as_the_pages_say_is_measured_again(elsewhere, other):
    """Also where it was measured since, or cannot be read."""
    right = blocks.CLAIMED["cpu"] | {"variants": {"a": {"settings": {"num_updates": 6}}}}
    keep(right, "cpu", created="2999")
    assert pages.choose(("cpu",), None) == []
    if isinstance(other, str):
        (blocks.RESULTS / "cpu.json").write_text(other)
    else:
        keep(right | other, "cpu", created="2999")
    assert pages.choose(("cpu",), None) == ["cpu"]


def test_a_record_that_cannot_be_shown_keeps_nothing_from_being_measured(elsewhere, monkeypatch):
    """It is an error at the end, and can be measured again. When all is measured, pages are still
    written.
    """
    code = (
        "import json, pathlib, sys; wrong = pathlib.Path('wrong').exists();"
        "made = {'created': '2999-01-01', 'commit': '', 'machine': {}};"
        "record = {'provenance': made, 'is_so': not wrong};"
        "pathlib.Path(f'results/{sys.argv[1]}.json').write_text(json.dumps(record))"
    )

    def block():
        blocks.require("a", blocks.read("a")["is_so"], "error", "a measurement")
        return "new"

    measurements = {name: pages.Measurement((f'-c "{code}" {name}',), 1) for name in "ab"}
    monkeypatch.setattr(pages, "MEASUREMENTS", measurements)
    monkeypatch.setattr(pages, "BLOCKS", {"a": block})
    elsewhere.write_text("<!-- numbers: a -->old<!-- end -->")
    (pages.ROOT / "wrong").touch()
    with pytest.raises(BadFile, match=r"a\.json"):
        pages.measure(pages.choose((), None), None, busy=False)
    assert (blocks.RESULTS / "b.json").is_file()
    assert "old" in elsewhere.read_text()
    assert not pages.BEGUN.exists()
    keep({"is_so": True}, "a")
    pages.measure([], None, busy=False)
    assert "new" in elsewhere.read_text()


def test_a_busy_machine_is_not_timed_unless_asked(elsewhere, monkeypatch):
    class Busy:
        def add_to(self, perf):
            return {"load": {"others_before": 0.4}}

    monkeypatch.setattr(pages, "Load", Busy)
    called = pages.Measurement((f"-c \"open('{pages.ROOT / 'ran'}', 'w')\"",), 1, is_timed=True)
    monkeypatch.setattr(pages, "MEASUREMENTS", {"a": called})
    elsewhere.write_text("")
    with pytest.raises(pages.click.ClickException, match="40%"):
        pages.measure(["a"], None, busy=False)
    assert not (pages.ROOT / "ran").exists()
    pages.measure(["a"], None, busy=True)
    assert (pages.ROOT / "ran").exists()


def test_the_demo_s_row_is_what_its_run_found(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PRECISIONS", {"float32": (2, 3)})
    shutil.copytree(finished / "tiny/test", tmp_path / "tiny/openvino-float32")
    found = pages.collect(tmp_path / "tiny")
    (row,) = found["rows"].values()
    folders = sorted((finished / "tiny").glob("*/bs*"))
    first = json.loads((folders[0] / "metrics.json").read_text())
    assert row["epe"]["clean"] == first["clean"]["all"]["epe"]
    assert list(row["peak_rss_bytes"]) == ["2", "3"]
    assert row["distance"]["max"] == max(
        one["max"]
        for folder in folders
        for one in json.loads((folder / "convert.json").read_text())["compared"].values()
    )
    # another run, and another batch size of an earlier one, are no part of it
    for other in ("mine/bs2", "openvino-float32/bs8"):
        shutil.copytree(folders[0], tmp_path / "tiny" / other)
        write_json(tmp_path / "tiny" / other / "metrics.json", {"clean": {"all": {"epe": 7.77}}})
    assert pages.collect(tmp_path / "tiny") == found
    monkeypatch.setattr(pages, "find_commit", lambda: "another")
    with pytest.raises(BadFile, match="of commit"):
        pages.collect(tmp_path / "tiny")


def test_runs_of_several_weights_are_no_row(monkeypatch, tmp_path):
    records = {
        "02_export": {"checkpoint": {"sha256": "a"}},
        "03_convert": {"compared": {"together": {"mean": 0.0, "max": 0.0}}},
        "05_evaluate": {name: {"all": {"epe": 1.0, "px1": 0.5}} for name in pages.PASSES},
        "06_perf": {"load": {"busy": False}},
    }
    monkeypatch.setattr(pages, "_read_stage", lambda folder, name, stage: records[stage])
    monkeypatch.setattr(pages, "find_peak_memory", lambda perf: 1)
    assert pages.collect(tmp_path)["checkpoint_sha256"] == "a"

    def read(folder, name, stage):
        other = {"checkpoint": {"sha256": folder.parent.name}}
        return other if stage == "02_export" else records[stage]

    monkeypatch.setattr(pages, "_read_stage", read)
    with pytest.raises(BadFile, match="several weights"):
        pages.collect(tmp_path)


def test_only_what_is_known_can_be_measured():
    done = CliRunner().invoke(pages.main, ["nothing"])
    assert done.exit_code == 2
