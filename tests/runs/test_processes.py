"""Processes end together, and a lock is held until the last that works under it has ended."""

import fcntl
import os
import signal
import subprocess
import sys

import psutil
import pytest

from gma_lib.runs import processes
from gma_lib.runs.machine import exclusive_machine, locate_machine_lock, shared_machine
from gma_lib.runs.processes import hold_lock

PARENT = """
import subprocess, sys
from pathlib import Path
from gma_lib.runs.processes import hold_lock, tie_child
with hold_lock(Path(sys.argv[1]), "nothing"):
    command = [sys.executable, "-c", sys.argv[2]]
    child = subprocess.Popen(command, **eval(sys.argv[3]))
    print(child.pid, flush=True)
    child.wait()
"""
CHILD = "import time; time.sleep(60)"
DEAF = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(60)"


def start_parent(lock, child=CHILD, options="tie_child()"):
    """A process with a child that sleeps: (process, the child)."""
    command = [sys.executable, "-c", PARENT, str(lock), child, options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, psutil.Process(int(process.stdout.readline()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_child_ends_with_its_parent(tmp_path, number):
    process, child = start_parent(tmp_path / "lock", DEAF)
    with process:
        process.send_signal(number)
    child.wait(2)


def test_a_child_that_is_stopped_ends_too(tmp_path):
    process, child = start_parent(tmp_path / "lock")
    with process:
        child.suspend()
        process.kill()
    child.wait(2)


def test_a_child_holds_the_lock_of_its_parent(tmp_path):
    """Where nothing ends the child, nobody else measures beside it."""
    lock = tmp_path / "lock"
    process, child = start_parent(lock, options="{'pass_fds': tie_child()['pass_fds']}")
    with process:
        process.kill()
    with open(lock) as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
        psutil.wait_procs([child], 2)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("has_prctl", [True, False])
def test_a_parent_that_has_ended_already_is_noticed(has_prctl):
    """Before the child could ask for it, or where the system cannot be asked."""
    code = (
        "import os, time; from gma_lib.runs import processes\n"
        + ("" if has_prctl else "processes._prctl = None\n")
        + "processes.end_with_parent(os.getppid() + 1); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=20)
    assert done.returncode == -signal.SIGKILL


def test_whoever_waits_says_for_what_and_for_how_long(tmp_path, messages, monkeypatch):
    monkeypatch.setattr(processes, "SECONDS_BETWEEN_LINES", 0.3)
    lock = tmp_path / "folder" / "lock"
    process, child = start_parent(lock, "import time; time.sleep(1)")
    with process, hold_lock(lock, "the other one"):
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    first, *more = messages
    assert first == "waiting for the other one"
    assert len(more) >= 2


def test_stages_share_the_machine_and_a_measurement_has_it_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # none that another test holds
    lock = locate_machine_lock()
    with shared_machine(), open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with exclusive_machine(), open(lock) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_lock_is_passed_on_only_while_it_is_held(tmp_path, messages):
    with hold_lock(tmp_path / "lock", "nothing"):
        (number,) = processes.tie_child()["pass_fds"]
        assert os.fstat(number).st_ino == (tmp_path / "lock").stat().st_ino
    assert processes.tie_child()["pass_fds"] == ()
    with hold_lock(tmp_path / "lock", "nothing"):
        assert messages == []  # whoever waits says so
