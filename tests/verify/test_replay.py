"""What of an archive is read, and with which parameters its runs are computed again."""

import hashlib
import json
import re
import shutil
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from command_line import gma
from rocrate.rocrate import ROCrate

from gma_lib.cli import verification
from gma_lib.data.sintel import choose_subset, load_pairs
from gma_lib.pipeline import parameters
from gma_lib.pipeline.chain import digest_record
from gma_lib.pipeline.parameters import resolve_parameters
from gma_lib.pipeline.settings import read_settings
from gma_lib.runs.files import RESOURCES, BadFile, hash_file, hash_value
from gma_lib.runs.records import SEAL, read_json, write_json
from gma_lib.verify.expected import describe_values, judge_values
from gma_lib.verify.replay import (
    METADATA,
    drop_newer,
    list_overrides,
    read_surroundings,
    unpack_records,
)
from gma_lib.verify.values import INSIDE, LAST, Value, collect_inside, collect_recorded


def test_a_run_is_described_by_its_archive_alone(archive, tmp_path):
    runs = unpack_records(archive, tmp_path / "unpacked")
    assert [(run.name, run.batch_size) for run in runs] == [("test", 2), ("test", 3)]
    files = [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json"}
    assert collect_recorded(runs[0])["05_evaluate/clean/all/epe"].value > 0
    assert "processor" in read_surroundings(runs[0])
    overrides = list_overrides(runs[1], sintel=None, checkpoint=None)
    again = resolve_parameters("tiny", overrides)
    assert (again["batch_size"], again["demo_height"], again["demo_width"]) == (3, 128, 160)
    assert (again["checkpoint"], again["demo_frames"]) == ("seeded", 3)
    index = read_json(runs[1].data_folder / "index.json", made_by="01_data")
    assert again["scenes"] == list(dict.fromkeys(pair["scene"] for pair in index["pairs"]))
    metrics = read_json(runs[1].folder / "metrics.json", made_by="05_evaluate")
    assert again["classical_pairs"] == metrics["classical"]["pairs"] > 0


def test_a_folder_is_read_as_an_archive_is(archive, reported, tmp_path):
    """Unpacked, or the results themselves; what is no folder of either kind is refused."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "shared")
    sources = {"zip": archive, "shared": tmp_path / "shared", "results": reported / "tiny"}
    found = {name: unpack_records(path, tmp_path / f"of {name}") for name, path in sources.items()}
    for runs in found.values():
        assert [(run.name, run.batch_size) for run in runs] == [("test", 2), ("test", 3)]
        assert collect_recorded(runs[0]) == collect_recorded(found["zip"][0])
    files = [path for path in (tmp_path / "of results").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json"}
    record = tmp_path / "shared/tiny/test/bs2/metrics.json"
    record.write_text(record.read_text().replace('"pairs_scored": ', '"pairs_scored": 1', 1))
    with pytest.raises(BadFile, match="was changed"):
        unpack_records(tmp_path / "shared", tmp_path / "changed")
    record.unlink()
    with pytest.raises(BadFile, match="is missing"):
        unpack_records(tmp_path / "shared", tmp_path / "missing")
    for other in (reported, reported / "tiny/test", tmp_path):
        with pytest.raises(BadFile, match="no run"):
            unpack_records(other, tmp_path / "none")


def change_flow(folder):
    flow = min(folder.glob("flow/*/*/*.flo"))
    flow.write_bytes(flow.read_bytes()[:-1] + b"\0")


def change_frames(folder):
    """As 01_data leaves them that ran again with other parameters, and nothing else since."""
    index, stamp = (folder.parents[1] / "data" / name for name in ("index.json", ".01_data.json"))
    content = {
        name: item for name, item in read_json(index, made_by="").items() if name != "schema"
    }
    write_json(index, content | {"description": "Demo set of other scenes"})
    stamped = read_json(stamp, made_by="")
    digest = digest_record(read_json(index, made_by=""))
    write_json(stamp, stamped | {"products": stamped["products"] | {"01_data index.json": digest}})


def fail_again(folder):
    stamp = folder / ".05_evaluate.json"
    write_json(stamp, read_json(stamp, made_by="") | {"status": "failed"})


def forget(folder):
    (folder / ".03_convert.json").unlink()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (change_flow, "04_infer is altered"),
        (change_frames, "02_export is stale"),
        (fail_again, "05_evaluate is failed"),
        (forget, "03_convert is not run"),
        (lambda folder: (folder / "05_evaluate.html").write_text("other"), None),
        (lambda folder: (folder / "perf.json").unlink(), None),
    ],
)
def test_stale_results_are_not_replayed(reported, tmp_path, monkeypatch, change, word):
    """Their numbers are of other frames, weights or settings than are there now; those of a page,
    and times, are not compared.
    """
    copy = shutil.copytree(reported, tmp_path / "outputs")
    change(copy / "tiny/test/bs3")
    computed = []
    monkeypatch.setattr(verification, "REPLAYED", str(tmp_path / "home"))
    monkeypatch.setattr(
        verification, "run_stages", lambda runs, **_: computed.extend(runs) or ["failed"]
    )
    printed = gma("replay", copy / "tiny", exit_code=1)
    if word is None:  # here it fails later, as the stages that it then runs do
        assert [one["batch_size"] for one in computed] == [2]
        runs = unpack_records(copy / "tiny", tmp_path / "unpacked")
        assert [(run.name, run.batch_size) for run in runs] == [("test", 2), ("test", 3)]
        return
    assert not computed
    assert f"test, batch size 3: {word}" in printed or f"test, batch size 2: {word}" in printed
    assert len(printed.splitlines()) == 1
    with pytest.raises(BadFile, match=word):
        unpack_records(copy / "tiny", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_entries_that_an_older_archive_lacks_are_not_compared():
    """Distances and files that later versions record; a score more still fails."""
    recorded = {"a": Value("distance", 1e-6, 5e-3), "b": Value("epe", 1.0, 1e-3)}
    newer = {"c": Value("distance", 1e-6, 5e-3), "d": Value("graph", "0"), "e": recorded["b"]}
    assert drop_newer(recorded | newer, recorded) == recorded | {"e": recorded["b"]}


@pytest.mark.parametrize("changed", [None, LAST, INSIDE])
def test_what_07_inside_found_is_compared_too(archive, tmp_path, monkeypatch, changed):
    """What is computed again is the archive's own, or that with a changed number."""
    home, computed = tmp_path / "home", []

    def compute(runs, *, until, **_):
        computed.append((until, runs[0]["batch_size"], runs[0]["look_at"]))
        unpack_records(archive, home)
        for path in home.glob(f"tiny/test/bs3/{'inside' if changed == INSIDE else 'metrics'}.json"):
            record = read_json(path, made_by="")
            where = record if changed == INSIDE else record["clean"]["all"]
            name = "epe_without_aggregation" if changed == INSIDE else "epe"
            where[name] += 0.01 if changed else 0
            write_json(path, record)
        return ["ok"]

    monkeypatch.setattr(verification, "REPLAYED", str(home))
    monkeypatch.setattr(verification, "run_stages", compute)
    printed = gma("replay", archive, exit_code=1 if changed else 0)
    run = unpack_records(archive, tmp_path / "unpacked")[0]
    inside = read_json(run.folder / "inside.json", made_by=INSIDE)
    kinds = Counter(value.kind for value in collect_inside(run).values())
    # three groups after two updates, and without the aggregation; at the point and in the mean
    assert kinds == {"epe": 7, "count": 2, "attention": 4}
    assert computed == [
        (until, size, inside["pair"]) for size in (2, 3) for until in (LAST, INSIDE)
    ]
    assert not changed or f"The worst: {changed}/" in printed
    (run.folder / "inside.json").unlink()
    assert collect_inside(run) == {}


def test_a_profile_that_is_not_here_is_computed_as_recorded(archive, tmp_path, monkeypatch):
    params, computed = shutil.copytree(parameters.PARAMS, tmp_path / "params"), []
    (params / "tiny.yaml").unlink()
    for module in (parameters, verification):
        monkeypatch.setattr(module, "PARAMS", params)
    monkeypatch.setattr(verification, "REPLAYED", str(tmp_path / "home"))
    monkeypatch.setattr(
        verification, "run_stages", lambda runs, **_: computed.extend(runs) or ["failed"]
    )
    gma("replay", archive, exit_code=1)
    wanted = {"profile": "demo", "demo_height": 128, "demo_frames": 3, "checkpoint": "seeded"}
    wanted |= {"num_updates": 2, "batch_size": 2, "run": "test"}
    assert {name: computed[0][name] for name in wanted} == wanted


def test_a_replay_on_the_same_machine_excuses_nothing(archive, tmp_path):
    """Neither another flow, which is all that there is of a split without ground truth, nor the
    classical methods' scores; on another processor, another flow is reported.
    """
    run = unpack_records(archive, tmp_path)[0]
    surroundings, values = read_surroundings(run), collect_recorded(run)
    assert surroundings["instruction set"]
    changed = {
        name: replace(value, value="0" * 64 if value.tolerance is None else value.value * 100 + 7)
        for name, value in values.items()
        if value.kind == "flow" or name.startswith("05_evaluate/classical")
    }
    assert len(changed) > 100
    exported = read_json(run.folder / "export.json", made_by="02_export")
    older = {name: one for name, one in exported["provenance"].items() if name != "computing"}
    write_json(run.folder / "export.json", exported | {"provenance": older})
    assert "instruction set" not in read_surroundings(run)
    another = surroundings | {"processor": "another"}
    for there, statuses in (
        (surroundings, {"outside"}),
        (read_surroundings(run), {"outside"}),
        (another, {"outside", "reported"}),
    ):
        verdicts = judge_values(values | changed, describe_values(values, there))
        assert {v.name for v in verdicts if v.status != "equal"} == set(changed)
        assert {v.status for v in verdicts if v.name in changed} == statuses
    assert {v.kind for v in verdicts if v.status == "reported"} == {"flow"}


def test_what_was_null_is_null_again(archive, tmp_path):
    """Whatever the profile says: the whole batch at once, and frames that are rendered."""
    run = unpack_records(archive, tmp_path)[0]
    usual = list_overrides(run, sintel=None, checkpoint=None)
    assert resolve_parameters("tiny", usual)["at_once"] == 1
    assert usual["sintel_root"] is None
    write_json(run.settings_file, {**read_settings(run), "at_once": None})
    again = list_overrides(run, sintel=None, checkpoint=None)
    assert resolve_parameters("tiny", again)["at_once"] is None


def test_frames_and_weights_are_asked_for(archive, reported, tmp_path):
    run = unpack_records(archive, tmp_path)[0]
    index = read_json(run.data_folder / "index.json", made_by="01_data")
    write_json(run.data_folder / "index.json", index | {"description": "MPI-Sintel"})
    with pytest.raises(ValueError, match="--sintel"):
        list_overrides(run, sintel=None, checkpoint=None)
    write_json(run.data_folder / "index.json", index | {"description": "x\n" * 999})
    with pytest.raises(ValueError, match="--sintel") as error:
        list_overrides(run, sintel=None, checkpoint=None)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400
    frames = str(reported / "tiny/data/frames")
    assert list_overrides(run, sintel=frames, checkpoint=None)["sintel_root"] == frames
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    with pytest.raises(ValueError, match="SHA-256"):
        list_overrides(run, sintel=frames, checkpoint=str(other))
    changed = tmp_path / "frames"
    shutil.copytree(frames, changed)
    scene = changed / "training" / index["pairs"][0]["name"].rpartition("/")[0]
    last = max(scene.iterdir())
    more = last.with_name(f"frame_{int(last.stem[-4:]) + 1:04d}.png")
    shutil.copy(last, more)
    with pytest.raises(ValueError, match=last.stem):
        list_overrides(run, sintel=str(changed), checkpoint=None)
    more.unlink()
    first = changed / index["pairs"][0]["files"]["image1"]
    first.write_bytes(first.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=first.name):
        list_overrides(run, sintel=str(changed), checkpoint=None)


def test_a_declared_subset_is_computed_again(archive, tmp_path):
    """And no other pairs, whatever the profile says; a run of all pairs stays one."""
    run = unpack_records(archive, tmp_path)[0]
    index = read_json(run.data_folder / "index.json", made_by="01_data")
    inferred = read_json(run.folder / "infer.json", made_by="04_infer")
    pairs = load_pairs(index)
    first, others = [], []
    for _, scene in groupby(pairs, key=lambda pair: (pair.pass_name, pair.scene)):
        one, *more = scene
        first.append(one.name)
        others.extend(pair.name for pair in more)
    for names in (first, [pair.name for pair in pairs]):
        write_json(run.folder / "infer.json", inferred | {"pairs": names})
        again = resolve_parameters("tiny", list_overrides(run, sintel=None, checkpoint=None))
        chosen, _ = choose_subset(
            pairs,
            batch_size=again["batch_size"],
            full_batch_size=again["full_batch_size"],
            pairs_per_scene=again["subset_pairs_per_scene"],
        )
        assert [pair.name for pair in chosen] == names
    write_json(run.folder / "infer.json", inferred | {"pairs": others})
    with pytest.raises(ValueError, match=f"{len(others)} of {len(pairs)} pairs"):
        list_overrides(run, sintel=None, checkpoint=None)


def test_weights_that_are_not_here_are_asked_for(archive, tmp_path):
    run = unpack_records(archive, tmp_path)[0]
    exported = read_json(run.folder / "export.json", made_by="02_export")
    write_json(run.settings_file, {**read_settings(run), "checkpoint": "gma-procedural"})
    bundled = RESOURCES / "weights" / "gma-procedural.safetensors"
    assert exported["checkpoint"]["sha256"] != hash_file(bundled)
    with pytest.raises(ValueError, match=exported["checkpoint"]["sha256"]):
        list_overrides(run, sintel=None, checkpoint=None)


def test_only_records_of_an_archive_are_written(archive, tmp_path):
    hostile = tmp_path / "hostile.zip"
    shutil.copy(archive, hostile)
    names = ["../../bs1/run.json", "/tiny/test/bs9/run.json", "tiny/../bs9/run.json", "tiny/x.py"]
    with zipfile.ZipFile(hostile, "a") as file:
        for name in names:
            file.writestr(name, "{}")
    unpacked = tmp_path / "a" / "b"
    try:
        unpack_records(hostile, unpacked)
    except BadFile:
        pass
    else:
        assert len(list(unpacked.rglob("bs*"))) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "hostile.zip"}


@pytest.mark.parametrize("content", [b"", b"PK\3\4 damaged", None])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "report.zip"
    if content is None:
        zipfile.ZipFile(path, "w").close()
    else:
        path.write_bytes(content)
    with pytest.raises(BadFile):
        unpack_records(path, tmp_path / "unpacked")


RECORD = "tiny/test/bs2/metrics.json"
LISTED = {"@graph": [{"@id": RECORD}]}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("metadata", "copies", "word"),
    [
        (LISTED, 1, None),
        (LISTED, 2, "twice"),
        ({}, 1, "lists no files"),
        ([LISTED], 1, "lists no files"),
        ({"@graph": {"@id": RECORD}}, 1, "lists no files"),
        ({"@graph": [RECORD]}, 1, "lists no files"),
        ({"@graph": [{"@id": 1}]}, 1, "lists no files"),
    ],
)
def test_an_archive_lists_each_of_its_records_once(tmp_path, metadata, copies, word):
    """What is listed is unpacked, and only then refused for what it holds."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(METADATA, json.dumps(metadata))
        for _ in range(copies):
            file.writestr(RECORD, "{}")
    with pytest.raises(BadFile, match=word):
        unpack_records(tmp_path / "a.zip", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / RECORD).exists() == (word is None)


@pytest.mark.parametrize("is_too_large", [False, True])
def test_records_of_a_folder_that_are_too_large_are_not_read(tmp_path, monkeypatch, is_too_large):
    (record := tmp_path / "a" / RECORD).parent.mkdir(parents=True)
    record.write_text("{}" + is_too_large * " ")
    (tmp_path / "a" / METADATA).write_text(json.dumps(LISTED))
    monkeypatch.setattr("gma_lib.verify.replay.MOST_BYTES", 2)
    with pytest.raises(BadFile, match="3 bytes" if is_too_large else None):
        unpack_records(tmp_path / "a", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / RECORD).exists() != is_too_large


@pytest.mark.parametrize(
    ("file", "before", "after", "word"),
    [
        ("", b'"schema": 3', b'"schema": 2', "schema 2"),
        ("metrics.json", b'"pairs_scored": ', b'"pairs_scored": 1', "changed"),
        ("bs2/convert.json", b"{", b"", "JSONDecodeError"),
        ("index.json", b"", None, "index.json is missing"),
    ],
)
def test_records_that_are_not_as_written_are_refused(archive, tmp_path, file, before, after, word):
    """Of another version, edited by hand, damaged or missing: one sentence before any work."""
    other = tmp_path / "other.zip"
    changed = 0
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".json") and name.endswith(file) and before in content:
                changed += 1
                if after is None:
                    continue
                content = content.replace(before, after, 1)
            if name == METADATA:  # as older archives have it, without digests
                content = re.sub(rb',\s*"sha256": "[0-9a-f]{64}"', b"", content)
                assert b"sha256" not in content
            new.writestr(name, content)
    assert changed
    with pytest.raises(BadFile, match=word) as error:
        unpack_records(other, tmp_path / "unpacked")
    assert str(error.value).startswith(str(other))
    assert "run 0" not in str(error.value)
    assert len(gma("replay", other, exit_code=1).splitlines()) == 1


def put(*path, value):
    """Set an item of a record."""

    def change(record):
        *folders, name = path
        for one in folders:
            record = record[one]
        record[name] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "word"),
    [
        ("metrics.json", put("classical", value=[]), "not as this version writes it"),
        ("metrics.json", put("provenance", "versions", value={}), "not as this version writes"),
        ("metrics.json", put("provenance", "versions", "numpy", value="1\n\x1b[2J"), "numpy"),
        ("metrics.json", put("provenance", "versions", "a\nb", value="1"), r"a\\nb"),
        ("metrics.json", put("provenance", "versions", "numpy", value="1" * 2000), "numpy"),
        ("metrics.json", put("classical", "pairs", value="8"), "classical_pairs"),
        ("inside.json", put("pair", value=5), "look_at"),
    ],
)
def test_records_of_another_hand_are_refused_in_a_sentence(
    archive, tmp_path, monkeypatch, file, change, word
):
    """With digests of their own: nothing is computed, and nothing of theirs moves the cursor."""

    def edit(content, is_metadata):
        if is_metadata:
            return re.sub(rb',\s*"sha256": "[0-9a-f]{64}"', b"", content)
        if not content.startswith(b"{") or SEAL.encode() not in content:
            return content
        record = json.loads(content)
        if file == names.get(hash_value(record)):
            change(record)
        del record[SEAL]
        return json.dumps(record | {SEAL: hash_value(record)}).encode()

    with zipfile.ZipFile(archive) as read:
        names = {
            hash_value(json.loads(read.read(name))): Path(name).name
            for name in read.namelist()
            if name.endswith(".json")
        }
    other = pack(archive, tmp_path / "other.zip", edit=edit)
    monkeypatch.setattr(verification, "REPLAYED", str(tmp_path / "home"))
    monkeypatch.setattr(verification, "run_stages", lambda *_, **__: pytest.fail("computed"))
    printed = gma("replay", other, exit_code=1)
    assert printed.startswith(f"Error: {other}: ")
    assert re.search(word, printed)
    assert len(printed.splitlines()) == 1
    assert len(printed) < 1000
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("put", "word"),
    [
        ({"tiny/test/bs2/metrics.json": None}, "is missing"),
        ({"tiny/test/bs2/metrics.json": "tiny/test/bs3/metrics.json"}, "was changed"),
        ({"tiny/test/bs4/metrics.json": "tiny/test/bs3/metrics.json"}, "not listed"),
        ({METADATA: None}, METADATA),
    ],
)
def test_an_archive_holds_what_it_lists(archive, tmp_path, put, word):
    """Else a batch size that was taken away is not replayed, without a word."""
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(other, "w") as new:
        for name in {name: name for name in old.namelist()} | put:
            if source := put.get(name, name):
                new.writestr(name, old.read(source))
    with pytest.raises(BadFile, match=word):
        unpack_records(other, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    with zipfile.ZipFile(archive) as old:
        listed = {one["@id"]: one.get("sha256") for one in json.loads(old.read(METADATA))["@graph"]}
        for name in set(old.namelist()) - {METADATA}:
            assert hashlib.sha256(old.read(name)).hexdigest() == listed[name]


def pack(archive, path, *, rename=(), edit=lambda content, is_metadata: content):
    """Copy an archive with other names in it, and with other metadata."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(re.sub(*rename, name) if rename else name, edit(content, name == METADATA))
    return path


@pytest.mark.parametrize("file", ["metrics.json", "infer.json", "inside.json"])
def test_records_of_two_batch_sizes_that_were_exchanged_are_refused(archive, tmp_path, file):
    """Also where the list of records was made to match."""
    other = tmp_path / "other.zip"
    names = {f"tiny/test/bs{a}/{file}": f"tiny/test/bs{b}/{file}" for a, b in ((2, 3), (3, 2))}
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(names.get(name, name))
            if name == METADATA:
                content = re.sub(rb',\s*"sha256": "[0-9a-f]{64}"', b"", content)
            new.writestr(name, content)
    with pytest.raises(BadFile, match="another result"):
        unpack_records(other, tmp_path / "unpacked")


def encrypt(content):
    """Set the mark of encrypted files in all headers of an archive."""
    for header, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content = re.sub(
            re.escape(header) + b".{%d}" % (place - 4),
            lambda found: found[0] + b"\1",
            content,
            flags=re.DOTALL,
        )
    return content


def longer(content, is_metadata):
    return content.replace(b"{", b'{"x": ' + b"1" * 5000 + b", ", 1) if is_metadata else content


def as_bs02(content, is_metadata):
    return re.sub(rb"/bs(\d)", rb"/bs0\1", content) if is_metadata else content


def in_top(content, is_metadata):
    return content.replace(b"tiny/", b"top/") if is_metadata else content


@pytest.mark.parametrize(
    ("rename", "edit", "word"),
    [
        ((), longer, "the number 111"),
        ((r"/bs(\d)", r"/bs0\1"), as_bs02, "no run"),
        (("^tiny/", "top/"), in_top, "'tiny', not 'top'"),
        (("^tiny/", "top/"), lambda content, _: content, "is missing"),
        (("^", "top/"), lambda content, _: content, f"without {METADATA}"),
    ],
    ids=["digits", "bs02", "renamed", "renamed-unlisted", "packed-deeper"],
)
def test_an_odd_archive_is_refused_in_a_sentence(archive, tmp_path, rename, edit, word):
    other = pack(archive, tmp_path / "other.zip", rename=rename, edit=edit)
    with pytest.raises(BadFile, match=word) as error:
        unpack_records(other, tmp_path / "unpacked")
    assert str(tmp_path / "unpacked") not in str(error.value)


def test_an_encrypted_archive_is_called_so(archive, tmp_path):
    other = tmp_path / "other.zip"
    shutil.copy(archive, other)
    other.write_bytes(encrypt(other.read_bytes()))
    with pytest.raises(BadFile, match="encrypted") as error:
        unpack_records(other, tmp_path / "unpacked")
    assert "Error" not in str(error.value)


def test_a_full_disk_is_not_blamed_on_the_archive(archive, tmp_path):
    (tmp_path / "unpacked").touch()
    with pytest.raises(OSError, match="unpacked"):
        unpack_records(archive, tmp_path / "unpacked")


def test_nothing_of_an_earlier_archive_is_replayed(archive, tmp_path, monkeypatch):
    """Not even through a link in the place where archives are unpacked."""
    elsewhere = tmp_path / "elsewhere"
    unpack_records(archive, elsewhere)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.archive").symlink_to(elsewhere)
    monkeypatch.setattr(verification, "REPLAYED", str(tmp_path / "home"))
    text = tmp_path / "text.zip"
    text.touch()
    gma("replay", text, exit_code=1)
    assert not (tmp_path / "home/.archive").exists()
    assert elsewhere.is_dir()


def test_nothing_is_computed_where_one_run_cannot_be(archive, tmp_path, monkeypatch):
    """And no verdict of an earlier replay is left, where they can."""

    def list_but_one(run, **given):
        if run.batch_size == refused:
            raise ValueError("asked for")
        return list_overrides(run, **given)

    def compute(parameters, **others):
        computed.append(parameters)
        assert not [*home.rglob(verification.VERDICTS)]
        return ["failed"]

    home, computed = tmp_path / "home", []
    monkeypatch.setattr(verification, "REPLAYED", str(home))
    monkeypatch.setattr(verification, "list_overrides", list_but_one)
    monkeypatch.setattr(verification, "run_stages", compute)
    earlier = home / "tiny/test/bs3"
    earlier.mkdir(parents=True)
    (earlier / verification.VERDICTS).touch()
    for refused in (3, None):
        gma("replay", archive, exit_code=1)
        assert len(computed) == (refused is None)


def test_the_archive_is_an_ro_crate_without_a_folder_of_this_machine(archive, tmp_path):
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        crate = json.loads(file.read("ro-crate-metadata.json"))
        file.extractall(tmp_path)
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert {part["@id"] for part in entities["./"]["hasPart"]} == names - {"ro-crate-metadata.json"}
    assert entities["#gma-lib"]["softwareVersion"]
    assert str(Path.home()) not in json.dumps(crate)
    assert ROCrate(tmp_path).root_dataset["citation"]  # as the library of the format reads it
    for name in ("LICENSE", "CITATION.cff", "requirements.lock"):
        assert (tmp_path / name).read_bytes() == (RESOURCES / name).read_bytes()
        assert entities[name]["sha256"] == hash_file(RESOURCES / name)
        assert entities[name]["description"]


def test_records_that_unpack_to_more_than_records_do_stay_packed(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("tiny/test/bs1/metrics.json", b"[" * 10**7)
    with pytest.raises(BadFile, match="unpack to"):
        unpack_records(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
