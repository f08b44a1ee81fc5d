"""What an installation needs, told before anything is installed: this file imports the standard
library alone, and runs as ``python gma_lib/doctor/installation.py``.
"""

import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# GB of disk for .venv, what pip keeps of its downloads, and the results of the demo
SPACE, SPACE_WITH_CUDA = 4, 10
SECONDS = 10  # for an answer from another machine
SMALL = "typing_extensions"  # a package of 50 kB that the installation needs


class Finding(NamedTuple):
    """One line: OK, NOT OK (needed, with the remedy), or absent (optional, with what it would
    give).
    """

    word: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.word:7} {self.what:24} {self.detail}".rstrip()


def need(good: bool, what: str, detail: str, remedy: str) -> Finding:
    """Return a finding about what is needed."""
    if good:
        return Finding("OK", what, detail)
    return Finding("NOT OK", what, f"{detail}: {remedy}".lstrip(": "))


def offer(there: bool, what: str, detail: str, absent: str) -> Finding:
    """Return a finding about what is optional."""
    return Finding("OK" if there else "absent", what, detail if there else f"optional: {absent}")


def check_installation(index: str | None = None) -> "Iterator[Finding]":
    """Everything that an installation into the current folder needs, or could use, with PyTorch
    from this index; "" is pip's default index.
    """
    python = check_python()
    yield python
    if python.word != "OK":  # the rest would be about another one
        return
    yield _venv()
    folder = os.getcwd()
    yield need(os.access(folder, os.W_OK), "folder", folder, "make it writable, or use another")
    has_gpu = shutil.which("nvidia-smi") is not None
    yield offer(has_gpu, "NVIDIA GPU", "", "everything runs on the CPU")
    if index is None:
        index = "" if has_gpu else CPU_WHEELS
    yield _wheels(index)
    # whether these wheels can be had, pip tells: it knows its proxy and certificates
    has_cuda = sys.platform == "linux" and "cpu" not in index
    needed = SPACE_WITH_CUDA if has_cuda else SPACE
    free = shutil.disk_usage(folder).free / 1e9
    remedy = f"{needed} GB are needed{' with CUDA' * has_cuda}: delete something, or use another"
    yield need(free > needed, "free disk", f"{free:.0f} GB", remedy)
    yield _index()
    yield offer(shutil.which("make") is not None, "make", "", "gma has a command for each target")
    yield offer(shutil.which("git") is not None, "git", "", "results then name no commit")
    yield Finding("OK", "compiler", "not needed: every package comes built")


def check_python() -> Finding:
    """The version of Python."""
    good, version = sys.version_info >= (3, 11), sys.version.split()[0]
    return need(
        good, "Python", version, "install Python 3.11 or newer: make BASE_PYTHON=python3.11"
    )


def _venv() -> Finding:
    command = [sys.executable, "-I", "-c", "import venv, ensurepip"]
    done = subprocess.run(command, capture_output=True, check=False)
    return need(done.returncode == 0, "venv", "", "install it (Debian: apt install python3-venv)")


def _index() -> Finding:
    """Ask pip for a small package: it knows its index, proxy and certificates."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-cache-dir", "--timeout", str(SECONDS), "--retries", "0"]
        command += ["--dest", folder, SMALL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "rror" in line] or ["no answer"]
    remedy = "check the network, or name a proxy or a mirror (HTTPS_PROXY, PIP_INDEX_URL)"
    detail = "" if done.returncode == 0 else lines[0].strip()[:200]
    return need(done.returncode == 0, "package index", detail, remedy)


def _wheels(index: str) -> Finding:
    if not index:
        return Finding("OK", "PyTorch's wheels", "default index (on Linux with CUDA: 3 GB)")
    index = re.sub("(?<=://)[^/]*@", "", index)  # a password is neither sent nor shown
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=SECONDS):
            return Finding("OK", "PyTorch's wheels", index)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        absent = f"{index} is not reachable ({reason}); the default index instead (on Linux: 3 GB)"
        return Finding("absent", "PyTorch's wheels", f"optional: {absent}")


if __name__ == "__main__":
    found = []
    for finding in check_installation(*sys.argv[1:]):  # as they come: some wait for an answer
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
        found.append(finding.word)
    sys.exit("NOT OK" in found)
