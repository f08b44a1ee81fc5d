"""What make installs, in which order, and what it says where something fails."""

import os
import pty
import shutil
import subprocess

import pytest

from gma_lib.runs.files import PROJECT

# Stands in for Python: notes how it was called, and fails where a test says so.
PYTHON = """#!/bin/bash
printf '%s\\n' "$*" >> calls
if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
if [[ "$*" == $FAILS ]]; then
  printf 'Collecting torch\\nERROR: No space left on device\\n' >&2
  exit 1
fi
"""


@pytest.fixture
def install(tmp_path):
    """Call make in a copy of what it reads; returns its exit code, lines, and calls of Python."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    outside = {name: text for name, text in os.environ.items() if "MAKE" not in name}

    def run(index, fails="nothing", output=subprocess.PIPE):
        command = ["make", ".venv/.ready", "BASE_PYTHON=./python", f"TORCH_INDEX={index}"]
        done = subprocess.run(
            command, cwd=tmp_path, env=outside | {"FAILS": fails}, stdout=output, text=True
        )
        return done.returncode, done.stdout, (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ([], set()),
        (["BACKEND=torch"], {"--backend=torch"}),
        (["BACKEND=ascend"], {"--backend=ascend", "--precision=float16"}),
        (["PRECISION=int8"], {"--precision=int8"}),
    ],
)
def test_what_is_not_given_is_as_the_profile_says(tmp_path, given, options):
    """`make reproduce PROFILE=mine` computed with another backend than params/mine.yaml."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    outside = {
        name: text
        for name, text in os.environ.items()
        if "MAKE" not in name and name not in ("BACKEND", "PRECISION")
    }
    command = ["make", "reproduce", "PYTHON=./python", "PROFILE=mine", *given]
    subprocess.run(command, cwd=tmp_path, env=outside | {"FAILS": "nothing"}, check=True)
    (call,) = (tmp_path / "calls").read_text().splitlines()
    words = {word for word in call.split() if word.startswith(("--backend", "--precision"))}
    assert words == options


def test_copies_for_jupyterlab_follow_their_originals(tmp_path):
    """Whatever the times say: an autosave makes a copy newer, a release keeps files' times."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    original = tmp_path / "notebooks/01_data.ipynb"
    original.parent.mkdir()
    original.write_text("first")
    copies = tmp_path / "outputs/lab/notebooks"

    def lab():
        outside = {name: text for name, text in os.environ.items() if "MAKE" not in name}
        command = ["make", "lab", "PYTHON=./python"]
        subprocess.run(command, cwd=tmp_path, env=outside | {"FAILS": "nothing"}, check=True)
        return sorted(path.read_text() for path in copies.iterdir())

    assert lab() == ["first"]
    shutil.rmtree(tmp_path / "outputs/lab/.notebooks")  # as an earlier version left it
    assert lab() == ["first"]
    (copies / "01_data.ipynb").write_text("mine")
    assert lab() == ["mine"]
    original.write_text("second")
    os.utime(original, (0, 0))
    assert lab() == ["mine", "second"]
    assert (copies / "01_data.ipynb").read_text() == "second"


CHECK = "gma_lib/doctor/installation.py"


def test_cpu_wheels_come_from_their_index(install):
    code, said, (check, _, torch, *rest) = install("https://cpu")
    assert code == 0
    assert check == f"{CHECK} https://cpu"
    assert "torch" in torch
    assert "--index-url https://cpu" in torch
    assert len(rest) == 2
    assert not any("--index-url" in call for call in rest)
    assert "--quiet" in torch
    assert "ERROR" not in said


def test_where_they_cannot_be_had_the_reason_is_said_and_the_disk_checked_again(install):
    code, said, calls = install("https://cpu", fails="*--index-url*")
    assert code == 0
    assert "No space left on device" in said
    assert [call for call in calls if CHECK in call] == [f"{CHECK} https://cpu", f"{CHECK} "]
    assert len([call for call in calls if "torch" in call]) == 2


def test_too_little_disk_ends_it(install):
    code, _, calls = install("https://cpu", fails="*@(--index-url*|installation.py )")
    assert code != 0
    assert calls[-1] == f"{CHECK} "


def test_a_terminal_gets_progress_bars(install):
    ours, theirs = pty.openpty()
    code, _, calls = install("", output=theirs)
    os.close(ours)
    os.close(theirs)
    assert code == 0
    assert len([call for call in calls if "pip install" in call]) == 3
    assert not any("--quiet" in call for call in calls)


# Stands in for pip-audit: notes what it is asked about, and answers as a test says.
AUDIT = """#!/bin/bash
printf '%s\\n' "$@" > asked
while [ $# -gt 0 ]; do if [ "$1" = --requirement ]; then cat "$2" >> asked; fi; shift; done
printf "$STDOUT"
printf "$STDERR" >&2
exit $CODE
"""
FOUND = "Name Version ID Fix Versions\\nnumpy 2.4.6 CVE-1 2.4.7\\n"


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "said", "ends"),
    [
        (0, "", "No known vulnerabilities found", "no known vulnerabilities in torch==", 0),
        (1, FOUND, "Found 1 known vulnerability in 1 package", "numpy 2.4.6 CVE-1 2.4.7", 2),
        (
            1,
            "",
            "Traceback\\n  File x\\nConnectionError: no name\\n",
            "(ConnectionError: no name)",
            2,
        ),
        (1, "", "ERROR:pip_audit._cli:torch: not found on PyPI", "torch: not found on PyPI)", 2),
    ],
)
def test_an_audit_says_what_is_known(tmp_path, code, stdout, stderr, said, ends):
    """Of the lock and of PyTorch, which is not in it; a package that could not be looked up is no
    package without vulnerabilities.
    """
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "audit").write_text(AUDIT)
    (tmp_path / "audit").chmod(0o755)
    answer = {"CODE": str(code), "STDOUT": stdout, "STDERR": stderr}
    outside = {name: text for name, text in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", "audit", "AUDIT=./audit"],
        cwd=tmp_path,
        env=outside | answer,
        capture_output=True,
        text=True,
    )
    assert done.returncode == ends
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "make: ***" not in line]
    assert said in lines[-1]
    assert len(lines) == (2 if stdout else 1)
    asked = (tmp_path / "asked").read_text()
    assert "--strict" in asked
    assert "numpy==" in asked
    assert "torch==2.13.0" in asked


def test_an_audit_without_its_tool_names_it(tmp_path):
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(PROJECT / name, tmp_path)
    command = ["make", "audit", "AUDIT=not-there --x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no not-there: install uv" in done.stderr.splitlines()[0]
