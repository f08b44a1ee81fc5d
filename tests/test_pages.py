"""What ``make numbers`` writes into the pages: from the stored measurements, one a table."""

import importlib.util
import json

import pytest
from click.testing import CliRunner

from gma_lib.runs.files import PROJECT

spec = importlib.util.spec_from_file_location("pages", PROJECT / "benchmarks" / "pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A project whose measurements and pages are another's."""
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    for name, value in (("ROOT", tmp_path), ("RESULTS", results), ("PAGES", [page])):
        monkeypatch.setattr(pages, name, value)
    monkeypatch.setattr(pages, "BEGUN", tmp_path / "begun.json")
    return page


def keep(found, name="a", created="2026-01-02T03:04:05+00:00"):
    machine = {"processor": "P", "cores": 2}
    made = {"commit": "0123456789+changes", "created": created, "machine": machine}
    path = pages.RESULTS / f"{name}.json"
    path.write_text(json.dumps({"provenance": made} | found))


def test_every_page_says_what_was_measured():
    blocks = []
    for path in pages.PAGES:
        text = path.read_text(encoding="utf-8")
        assert text == pages.fill(text), f"{path.name}: make numbers, or pages.py --write"
        blocks += pages.BLOCK.findall(text)
    assert {name for _, name, *_ in blocks} == set(pages.BLOCKS)


def test_another_measurement_is_another_page(elsewhere):
    costs = dict.fromkeys(("epe", "epe_float32", "px1", "px1_float32", "distance"), 0.5)
    families = {"layers": costs | {"pairs": 8, "epe_loss": -0.01, "px1_loss": 0.25}}
    keep({"precisions": {"int8": {"families": families, "recommended": False}}}, "precision")
    elsewhere.write_text("a\n<!-- numbers: precision -->\nold\n<!-- end -->\nz\n")
    pages.write_pages()
    written = elsewhere.read_text()
    row = "| int8 | layers | 8 | 0.500 | 0.500 | -1.00% | 50.00 | 50.00 | +0.25 | 0.500 |"
    assert row in written.splitlines()
    assert written.startswith("a\n<!-- numbers: precision -->\n| precision |")
    assert written.endswith("<!-- end -->\nz\n")
    assert "old" not in written


def test_a_block_that_nothing_writes_is_an_error(elsewhere):
    elsewhere.write_text("<!-- numbers: of-nothing --><!-- end -->")
    with pytest.raises(KeyError, match="of-nothing"):
        pages.write_pages()


@pytest.mark.parametrize("busy", [False, True])
def test_the_origin_of_a_table(elsewhere, busy):
    keep({"load": {"busy": busy}})
    told = pages.tell_origin("gma x", pages.read("a"))
    assert told.startswith("`gma x`, commit 0123456 with changes, P, 2 cores, 2026-01-02")
    assert ("busy" in told) is busy


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


def test_the_demo_s_row_is_what_its_run_found(finished):
    found = pages.collect(finished / "tiny")
    (row,) = found["rows"].values()
    folders = sorted((finished / "tiny").glob("*/bs*"))
    first = json.loads((folders[0] / "metrics.json").read_text())
    assert row["epe"]["clean"] == first["clean"]["all"]["epe"]
    assert list(row["peak_rss_bytes"]) == ["2", "3"]
    assert row["distance"]["max"] == max(
        json.loads((folder / "convert.json").read_text())["deviation"]["max"] for folder in folders
    )


def test_only_what_is_known_can_be_measured():
    done = CliRunner().invoke(pages.main, ["nothing"])
    assert done.exit_code == 2
