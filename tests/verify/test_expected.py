"""Values of a run against expected ones: what passes, what is reported, what fails."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import yaml
from command_line import gma
from conftest import open_tiny

from gma_lib.cli import verification
from gma_lib.cli.verification import _judge
from gma_lib.pipeline import parameters
from gma_lib.runs.files import BadFile, hash_value
from gma_lib.runs.processes import lock_path
from gma_lib.runs.records import SEAL
from gma_lib.verify import expected as expectations
from gma_lib.verify.values import (
    KINDS,
    Value,
    collect_inside,
    collect_values,
    read_run_parameters,
)


@pytest.fixture(scope="module")
def values():
    numbers = {"epe": 0.5, "share": 0.25, "wauc": 80.0, "distance": 1e-5, "count": 100}
    found = {name: Value(name, number, 1e-3) for name, number in numbers.items()}
    found["count"] = Value("count", 100, 0.0)
    found["classical epe"] = Value("classical epe", 0.5, 1e-3)
    return found | {name: Value(name, "a" * 64) for name in ("pixels", "weights", "flow")}


def judge(values, changed, *, there=(), digests=True):
    """Status of the one entry that is not equal."""
    surroundings = expectations.describe_surroundings() | dict(there)
    recorded = expectations.describe_values(values, surroundings)
    verdicts = expectations.judge_values(values | changed, recorded, digests=digests)
    other = [verdict for verdict in verdicts if verdict.status != "equal"]
    assert len(other) <= 1
    return other[0].status if other else "equal"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("epe", 0.5, "equal"),
        ("epe", 0.5009, "within"),
        ("epe", 0.4991, "within"),
        ("epe", 0.5011, "outside"),
        ("epe", math.nan, "outside"),
        ("epe", None, "outside"),
        ("distance", 0.0, "equal"),
        ("distance", 1e-3, "within"),
        ("distance", 1.1e-3, "outside"),
        ("count", 101, "outside"),
        ("weights", "b" * 64, "outside"),
        ("pixels", "b" * 64, "outside"),
        ("flow", "b" * 64, "outside"),
    ],
)
def test_an_entry_is_judged_by_its_tolerance(values, name, value, status):
    assert judge(values, {name: replace(values[name], value=value)}) == status


def test_what_another_version_explains_is_reported(values):
    digest = Value("pixels", "b" * 64)
    assert judge(values, {"pixels": digest}, there={"numpy": "1.0"}) == "reported"
    assert judge(values, {"pixels": digest}, there={"openvino": "1.0"}) == "outside"
    assert judge(values, {"pixels": digest}, there={"cores": "64"}) == "outside"
    flow = Value("flow", "b" * 64)
    for name in ("threads", "cores", "processor"):
        assert judge(values, {"flow": flow}, there={name: "64"}) == "reported"
    assert judge(values, {"weights": Value("weights", "b")}, there={"numpy": "1"}) == "outside"
    assert judge(values, {"epe": Value("epe", 1.0, 1e-3)}, there={"numpy": "1"}) == "outside"


@pytest.mark.parametrize(
    ("there", "off", "status"),
    [
        ({}, 0.9e-3, "within"),
        ({}, 1.1e-3, "outside"),
        ({"openvino": "1.0"}, 1.1e-3, "outside"),
        ({"instruction set": "none"}, 1.1e-3, "outside"),
        ({"opencv-python-headless": "1.0"}, 0.9e-3, "within"),
        ({"opencv-python-headless": "1.0"}, 1.1e-3, "reported"),
        ({"opencv-python-headless": "1.0"}, -0.09, "reported"),
        ({"opencv-python-headless": "1.0"}, 0.11, "outside"),
        ({"opencv-python-headless": "1.0"}, math.nan, "outside"),
    ],
    ids=str,
)
def test_another_version_widens_a_tolerance_and_waives_none(values, there, off, status):
    value = Value("classical epe", 0.5 + off, 1e-3)
    assert judge(values, {"classical epe": value}, there=there) == status
    other = Value("epe", 0.5 + off, 1e-3)  # which nothing explains
    assert judge(values, {"epe": other}, there=there) == status.replace("reported", "outside")


def test_what_is_not_known_explains_nothing(values):
    recorded = expectations.describe_values(values, {"numpy": "1.0"})
    changed = values | {name: Value(name, "b" * 64) for name in ("pixels", "flow")}
    differ = [v for v in expectations.judge_values(changed, recorded) if v.status != "equal"]
    assert {v.because.split(":")[0] for v in differ} == {"numpy"}
    recorded = expectations.describe_values(values, {})
    differ = [v for v in expectations.judge_values(changed, recorded) if v.status != "equal"]
    assert {v.status for v in differ} == {"outside"}


@pytest.mark.parametrize("profile", ["demo", "quick"])
@pytest.mark.parametrize(
    ("differs", "off", "status"),
    [
        ("opencv-python-headless", 1e-5, "within"),
        ("opencv-python-headless", 0.037, "reported"),
        ("opencv-python-headless", 0.11, "outside"),
        ("instruction set", 0.037, "outside"),
        ("openvino", 0.037, "outside"),
    ],
)
def test_a_shipped_file_knows_another_opencv(monkeypatch, profile, differs, off, status):
    recorded = expectations.read_expected(expectations.locate_expected(profile))
    here = recorded["surroundings"] | {differs: "another"}
    monkeypatch.setattr(expectations, "describe_surroundings", lambda: here)
    found = {name: Value(*one) for name, one in recorded["values"].items()}
    name = "05_evaluate/classical/DIS (OpenCV, medium)/all/epe"
    found[name] = replace(found[name], value=found[name].value + off)
    verdicts = {one.name: one.status for one in expectations.judge_values(found, recorded)}
    assert verdicts.pop(name) == status
    assert set(verdicts.values()) == {"equal"}


def test_how_many_entries_are_explained_is_counted(values, tmp_path):
    there = expectations.describe_surroundings() | {"numpy": "1.0"}
    recorded = expectations.describe_values(values, there)
    changed = values | {name: Value(name, "b" * 64) for name in ("pixels", "flow")}
    assert not _judge(expectations.judge_values(values, recorded), tmp_path)
    assert f"2 of {len(values)} " in _judge(expectations.judge_values(changed, recorded), tmp_path)


def test_an_entry_more_or_less_fails(values):
    assert judge(values, {"new": Value("epe", 1.0, 1e-3)}) == "unexpected"
    recorded = expectations.describe_values(values, expectations.describe_surroundings())
    values = {name: value for name, value in values.items() if name != "epe"}
    assert {v.name: v.status for v in expectations.judge_values(values, recorded)}[
        "epe"
    ] == "missing"


def test_without_digests_numbers_alone_count(values):
    assert judge(values, {"weights": Value("weights", "b" * 64)}, digests=False) == "equal"
    assert judge(values, {"count": Value("count", 99, 0.0)}, digests=False) == "outside"


def test_every_number_of_a_run_is_an_entry(finished, tmp_path):
    run = open_tiny(finished)
    found = collect_values(run)
    metrics = json.loads((run.folder / "metrics.json").read_text())
    epe = found["05_evaluate/clean/all/epe"]
    assert epe.value == metrics["clean"]["all"]["epe"]
    assert {value.kind for value in (found | collect_inside(run)).values()} == set(KINDS)
    for what in ("", "computed together/", "in parts along a sequence/"):
        assert found[f"03_convert/distance/{what}max"].kind == "distance"
    methods = {"network": "epe", "no motion": "epe", "DIS (OpenCV, medium)": "classical epe"}
    for method, kind in methods.items():
        assert found[f"05_evaluate/classical/{method}/all/epe"].kind == kind
    # two pixels may change sides in any group, however small
    share, pixels = (found[f"05_evaluate/clean/all/{name}"] for name in ("px1", "pixels"))
    assert share.tolerance == max(2e-5, 2 / pixels.value)

    path, parameters = tmp_path / "expected" / "tiny.json", read_run_parameters(run)
    expectations.write_expected(path, found, parameters=parameters, reason="first")
    expectations.write_expected(path, found, parameters=parameters, reason="second")
    recorded = expectations.read_expected(path)
    expectations.require_same_work(recorded, parameters)
    assert [one["reason"] for one in recorded["history"]] == ["first", "second"]
    assert {verdict.status for verdict in expectations.judge_values(found, recorded)} == {"equal"}
    with pytest.raises(ValueError, match="num_updates"):
        expectations.require_same_work(recorded, parameters | {"num_updates": 7})
    path.write_text(path.read_text().replace('"second"', '"2nd"'))
    with pytest.raises(ValueError, match=r"tiny\.json"):
        expectations.read_expected(path)


def test_pooling_per_pair_is_noticed(finished):
    """A mean of the pairs' means differs from the mean over pixels where pairs differ in size."""
    run = open_tiny(finished)
    found = collect_values(run)
    pairs = json.loads((run.folder / "metrics.json").read_text())["clean"]["pairs"]
    name, group = "05_evaluate/clean/occluded/epe", "occluded"
    mean = sum(pair[group]["epe"] for pair in pairs) / len(pairs)
    assert judge(found, {name: replace(found[name], value=mean)}) == "outside"


def test_a_profile_without_expected_values_is_refused_before_work():
    gma("verify", "--profile", "tiny", exit_code=2)
    gma("verify", "--profile", "nothing", exit_code=2)


@pytest.mark.parametrize(
    "command", [["verify", "--quick"], ["record", "--profile", "quick", "--reason", "test"]]
)
def test_only_one_at_a_time_works_in_a_folder(tmp_path, monkeypatch, command):
    """The second would remove what the first computes from. Another profile is none of its
    business.
    """
    started = []
    monkeypatch.setattr(verification, "VERIFIED", str(tmp_path))
    monkeypatch.setattr(verification, "run_stages", lambda *_, **__: started.append(1) or ["died"])
    judged = tmp_path / "quick" / verification.VERDICTS
    judged.parent.mkdir()
    judged.touch()
    with lock_path(tmp_path / ".quick.lock", wait=False):
        *differences, last = gma(*command, exit_code=1).splitlines()  # of this machine, if any
    assert ".quick.lock" in last
    assert all(" there, " in line for line in differences)
    assert not started
    assert judged.exists()
    with lock_path(tmp_path / ".demo.lock", wait=False):
        gma(*command, exit_code=138)
    assert started


@pytest.mark.parametrize(
    "changed",
    [{"demo_height": 232}, {"demo_width": 520}, {"num_updates": 5}, {"checkpoint": "seeded"}, {}],
)
def test_a_changed_profile_is_refused_before_any_work(tmp_path, monkeypatch, changed):
    started = []
    params = shutil.copytree(parameters.PARAMS, tmp_path / "params")
    content = yaml.safe_load((params / "quick.yaml").read_text()) | changed
    (params / "quick.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(parameters, "PARAMS", params)
    monkeypatch.setattr(verification, "VERIFIED", str(tmp_path / "outputs"))
    monkeypatch.setattr(verification, "run_stages", lambda *_, **__: started.append(1) or ["died"])
    printed = gma("verify", "--quick", exit_code=1 if changed else 138)
    assert bool(started) == (not changed)
    for name in changed:
        assert name.removeprefix("demo_") in printed
        assert len(printed.splitlines()) == 1


def _rewrite(path, changed):
    """Write an expected file by hand, digest and all."""
    content = json.loads(path.read_text()) | changed
    content.pop(SEAL)
    path.write_text(json.dumps(content | {SEAL: hash_value(content)}))


@pytest.mark.parametrize(
    "entry",
    [
        *(["epe", 0.5, tolerance] for tolerance in (-1e-3, math.nan, math.inf, True, "1", None)),
        *(["epe", value, 1e-3] for value in (math.nan, True, "0.5", None)),
        ["weights", "a" * 64, 1e-3],
        [],
    ],
    ids=str,
)
def test_expected_values_are_digests_or_numbers_with_a_tolerance(values, tmp_path, entry):
    path = tmp_path / "quick.json"
    expectations.write_expected(path, values, parameters={}, reason="first")
    recorded = expectations.read_expected(path)["values"]
    _rewrite(path, {"values": recorded})
    assert expectations.read_expected(path)["values"] == recorded
    _rewrite(path, {"values": recorded | {"epe": entry}})
    with pytest.raises(BadFile) as error:
        expectations.read_expected(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "part",
    [
        {"history": []},
        {"kinds": []},
        {"kinds": {"epe": {"depends_on": [], "elsewhere": -0.5}}},
        {"surroundings": {"numpy": 2}},
        {"values": []},
    ],
    ids=str,
)
def test_an_expected_file_has_its_parts(values, tmp_path, part):
    path = tmp_path / "quick.json"
    expectations.write_expected(path, values, parameters={}, reason="first")
    _rewrite(path, part)
    with pytest.raises(BadFile):
        expectations.read_expected(path)


@pytest.mark.parametrize("content", ["{", None])
def test_what_cannot_be_recorded_is_not_computed(tmp_path, monkeypatch, content):
    """A damaged earlier file, or a folder that cannot be written, is found before the work."""
    started = []
    monkeypatch.setattr(verification, "VERIFIED", str(tmp_path / "outputs"))
    monkeypatch.setattr(verification, "run_stages", lambda *_, **__: started.append(1) or ["died"])
    folder = tmp_path / "expected"
    monkeypatch.setattr(verification, "locate_expected", lambda profile: folder / f"{profile}.json")
    if content is None:
        folder.touch()
    else:
        folder.mkdir()
        (folder / "quick.json").write_text(content)
    printed = gma("record", "--profile", "quick", "--reason", "test", exit_code=1)
    assert "expected" in printed
    assert len(printed.splitlines()) == 1
    assert not started


@pytest.mark.parametrize("reason", [" ", "one\ntwo"])
def test_a_record_needs_a_reason(reason):
    assert "--reason" in gma("record", "--profile", "quick", "--reason", reason, exit_code=2)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 2000])
def test_names_that_cannot_be_printed_are_refused(values, tmp_path, name):
    path = tmp_path / "quick.json"
    expectations.write_expected(path, values, parameters={}, reason="first")
    for part in ("surroundings", "values"):
        content = json.loads(path.read_text())[part]
        _rewrite(path, {part: content | {name: next(iter(content.values()))}})
        with pytest.raises(BadFile) as error:
            expectations.read_expected(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 400
        _rewrite(path, {part: content})


def test_an_entry_of_another_kind_is_outside(values):
    """Else an error that is recorded as a distance might be any smaller one, and a number that is
    recorded as a digest would not be compared without digests.
    """
    recorded = expectations.describe_values(values, expectations.describe_surroundings())
    for entry in (["distance", 0.6, 1e-3], ["flow", "a" * 64, None]):
        other = recorded | {"values": recorded["values"] | {"epe": entry}}
        verdicts = expectations.judge_values(values, other, digests=False)
        assert {v.name: v.status for v in verdicts}["epe"] == "outside"
