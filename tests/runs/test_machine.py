"""The machine is described, and held by one measurement or by several stages."""

import subprocess
import sys
import time

from gma_lib.runs import machine
from gma_lib.runs.machine import exclusive_machine, shared_machine


def test_a_measurement_waits_until_nobody_works(tmp_path):
    lock = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from gma_lib.runs.machine import shared_machine\n"
        "with shared_machine(Path(sys.argv[1])): print('in', flush=True); time.sleep(1.5)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        start = time.monotonic()
        with shared_machine(lock):  # two stages may share the machine
            assert time.monotonic() - start < 0.5
        with exclusive_machine(lock):  # a measurement waits
            assert time.monotonic() - start > 1.0


def test_a_stage_waits_for_a_measurement_and_says_so(tmp_path, caplog):
    lock = tmp_path / "folder" / "lock"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from gma_lib.runs.machine import exclusive_machine\n"
        "with exclusive_machine(Path(sys.argv[1])): print('in', flush=True); time.sleep(0.5)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with caplog.at_level("INFO"), shared_machine(lock):
            assert other.wait(timeout=10) == 0
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_memory_can_be_lowered_never_raised(monkeypatch):
    monkeypatch.delenv("GMA_MEMORY_BYTES", raising=False)
    found = machine.find_memory()
    assert found > 2**20
    monkeypatch.setenv("GMA_MEMORY_BYTES", "1000000")
    assert machine.find_memory() == 1_000_000
    monkeypatch.setenv("GMA_MEMORY_BYTES", str(2 * found))
    assert machine.find_memory() == found


def test_versions_name_what_is_installed(monkeypatch):
    monkeypatch.setattr(machine, "VERSIONED", ("numpy", "no-such-package"))
    assert set(machine.find_versions()) == {"numpy"}
