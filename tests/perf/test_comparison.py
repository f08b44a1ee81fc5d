"""Comparisons: honest ratios, processes that wait standing still, variants that cannot run as rows
with their reason.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gma_lib.perf import comparison
from gma_lib.perf.worker import Worker
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
    command += ["--out", tmp_path, "--lock", tmp_path / "lock"]
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


def test_a_worker_that_waits_stands_still(config, tmp_path):
    settings = comparison.load_comparison(config)
    variant = settings.variants["guide's graph"]
    comparison.prepare_variant(variant, tmp_path / "w" / "variant", settings)
    np.savez(tmp_path / "w" / "frames.npz", *comparison.draw_demo_frames(128, 160))
    waiting = Worker(variant, tmp_path / "w" / "variant")
    try:
        time.sleep(0.2)
        state = Path(f"/proc/{waiting.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state == "T"
        assert waiting.time_call()["seconds"] > 0
    finally:
        waiting.close()
    with pytest.raises(ProcessLookupError):
        waiting.time_call()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rounds: 3", "pace: Unexpected"),
        ("lookup: gather, ", r"variants.guide's graph.lookup: Field required"),
        ("precision: bfloat16", "variants.impossible.pace: Unexpected"),
    ],
)
def test_wrong_settings_are_named(config, wrong, message):
    replaced = {
        "rounds: 3": "rounds: 3\npace: 1",
        "lookup: gather, ": "",
        "precision: bfloat16": "pace: 1",
    }[wrong]
    config.write_text(SMALL.replace(wrong, replaced), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        comparison.load_comparison(config)


def test_the_committed_configuration_is_valid():
    found = comparison.load_comparison(PROJECT / "benchmarks/cpu.yaml")
    assert next(iter(found.variants.values())).steps == ()
    assert len(found.variants) > 5
