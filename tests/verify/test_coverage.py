"""Every number of a run is compared, or is listed with the reason why it is not."""

import shutil

import pytest
from conftest import open_tiny

from gma_lib.runs.records import read_json, write_json
from gma_lib.verify import coverage
from gma_lib.verify.coverage import NOT_COMPARED, collect_all, find_uncovered
from gma_lib.verify.values import KINDS, collect_inside, collect_values


def collect(run):
    return collect_values(run) | collect_inside(run)


@pytest.fixture(scope="module")
def runs(finished):
    """Run -> its values, for two batch sizes, of which the second was compared with the first."""
    return {run: collect(run) for size in (2, 3) for run in [open_tiny(finished, batch_size=size)]}


@pytest.fixture
def copy(finished, tmp_path):
    return open_tiny(shutil.copytree(finished, tmp_path / "outputs"))


def add(path, content):
    """Add to a record, or write a new one."""
    known = read_json(path, made_by="") if path.is_file() else {}
    write_json(path, known | content)


def test_every_number_of_a_run_is_covered(runs):
    for run, values in runs.items():
        assert find_uncovered(run, values) == []
        assert collect_all(run).keys() <= values.keys()


def test_the_tolerance_of_07_is_that_of_the_pair_that_it_examined(finished, monkeypatch):
    """Regression: it was that of the last pair, which may have few occluded pixels."""
    run = open_tiny(finished)
    examined = read_json(run.folder / "inside.json", made_by="07_inside")["pair"]
    pixels = {examined: 90_000, "another": 3}
    pairs = [{"name": name, "occluded": {"pixels": count}} for name, count in pixels.items()]
    shown = {"clean": {"pairs": pairs}}
    monkeypatch.setattr("gma_lib.verify.values.select_passes", lambda metrics: shown)
    found = [one for name, one in collect_inside(run).items() if "/occluded" in name]
    kind = KINDS["epe"]
    wanted = max(kind.tolerance or 0.0, kind.per_pixel / 90_000)
    assert {one.tolerance for one in found if one.kind == "epe"} == {wanted}


@pytest.mark.parametrize("name", NOT_COMPARED)
def test_every_reason_is_needed(runs, monkeypatch, name):
    for pattern, reason in NOT_COMPARED[name].items():
        others = {one: why for one, why in NOT_COMPARED[name].items() if one != pattern}
        monkeypatch.setattr(coverage, "NOT_COMPARED", NOT_COMPARED | {name: others})
        assert any(find_uncovered(run, values) for run, values in runs.items()), pattern
        assert reason.endswith(".")


@pytest.mark.parametrize(
    ("name", "content", "number"),
    [
        ("metrics.json", {"new": 1.5}, "new"),
        ("metrics.json", {"new": {"list": [{"name": "one", "epe": 1.5}]}}, "new/list/one/epe"),
        ("export.json", {"new": {"max": 2}}, "new/max"),
        ("inside.json", {"new": [2]}, "new/0"),
        ("other.json", {"number": 3}, "number"),
        ("other.json", {"text": "3", "known": True, "nothing": None}, None),
    ],
)
def test_a_new_number_is_found(copy, name, content, number):
    """In a record, and in a file that no stage is known to write."""
    values = collect(copy)
    add(copy.folder / name, content)
    assert find_uncovered(copy, values) == ([f"{name} {number}"] if number else [])


def test_a_run_with_a_new_number_fails(copy):
    add(copy.folder / "metrics.json", {"new": 1.5})
    with pytest.raises(ValueError, match=r"metrics\.json new would not be compared") as error:
        collect_all(copy)
    assert len(str(error.value).splitlines()) == 1


def test_a_new_distance_is_compared(copy):
    path = copy.folder / "convert.json"
    compared = read_json(path, made_by="")["compared"]
    add(path, {"compared": compared | {"1 pair of 160x128 px, in a new way": {"max": 0.5}}})
    values = collect(copy)
    assert values["03_convert/distance/in a new way/max"].value == 0.5
    assert find_uncovered(copy, values) == []
