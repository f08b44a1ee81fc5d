"""A sealed folder is used as it was built, or built again."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from gma_lib.runs import code, sealed
from gma_lib.runs.sealed import SEAL, open_sealed

MADE_FROM = {"model": "abc", "size": (128, 160)}


def build(folder):
    (folder / "model.bin").write_bytes(bytes(range(256)) * 16)
    (folder / "empty").touch()


@pytest.fixture
def opened(tmp_path):
    """Open the folder and return what was said."""

    def open_it(made_from=MADE_FROM, **options):
        said = []
        folder = open_sealed(tmp_path / "built", made_from, build, say=said.append, **options)
        assert (folder / "model.bin").read_bytes() == bytes(range(256)) * 16
        assert {path.name for path in folder.iterdir()} == {"model.bin", "empty", SEAL}
        assert {path.name for path in tmp_path.iterdir()} == {"built"}
        return said

    return open_it


def flip(path):
    """Change one byte; size and modification time stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to .*file.*GMA_CACHE"):
        open_sealed(tmp_path / "file" / "built", MADE_FROM, build)


def test_a_folder_is_built_once(opened, tmp_path):
    assert opened() == []
    before = (tmp_path / "built" / "model.bin").stat().st_ino
    assert opened(first="built for the first time") == []
    assert (tmp_path / "built" / "model.bin").stat().st_ino == before
    shutil.rmtree(tmp_path / "built")
    assert opened(first="built for the first time") == ["built for the first time"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: flip(folder / "model.bin"), "model.bin"),
        (lambda folder: os.truncate(folder / "model.bin", 100), "model.bin"),
        (lambda folder: os.truncate(folder / "model.bin", 0), "model.bin"),
        (lambda folder: (folder / "empty").unlink(), "empty"),
        (lambda folder: (folder / "model_refine.bin").touch(), "model_refine.bin"),
        (lambda folder: (folder / SEAL).unlink(), "seal"),
        (lambda folder: flip(folder / SEAL), "seal"),
        (lambda folder: (folder / SEAL).write_text("[]"), "seal"),
        (lambda folder: (folder / SEAL).write_text("null"), "seal"),
        (lambda folder: (folder / SEAL).write_text("{}"), "seal"),
        (lambda folder: (folder / SEAL).write_bytes(b"\xff\xfe"), "seal"),
        (lambda folder: (shutil.rmtree(folder), folder.touch()), "seal"),
        (lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")), "seal"),
        (lambda folder: shutil.rmtree(folder), None),
    ],
)
def test_whatever_was_changed_is_built_again_with_one_line(opened, tmp_path, damage, named):
    opened()
    damage(tmp_path / "built")
    said = opened()
    assert len(said) == (named is not None)
    assert named is None or named in said[0]
    assert opened() == []


def test_every_byte_of_the_seal_counts(opened, tmp_path):
    opened()
    seal = tmp_path / "built" / SEAL
    whole = seal.read_bytes()
    for place in range(0, len(whole), 3):
        for bit in (1, 32):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            seal.write_bytes(damaged)
            fault = sealed.find_fault(seal.parent, MADE_FROM)
            assert fault or json.loads(damaged) == json.loads(whole)  # white space


def test_a_folder_made_from_something_else_is_not_used(opened):
    opened()
    assert len(opened(MADE_FROM | {"model": "abd"})) == 1


def test_code_counts_where_it_decides(opened, tmp_path, monkeypatch):
    source = tmp_path.with_name("source") / "gma_lib"
    source.mkdir(parents=True)
    monkeypatch.setattr(code, "PACKAGE", source)
    monkeypatch.setattr(sealed, "list_loaded_modules", lambda: ["gma_lib.decides"])
    module = source / "decides.py"
    for text, lines in [("a = 1", 0), ("a = 1  # one", 0), ("a = 2", 1), (None, 1)]:
        module.unlink() if text is None else module.write_text(text)
        if text is None:
            assert "gma_lib.decides" in sealed.find_fault(tmp_path / "built", MADE_FROM)
        else:
            assert len(opened(with_code=True)) == lines


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        open_sealed(tmp_path / "built", MADE_FROM, lambda folder: build(folder) or 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_killed_build_leaves_nothing_that_the_next_start_does_not_remove(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from gma_lib.runs.sealed import open_sealed\n"
        "def build(folder):\n"
        "    (folder / 'model.bin').write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
        f"open_sealed(Path(sys.argv[1]), {MADE_FROM}, build)"
    )
    other = open_sealed(tmp_path / "other", MADE_FROM, build)
    command = [sys.executable, "-c", program, str(tmp_path / "built")]
    assert subprocess.run(command).returncode == -9
    open_sealed(other, MADE_FROM, build)
    assert {path.name for path in tmp_path.iterdir()} == {"other", ".built.lock"}
    open_sealed(tmp_path / "built", MADE_FROM, build)
    assert {path.name for path in tmp_path.iterdir()} == {"other", "built"}


def test_of_processes_that_start_together_one_builds(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from gma_lib.runs.sealed import open_sealed\n"
        "def build(folder):\n"
        "    print('building', flush=True); time.sleep(1); (folder / 'model.bin').touch()\n"
        f"open_sealed(Path(sys.argv[1]), {MADE_FROM}, build)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "built")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert sum(process.communicate()[0].count(b"building") for process in processes) == 1
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["built"]
