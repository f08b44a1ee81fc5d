"""Timing and memory: honest statistics, rows instead of crashes, a machine of one's own."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import portalocker
import pytest
from portalocker import LockFlags

from gma_lib import export
from gma_lib.convert import convert
from gma_lib.perf import timing
from gma_lib.perf.summary import tabulate_measurement
from gma_lib.perf.timing import Task
from gma_lib.runs.machine import locate_machine_lock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, shallow):
    folder = tmp_path_factory.mktemp("model")
    export.export_whole(
        shallow[0], folder / "gma.onnx", height=128, width=160, batch_size=2, checkpoint=shallow[1]
    )
    convert("onnxruntime", folder, checkpoint="seeded")
    return folder


def task(folder, **changes):
    values = {
        "backend": "onnxruntime",
        "model_folder": str(folder),
        "precision": "float32",
        "batch_size": 2,
        "height": 128,
        "width": 160,
        "at_once": 1,
        "budget_s": 0.3,
        "gmac_per_pair": sum(export.count_work(folder / "gma.onnx").values()) / 2
        if folder.is_dir()
        else 1.0,
    }
    return Task(**values | changes)


@pytest.fixture
def small_peak(monkeypatch):
    """The machine's peak from small matrices: seconds less, as these tests compare no share."""
    small = partial(timing.measure_peak, size=256, rounds=2)
    monkeypatch.setattr(timing, "measure_peak", small)


def test_a_measurement(model_folder, small_peak):
    found = timing.measure(task(model_folder))
    assert found["status"] == "ok"
    assert found["rounds"] == len(found["samples_s"]) >= 3
    assert found["pairs_per_second"] == pytest.approx(2 / np.median(found["samples_s"]), rel=1e-3)
    assert found["p90_s"] == pytest.approx(np.percentile(found["samples_s"], 90), rel=1e-3)
    assert 50e6 < found["peak_rss_bytes"] < 3e9
    assert found["share_of_peak"] > 0  # of a peak measured while other tests may run
    assert found["precision_read_back"] == "float32"
    assert found["simulated"] is False
    assert set(found["load"]) >= {"average_before", "average_after", "busy"}
    assert (
        dict((row[0], row[2]) for row in tabulate_measurement(found))[
            "pairs per second, network alone"
        ]
        == "not published"
    )


def test_what_would_not_fit_is_not_started(model_folder, monkeypatch):
    monkeypatch.setenv("GMA_MEMORY_BYTES", "100000000")
    found = timing.measure(task(model_folder))
    assert found["status"] == "out_of_memory"
    assert "not started" in found["reason"]
    assert "median_s" not in found
    assert tabulate_measurement(found)[0][1] == "out_of_memory"


def test_a_failure_is_a_row_with_its_reason(tmp_path, small_peak):
    found = timing.measure(task(tmp_path / "nowhere"))
    assert found["status"] == "failed"
    assert "no such model" in found["reason"]


def test_a_measurement_holds_the_lock_of_every_run(tmp_path, monkeypatch):
    """That of `gma bench` and of stages, wherever a run's results go."""

    def look(task):
        with open(locate_machine_lock()) as file, pytest.raises(portalocker.AlreadyLocked):
            portalocker.lock(file, LockFlags.SHARED | LockFlags.NON_BLOCKING)
        return {"status": "ok"}

    monkeypatch.setattr(timing, "_measure_in_process", look)
    assert timing.measure(task(tmp_path / "nowhere"))["status"] == "ok"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", "out_of_memory"),
        ("  what():  std::bad_alloc", "out_of_memory"),
        ("RuntimeError: bad allocation", "out_of_memory"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate", "out_of_memory"),
        ("RuntimeError: shapes differ", "failed"),
        ("ImportError: libgomp.so.1: cannot allocate memory in static TLS block", "failed"),
    ],
)
def test_memory_that_is_refused_is_out_of_memory_in_every_library_s_words(said, status):
    done = subprocess.CompletedProcess([], 1, "", f"Traceback\n{said}\n")
    assert timing._explain_failure(done, for_memory=True)["status"] == status


@pytest.mark.parametrize(
    ("before", "counts", "status"),
    [
        ("oom_kill 3", "oom_kill 4", "out_of_memory"),
        ("oom_kill 3", "oom_kill 3", "failed"),
        ("", "", "out_of_memory"),
    ],
    ids=["by Linux", "by someone", "no count"],
)
def test_a_killed_measurement_is_out_of_memory_where_linux_counts_it(
    before, counts, status, model_folder, tmp_path, small_peak, monkeypatch
):
    """Linux ends a process that takes too much by the signal that anyone may send."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text(f"nr_free_pages 9\n{before}\n")
    monkeypatch.setattr(timing, "VMSTAT", vmstat)
    killed = _write_suicidal(tmp_path, f"echo '{counts}' > {vmstat}")
    monkeypatch.setattr(timing.sys, "executable", str(killed))
    found = timing.measure(task(model_folder))
    assert found["status"] == status
    assert "killed" in found["reason"]


def _write_suicidal(folder: Path, first: str) -> Path:
    script = folder / "dies"
    script.write_text(f"#!/bin/sh\n{first}\nkill -9 $$\n")
    script.chmod(0o755)
    return script


def test_peak_is_this_programs_own():
    """A child of a large process starts small: its peak must not be its parent's."""
    ballast = bytearray(600_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from gma_lib.perf.timing import measure_peak_rss; print(measure_peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300e6
    assert timing.measure_peak_rss() > 600e6
    del ballast
