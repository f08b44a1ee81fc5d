"""Comparisons: honest ratios, processes that wait standing still, variants that cannot run as rows
with their reason.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from gma_lib.network.checkpoints import load_checkpoint
from gma_lib.perf import comparison
from gma_lib.perf.worker import PARTS, Variant, Worker
from gma_lib.runs.files import PROJECT

pytestmark = pytest.mark.slow

SMALL = """
height: 128
width: 160
checkpoint: seeded
rounds: 3
variants:
  guide's graph:
    {backend: onnxruntime, precision: float32, lookup: gather, opset: 12, steps: [], num_updates: 1,
     batch_size: 1, at_once: 1, sequence: false}
  along a sequence:
    {backend: openvino, lookup: matmul, opset: 13, steps: [context hoisted], sequence: true}
  impossible: {precision: bfloat16}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.mark.exhaustive
def test_a_comparison(config, tmp_path):
    command = [sys.executable, "-m", "gma_lib.cli", "bench", config]
    command += ["--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    found = json.loads((tmp_path / "small.json").read_text(encoding="utf-8"))
    assert list(found["variants"]) == ["guide's graph", "along a sequence", "impossible"]
    baseline, sequence, impossible = found["variants"].values()
    assert baseline["ratio"] == 1
    assert sequence["deviation"]["max"] < 1e-3
    assert sequence["precision_read_back"] == "float32"
    assert len(sequence["samples_s"]) == 3
    assert sequence["share_of_peak"] > 0
    assert set(found["load"]) >= {"others_before", "others_during", "busy"}
    assert sequence["peak_rss_bytes"] > 50e6
    assert {"onnxruntime", "bfloat16"} <= set(re.findall(r"\w+", impossible["error"]))
    assert impossible["error"] in done.stdout


def test_statistics_of_known_times():
    found = comparison.compute_ratios([1.0, 2.0, 1.0], [2.0, 4.0, 3.0])
    assert (found["ratio"], found["median_s"]) == (2, 1)
    assert found["ratio_middle_half"] == [2, 2.5]
    assert "unstable" in found["caution"]  # the same times twice, then one that is off
    assert comparison.compute_ratios([1.0] * 4, [2.0] * 4)["caution"] == ""


def start_worker(config, folder, name):
    """A worker for a variant of the comparison, which waits for its first question."""
    settings = comparison.load_comparison(config)
    variant = settings.variants[name]
    comparison.prepare_variant(variant, folder / "w" / "variant", settings)
    np.savez(folder / "w" / "frames.npz", *comparison.draw_demo_frames(128, 160))
    return Worker(variant, folder / "w" / "variant")


def test_a_worker_that_waits_stands_still(config, tmp_path):
    waiting = start_worker(config, tmp_path, "guide's graph")
    try:
        time.sleep(0.2)
        state = Path(f"/proc/{waiting.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state == "T"
        assert waiting.time_call()["seconds"] > 0
        os.kill(waiting.process.pid, signal.SIGKILL)  # as the system does for its memory
        os.waitid(os.P_PID, waiting.process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(RuntimeError, match="ended with -9"):
            waiting.time_call()
    finally:
        waiting.close()
    with pytest.raises(ProcessLookupError):
        waiting.time_call()


def test_the_load_of_a_sequence_is_that_of_its_parts(config, tmp_path):
    """The first call then loads nothing more."""
    waiting = start_worker(config, tmp_path, "along a sequence")
    waiting.close()
    assert tuple(waiting.about["loaded_parts"]) == PARTS


@pytest.mark.parametrize(
    ("sequence", "told", "shown"),
    [(False, {}, "7.5"), (True, {}, ""), (True, {"loaded_parts": list(PARTS)}, "7.5")],
)
def test_no_load_is_shown_that_was_not_measured(sequence, told, shown):
    """Older records of sequences have loaded nothing before their first call."""
    one = {"settings": {"sequence": sequence}, "load_s": 7.5, "peak_rss_bytes": 1e9} | told
    one |= {"deviation": {"mean": 0, "p99": 0}, "share_of_peak": None}
    one |= comparison.compute_ratios([1.0, 1.0], [1.0, 1.0])
    head, _, row = comparison.tabulate_comparison({"variants": {"a": one}}).splitlines()
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    assert cells[" load, s "].strip() == shown


BASELINE = Variant("onnxruntime", "float32", "gather", 16, (), 1, 1, 1, False)


@pytest.fixture
def compare_dying(monkeypatch):
    """Compare a baseline and eight others, four at a time, without computing anything; the workers
    of these numbers, counted from 1, end in their third call, and those ``refused`` do not start.
    """

    def compare(*dying, refused=types.MappingProxyType({})):
        started, prepared = [], []

        class StandIn:
            about: ClassVar = {"load_s": 1.0}

            def __init__(self, variant, folder):
                np.save(folder / "flow.npy", np.zeros((1, 2, 8, 8), np.float32))
                started.append(self)
                self.number, self.calls = len(started), 0

            def time_call(self):
                self.calls += 1
                if self.number in dying and self.calls == 3:
                    raise RuntimeError("the process ended with -9: no message")
                return {"seconds": 1.0, "peak_rss_bytes": 1, "peak_device_bytes": None}

            def close(self):
                pass

        def prepare(variant, folder, comparison):
            folder.mkdir(parents=True)
            prepared.append(folder)
            if error := refused.get(len(prepared)):
                raise error("not here")
            return {"correlation": 1.0, "feature encoder": 1.0}

        monkeypatch.setattr(comparison, "Worker", StandIn)
        monkeypatch.setattr(comparison, "prepare_variant", prepare)
        monkeypatch.setattr(comparison, "prepare_peak", lambda *kind: None)
        monkeypatch.setattr(comparison, "SPINNING_S", 0)
        monkeypatch.setattr(comparison, "draw_demo_frames", lambda *size: [np.zeros(1)] * 2)
        monkeypatch.setattr(comparison.network, "load_model", lambda *about: (None, None))
        monkeypatch.setattr(
            comparison.export, "compute_reference", lambda *about: np.zeros((1, 2, 8, 8))
        )
        variants = dict.fromkeys(["base", *"abcdefgh"], BASELINE)
        compared = comparison.BenchPlan(128, 128, "seeded", 3, variants)
        found = comparison.compare(compared)
        assert found["checkpoint_sha256"] == load_checkpoint("seeded").sha256
        found = found["variants"]
        assert list(found) == list(variants)
        comparison.tabulate_comparison({"variants": found})
        return "".join(name for name, one in found.items() if "error" in one)

    return compare


@pytest.mark.parametrize(("dying", "lost"), [((), ""), ((9,), "g"), ((2, 4), "ac"), ((6,), "efgh")])
def test_what_ends_while_it_is_measured_is_a_row_and_the_others_go_on(compare_dying, dying, lost):
    """The sixth is the baseline of the second group, without which that one has no ratios."""
    assert compare_dying(*dying) == lost


@pytest.mark.parametrize("error", [ModuleNotFoundError, MemoryError, ValueError])
def test_what_cannot_start_here_is_a_row_and_the_others_go_on(compare_dying, error):
    """For want of an extra or of memory; all that was measured was lost."""
    assert compare_dying(refused={7: error}) == "e"


def test_without_the_first_baseline_there_is_nothing_to_compare_with(compare_dying):
    with pytest.raises(RuntimeError, match="baseline"):
        compare_dying(1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rounds: 3", "pace: Unexpected"),
        ("lookup: gather, ", r"variants.guide's graph.lookup: Field required"),
        ("precision: bfloat16", "variants.impossible.pace: Unexpected"),
        ("sequence: true", "variants.along a sequence: .* batch_size is 1, not 4"),
    ],
)
def test_wrong_settings_are_named(config, wrong, message):
    replaced = {
        "rounds: 3": "rounds: 3\npace: 1",
        "lookup: gather, ": "",
        "precision: bfloat16": "pace: 1",
        "sequence: true": "sequence: true, batch_size: 4",  # of which a call computes one
    }[wrong]
    config.write_text(SMALL.replace(wrong, replaced), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        comparison.load_comparison(config)


def test_the_committed_configuration_is_valid():
    found = comparison.load_comparison(PROJECT / "benchmarks/cpu.yaml")
    assert next(iter(found.variants.values())).steps == ()
    assert len(found.variants) > 5
