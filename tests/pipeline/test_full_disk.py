"""A disk that is full: one sentence, and nothing that looks like a result."""

import errno
import json
import resource
import subprocess
from functools import partial

import pytest
from command_line import gma
from conftest import list_command

from gma_lib.pipeline import runner
from gma_lib.runs.files import PROJECT

NOTEBOOK = json.dumps({"cells": [], "metadata": {}})
FULL = OSError(errno.ENOSPC, "No space left on device")


def reproduce(outputs, **options):
    command = ["reproduce", "--profile=tiny", "--until=01_data", f"--set=outputs={outputs}"]
    return gma(*command, **options)


def list_left(outputs):
    """All but locks, what is known of files' digests, and the stamp of the failed stage."""
    known = {".lock", ".machine.lock", ".digests.json", ".01_data.json"}
    files = [path for path in outputs.rglob("*") if path.is_file()]
    return [path.name for path in files if path.name not in known]


@pytest.fixture
def cells(monkeypatch):
    """What stands for the execution of cells: leaves this text as the notebook, and raises this."""

    def set_cells(text, error=None):
        def execute(job, running):
            (job.folder / "index.json").write_text("{}")
            running.write_text(text)
            if error:
                raise error

        monkeypatch.setattr(runner, "_execute_cells", execute)

    return set_cells


def test_no_room_for_the_page(tmp_path, cells, monkeypatch):
    """The notebook was whole; without its page and its stamp it is no result."""

    def write_page(notebook, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(notebook.with_suffix(".html")))

    cells(NOTEBOOK)
    monkeypatch.setattr("gma_lib.cli.reproduce.notebook_to_html", write_page)
    last = reproduce(tmp_path / "outputs", exit_code=1).splitlines()[-1]
    assert "01_data.html: No space left on device" in last
    assert not list_left(tmp_path / "outputs")


def test_no_room_for_the_notebook(tmp_path, cells):
    cells(NOTEBOOK[:9], FULL)
    last = reproduce(tmp_path / "outputs", exit_code=1).splitlines()[-1]
    assert f"cannot write to {tmp_path}" in last
    assert "No space left" in last
    assert not list_left(tmp_path / "outputs")  # though its last cell had ended


@pytest.mark.exhaustive
def test_a_file_that_cannot_grow(tmp_path):
    """A real run, in which no file may have more bytes than the notebook with its pictures."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))
    command = list_command(tmp_path, "demo_frames=2", until="01_data")
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, preexec_fn=limit)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert "cannot write to" in last
    assert "File too large" in last
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.ipynb")) + list(tmp_path.rglob("*.html"))
