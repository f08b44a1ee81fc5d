"""What of an archive is read, and with which parameters its runs are computed again."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from gma_lib.pipeline.parameters import resolve_parameters
from gma_lib.report.index import write_archive
from gma_lib.runs.files import BadFile
from gma_lib.runs.records import read_json, write_json
from gma_lib.verify.replay import list_overrides, read_surroundings, unpack_records
from gma_lib.verify.values import collect_recorded


@pytest.fixture(scope="module")
def archive(reported):
    return write_archive(reported, "tiny")


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


def test_frames_and_weights_are_asked_for(archive, tmp_path):
    run = unpack_records(archive, tmp_path)[0]
    index = read_json(run.data_folder / "index.json", made_by="01_data")
    write_json(run.data_folder / "index.json", index | {"description": "MPI-Sintel"})
    with pytest.raises(ValueError, match="--sintel"):
        list_overrides(run, sintel=None, checkpoint=None)
    assert list_overrides(run, sintel="/data", checkpoint=None)["sintel_root"] == "/data"
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    with pytest.raises(ValueError, match="SHA-256"):
        list_overrides(run, sintel="/data", checkpoint=str(other))


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "hostile.zip"]


@pytest.mark.parametrize("content", [b"", b"PK\3\4 damaged", None])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "report.zip"
    if content is None:
        zipfile.ZipFile(path, "w").close()
    else:
        path.write_bytes(content)
    with pytest.raises(BadFile):
        unpack_records(path, tmp_path / "unpacked")


def test_a_record_of_another_version_is_refused(archive, tmp_path):
    other = tmp_path / "old.zip"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name).replace(b'"schema": 3', b'"schema": 2')
            new.writestr(name, content)
    with pytest.raises(ValueError, match="schema 2"):
        unpack_records(other, tmp_path / "unpacked")


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
