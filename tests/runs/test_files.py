"""Files are whole or absent, and hashed by content."""

import os
import pickle
import re
import subprocess
import sys

import pytest

from gma_lib.runs import files


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.write_atomically(tmp_path / "a.txt") as partial:
        partial.write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


def test_a_new_file_replaces_the_old_one_at_the_end(tmp_path):
    (file := tmp_path / "folder" / "a.txt").parent.mkdir()
    file.write_text("old")
    with files.write_atomically(file) as partial:
        partial.write_text("new")
        assert partial.suffix == ".txt"
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_hashes_are_of_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.hash_file(tmp_path / "a") == known
    assert files.hash_value({"a": (1, 2), "b": None}) == files.hash_value({"b": None, "a": [1, 2]})
    assert files.hash_value([1]) != files.hash_value([2])


def test_a_write_that_would_not_fit_is_refused_before_it_begins(tmp_path):
    files.require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match="MB are free"):
        files.require_free_space(tmp_path / "not" / "yet", 10**18)


def test_a_file_that_is_cut_short_by_a_limit_is_named(tmp_path):
    """NumPy says then how much was written, and nothing else."""
    code = "import resource, sys, pathlib, numpy as np; from gma_lib.flow.files import write_flow\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    code += "write_flow(pathlib.Path(sys.argv[1]), np.zeros((2, 64, 64)))"
    command = [sys.executable, "-c", code, tmp_path / "a.flo"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert re.search(r"a\.flo: 8192 requested and \d+ written; is the disk full\?", done.stderr)
    assert not list(tmp_path.iterdir())


def test_whatever_a_decoder_raises_is_a_bad_file(tmp_path):
    (file := tmp_path / "a.txt").write_text("x")
    for fault, found in (
        (AttributeError("no tag\nmore"), "AttributeError: no tag"),
        (ValueError("3 bytes"), "3 bytes"),
        (KeyError(), "KeyError"),
        (PermissionError(13, "Permission denied", "a.txt"), "Permission denied"),
    ):
        with pytest.raises(files.BadFile) as error, files.reading(file, "a note", "Write it"):
            raise fault
        assert error.value.args == (file, found, "a note", "Write it")
        assert all(str(one) in str(error.value) for one in error.value.args)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    with files.reading(file, "a note") as path:
        assert path.read_text() == "x"
    with pytest.raises(KeyboardInterrupt), files.reading(file, "a note"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[2Jb.png", "a\udcffb.png"])
def test_a_name_that_cannot_be_printed_is_quoted(name):
    assert str(files.BadFile(files.Path(name), "x", "y")).startswith(f"{name!r}: x")
    assert str(files.BadFile(files.Path("\u00e9 b"), "x", "y")).startswith("\u00e9 b: x")


def test_what_is_no_file_is_not_opened(tmp_path):
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for name, found in (("", "a folder"), ("pipe", "a pipe"), ("none", "no such file")):
        with pytest.raises(files.BadFile, match=found), files.reading(tmp_path / name, "a note"):
            pytest.fail("was opened")
    with pytest.raises(FileNotFoundError), files.reading(tmp_path / "none", "a note"):
        pytest.fail("was opened")


def test_the_disk_holds_a_folder_before_it_gets_its_name(tmp_path, monkeypatch):
    partial = tmp_path / "partial"
    (partial / "inside").mkdir(parents=True)
    (partial / "inside/a.txt").write_text("whole")
    wanted = {path.stat().st_ino for path in (partial, *partial.rglob("*"))}
    kept, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda one: kept.append(os.fstat(one).st_ino) or fsync(one))
    monkeypatch.setattr(os, "replace", lambda *both: kept.append("named") or replace(*both))
    files.put_in_place(partial, tmp_path / "whole")
    assert {*kept[:-2]} == wanted
    assert kept[-2:] == ["named", tmp_path.stat().st_ino]
    assert (tmp_path / "whole/inside/a.txt").read_text() == "whole"
