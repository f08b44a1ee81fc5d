"""What killed processes were writing is removed; what others are writing is not."""

import os
import subprocess
import sys
import tempfile

import psutil
import pytest

from gma_lib.runs import leftovers
from gma_lib.runs.files import write_atomically

WRITER = """
import sys, time
from pathlib import Path
from gma_lib.runs.files import write_atomically
with write_atomically(Path(sys.argv[1]) / "file.txt") as file, \\
        write_atomically(Path(sys.argv[1]) / "folder") as folder:
    file.write_text("half")
    folder.mkdir()
    (folder / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing a file and a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_a_killed_writers_files_go_and_a_running_ones_stay(writer, tmp_path):
    mine = tmp_path / ".gma.toml"
    mine.write_text("a dot and a name like ours")
    leftovers.remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table
    with write_atomically(tmp_path / "next.txt") as partial:
        partial.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {".gma.toml", "next.txt"}


def test_a_process_that_got_the_number_of_a_killed_one_is_another(writer, tmp_path):
    for path in tmp_path.iterdir():
        before, _, rest = path.name.partition(f"-{writer.pid}-")
        started, _, name = rest.partition(".")
        path.rename(tmp_path / f"{before}-{writer.pid}-{int(started) - 60}.{name}")
    leftovers.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_running_writer_s_files_stay_when_the_clock_is_set(writer, tmp_path, monkeypatch):
    """Then the system tells another time since 1970 for the start of everything."""
    created, booted = psutil.Process.create_time, psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: booted - 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda one: created(one) - 3600)
    leftovers.remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_numbers_after_a_restart_are_another_process(writer, tmp_path, monkeypatch):
    """A machine that starts the same way each time gives its processes the same numbers."""
    other = tmp_path.with_name("boot_id")
    other.write_text("0b1c2d3e-0000")
    monkeypatch.setattr(leftovers, "BOOT_ID", other)
    leftovers.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_containers_with_one_host_name_have_processes_of_different_names(monkeypatch):
    """Also where both count the same number for a process that started at the same time."""
    named = []
    for space in ("pid:[1]", "pid:[2]", "pid:[1]"):
        monkeypatch.setattr(leftovers.os, "readlink", lambda path, space=space: space)
        for cached in (leftovers._name_host, leftovers._name_owner):
            cached.cache_clear()
        named.append(leftovers.name_process())
    leftovers._name_host.cache_clear()
    leftovers._name_owner.cache_clear()
    assert named[0] == named[2] != named[1]


def test_files_of_another_machine_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "_name_host", lambda: "0000")
    elsewhere = tmp_path / ".gma-0001-1-1.file.txt"
    for path in (elsewhere, tmp_path / ".gma-0000-1-1.file.txt"):
        path.write_text("half")
    leftovers.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_files_of_a_process_that_this_user_may_not_see_stay(writer, tmp_path, monkeypatch):
    """As with /proc mounted with hidepid=1."""

    def hide(self):
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "status", hide)
    leftovers.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir())


def test_a_name_as_long_as_file_systems_take_can_be_written(tmp_path):
    path = tmp_path / ("é" * 125 + ".flo")
    partial = leftovers.name_partial(path)
    partial.touch()
    assert partial.suffix == ".flo"
    assert leftovers.name_partial(path.with_stem("e" + path.stem[1:])) != partial
    partial.rename(path)


FOLDER = """
import time
from gma_lib.runs.leftovers import temporary_folder
with temporary_folder() as folder:
    (folder / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_s_temporary_folder_goes_with_the_next(tmp_path, monkeypatch):
    with subprocess.Popen(
        [sys.executable, "-c", FOLDER],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with leftovers.temporary_folder() as mine:
            assert mine.stat().st_mode & 0o777 == 0o700
            assert len(list(tmp_path.iterdir())) == 2
        assert len(list(tmp_path.iterdir())) == 1
        process.kill()
    leftovers.remove_leftovers_once.cache_clear()  # as in another process
    with leftovers.temporary_folder() as mine, leftovers.temporary_folder() as other:
        assert {*tmp_path.iterdir()} == {mine, other}
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_that_cannot_be_listed_is_used(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(leftovers.Path, "iterdir", refuse)
    with leftovers.temporary_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
