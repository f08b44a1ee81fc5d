"""Whether the machine was busy is decided by what others compute, not by the measurement itself."""

import subprocess
import sys
from collections import namedtuple

import psutil
import pytest

from gma_lib.perf import load
from gma_lib.perf.load import Load


@pytest.fixture
def machine(monkeypatch):
    """A machine of four cores whose clock and work the test sets; one second passes beforehand."""
    now = {"clock": 0.0, "machine": 100.0, "own": 1.0, "cores": 4}
    monkeypatch.setattr(load, "_look", lambda: load._Moment(**now))
    monkeypatch.setattr(
        load.time, "sleep", lambda seconds: now.update(clock=now["clock"] + seconds)
    )
    return now


@pytest.mark.parametrize(("others", "busy"), [(1.9, False), (2.1, True)])
def test_busy_is_what_others_take_of_the_cores(machine, others, busy):
    """Of 4 cores and 10 s, 5 % are 2 s; the network's own 30 s do not count."""
    meter = Load()
    machine.update(clock=11.0, machine=100.0 + 30 + others, own=1.0 + 30)
    found = meter.add_to({"caution": "few rounds"})
    assert found["load"]["busy"] is busy
    assert found["load"]["others_during"] == pytest.approx(others / 40)
    assert found["caution"].startswith("few rounds")
    assert ("busy" in found["caution"]) is busy


def test_a_machine_that_was_busy_before_may_still_be(machine, monkeypatch):
    monkeypatch.setattr(
        load.time, "sleep", lambda seconds: machine.update(clock=1.0, machine=102.0)
    )
    meter = Load()
    machine.update(clock=2.0)
    found = meter.add_to({})
    assert found["load"]["others_before"] == 0.5
    assert found["load"]["busy"]


@pytest.mark.parametrize(
    ("ours", "worked"), [({1}, 5.0), ({0, 1}, 8.0), ({0, 1, 2}, 108.0), ({70, 71, 72}, 108.0)]
)
def test_only_the_cores_that_this_process_may_use_count(monkeypatch, ours, worked):
    """A container may list its own cores only, under other numbers than theirs."""
    core = namedtuple("core", "user idle iowait guest")
    cores = [core(3.0, 50.0, 1.0, 2.0), core(5.0, 40.0, 0.0, 0.0), core(100.0, 0.0, 0.0, 0.0)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda pid: ours)
    assert load._look().machine == worked


def test_the_work_of_another_process_is_seen_and_that_of_a_child_is_not():
    """A child's work is its parent's own once it has ended; until then it is another's."""
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    before = load._look()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        now = load._look()
        child.communicate(b"\n")
    assert now.machine - before.machine > 0.4
    assert now.own - before.own < 0.2
    assert load._look().own - before.own > 0.4
