"""What is sent names no folder of a user."""

import json
import platform
import re
import zipfile
from pathlib import Path

import pytest
from conftest import open_tiny

from gma_lib.report import private
from gma_lib.runs import clusters, parcels
from gma_lib.runs.files import PROJECT
from gma_lib.verify.replay import unpack_records
from gma_lib.verify.values import collect_recorded

HOME, ROOT = "/home", "/root"  # apart, for the test that no path of a machine is committed
WORDS = {
    "/data/ann's & co": "frames",
    f"{HOME}/ann": "~",
    f"{HOME}/ann/gma": "project",
    "/root": "~",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"File {HOME}/ann/gma/x.py, line 3", "File project/x.py, line 3"),
        (f"{HOME}/ann/gma", "project"),
        (f"{HOME}/ann/gma2", "~/gma2"),
        (json.dumps({"root": "/data/ann's & co"}), '{"root": "frames"}'),
        ("<td>/data/ann&#x27;s &amp; co/x</td>", "<td>frames/x</td>"),
        ("file:///data/ann%27s%20%26%20co/x", "file://frames/x"),
        (f"of {HOME}/bob/y", f"of {HOME}/user/y"),
        ("of C:\\\\Users\\\\Bob\\\\y", "of C:\\\\Users\\\\user\\\\y"),
        (json.dumps(f"of\n{HOME}/bob/y"), json.dumps(f"of\n{HOME}/user/y")),
        (f"iVBORw0KGgo{HOME}/AAAA", f"iVBORw0KGgo{HOME}/AAAA"),
        (f'"{ROOT}/x"', '"~/x"'),
        # a picture in base64 may hold such letters by chance
        (f"iVBORw0KGgo{ROOT}/AAAA", f"iVBORw0KGgo{ROOT}/AAAA"),
        ("/homework/annex", "/homework/annex"),
    ],
)
def test_folders_become_names(text, expected):
    assert private.make_shortener(WORDS)(text) == expected


def test_a_root_as_home_changes_nothing(monkeypatch):
    """As of a user that a container does not know; nor does a run in such a folder."""
    monkeypatch.setenv("HOME", "/")
    folders = private._list_folders([])
    assert "/" in folders
    text = "// a / b <br /> /x"
    assert private.make_shortener(folders)(text) == text
    assert private.make_shortener({"/": "outputs", "/data": "frames"})("/ /data/x") == "/ frames/x"


def test_a_name_of_the_user_in_another_folder(monkeypatch):
    monkeypatch.setenv("HOME", f"{HOME}/drift")
    shorten = private.make_shortener({})
    assert shorten('"/scratch/drift/x"') == '"/scratch/user/x"'
    assert shorten("'/scratch/drift' (No space left)") == "'/scratch/user' (No space left)"
    assert shorten("(/scratch/drift (No space left)") == "(/scratch/user (No space left)"
    assert shorten('"a\\n/scratch/drift: full"') == '"a\\n/scratch/user: full"'
    assert shorten('"/scratch/drifting"') == '"/scratch/drifting"'
    assert shorten('"clean/drift/frame_0001"') == '"clean/drift/frame_0001"'  # a scene of this name


def test_a_notebook_names_no_machine_user_or_scheduler():
    names = {"ann-laptop.lan": "machine", "ann-laptop": "machine", "zelda": "user", "flow": "user"}
    rename = private.make_renamer(names | {"10.1.2.3:8786": "scheduler", "": "user", "zoe": "user"})
    for text, expected in {
        "tcp://ann-laptop:80 by zelda": "tcp://machine:80 by user",
        '"\\nzelda@ann-laptop.lan"': '"\\nuser@machine"',
        'cluster = "dask:10.1.2.3:8786"': 'cluster = "dask:scheduler"',
    }.items():
        assert rename(text) == expected
    for text in ("the flow of zoe", "clean/zelda/frame_0001", "zeldas", "iVBORw0KGgo/zelda+"):
        assert rename(text) == text


def test_a_notebook_that_failed_names_no_worker(monkeypatch, tmp_path):
    """Of whatever machine: the messages are those of the package."""
    monkeypatch.setattr(platform, "node", lambda: "bobs-pc")
    said = []
    for fail in (
        lambda: clusters._require_alike({"a": 1}, {"a": 2}, "bobs-pc"),
        lambda: parcels._require_same(Path("a.png"), "0", "1"),
    ):
        with pytest.raises(ValueError, match="bobs-pc") as error:
            fail()
        said.append(str(error.value))
    monkeypatch.setattr(platform, "node", lambda: "ann-laptop")
    notebook = tmp_path / "04_infer.failed.ipynb"
    notebook.write_text(json.dumps([*said, "on ann-laptop", "the worker processes of a scheduler"]))
    ((_, text),) = private.read_without_folders([notebook], [])
    assert "bobs-pc" not in text
    assert "ann-laptop" not in text
    assert "the worker processes of" in text


def test_an_archive_names_no_folder_of_this_machine(reported, archive, tmp_path):
    """Its numbers are the run's, and its records still rest on one another."""
    with zipfile.ZipFile(archive) as file:
        texts = {name: file.read(name).decode() for name in file.namelist() if "jpg" not in name}
    named = [
        name
        for name, text in texts.items()
        for folder in (reported, reported.parent, PROJECT, Path.home())
        if re.search(rf"(?<![\w+/=]){re.escape(str(folder))}(?!\w)", text)
    ]
    assert named == []
    assert str(reported) in (reported / "tiny/data/index.json").read_text()
    assert json.loads(texts["tiny/data/index.json"])["root"] == "outputs/tiny/data/frames"
    unpacked = unpack_records(archive, tmp_path)[0]
    run = open_tiny(reported)
    assert collect_recorded(unpacked) == collect_recorded(run)
