"""The notebooks with the Ascend backend and stand-ins for its tools: same flow as elsewhere, and
everything says SIMULATED.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import list_command

from gma_lib.flow.files import read_flow
from gma_lib.pipeline.stages import STAGES
from gma_lib.report import index as report
from gma_lib.runs.files import PROJECT

pytestmark = pytest.mark.exhaustive

STANDINS = Path(__file__).parents[1] / "standins"
SETTINGS = {"STANDIN_TIMES_MS": "10,20,30,40", "STANDIN_PYTHON": sys.executable}


def run(outputs, backend, precision, batch_size, until=None):
    settings = (f"backend={backend}", f"precision={precision}", "run=", "num_updates=1")
    command = list_command(outputs, *settings, until=until, batch_sizes=[batch_size])
    call(command)


def call(command):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STANDIN_", "GMA_", "ASCEND_"))
    } | SETTINGS
    environment["PATH"] = f"{STANDINS / 'bin'}:{environment['PATH']}"
    environment["PYTHONPATH"] = f"{STANDINS / 'python'}:{PROJECT}"
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    run(outputs, "ascend", "float16", 4)
    return outputs


@pytest.fixture(scope="module")
def elsewhere(simulated, tmp_path_factory):
    """The notebooks up to the flow with the other backends that a CPU has, of the same frames."""
    outputs = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(simulated / "tiny" / "data", outputs / "tiny" / "data")
    for backend in ("onnxruntime", "torch"):
        run(outputs, backend, "float32", 4, until="04_infer")
    return outputs


def content(outputs, name, batch_size=4, run="ascend-float16"):
    return json.loads((outputs / "tiny" / run / f"bs{batch_size}" / name).read_text())


@pytest.mark.parametrize("other", ["onnxruntime-float32", "torch-float32"])
def test_the_flow_is_that_of_the_other_backends(simulated, elsewhere, other):
    stages = ("02_export", "03_convert", "04_infer")
    assert {content(elsewhere, f".{stage}.json", run=other)["status"] for stage in stages} == {"ok"}
    mine, other = (
        sorted((outputs / "tiny" / name / "bs4" / "flow").rglob("*.flo"))
        for outputs, name in ((simulated, "ascend-float16"), (elsewhere, other))
    )
    assert len(mine) == len(other) > 0
    for one, two in zip(mine, other, strict=True):
        assert one.name == two.name
        assert np.abs(read_flow(one) - read_flow(two)).max() < 1e-3


def test_what_a_stand_in_made_says_so_everywhere(simulated):
    for name in ("convert.json", "infer.json", "metrics.json", "perf.json"):
        assert content(simulated, name)["simulated"] is True, name
    assert content(simulated, "convert.json")["changes"].startswith("SIMULATED")
    assert content(simulated, "metrics.json")["verdict"].startswith("SIMULATED")
    for stage in ("03_convert", "04_infer", "05_evaluate", "06_perf"):
        assert "SIMULATED" in (simulated / f"tiny/ascend-float16/bs4/{stage}.ipynb").read_text(), (
            stage
        )
    page = report.write_index(simulated, "tiny").read_text()
    assert "ascend-float16 (SIMULATED)" in page
    assert "reproduced" not in page


def test_the_guide_s_table_has_the_run_s_rows(simulated):
    """On the index page with all batch sizes; 05 and 06 say what differs."""
    page = report.write_index(simulated, "tiny").read_text()
    mine = (
        page.split("Comparison with the published guide")[1]
        .split("batch size 4")[1]
        .split("batch size 8")[0]
    )
    assert re.findall(r"<th[^>]*>(.*?)</th>", mine) == [
        "the guide, Ascend 310P3",
        "ascend-float16 (SIMULATED)",
    ]
    rates = [float(cell) for cell in re.findall(r"<td[^>]*>([\d.]+)</td>", mine)]
    assert rates[0] == 0.772
    assert rates[-2:] == pytest.approx(
        [200, 125], rel=1e-3
    )  # as the tool defines it, and with transfers
    assert "Ascend310P3 (SIMULATED)" in page
    assert "What differs" in page
    for stage, differing in (("05_evaluate", "gather lookup, opset 12"), ("06_perf", "zeros in")):
        notebook = (simulated / f"tiny/ascend-float16/bs4/{stage}.ipynb").read_text()
        assert "the guide, Ascend 310P3" in notebook
        assert differing in notebook


def test_throughput_as_the_tool_defines_it_and_with_transfers(simulated):
    perf = content(simulated, "perf.json")
    assert perf["rounds"] == 100
    assert perf["pairs_per_second"] == pytest.approx(4 / 0.020, rel=1e-3)
    assert perf["pairs_per_second_with_transfers"] == pytest.approx(
        4 / 0.032, rel=1e-3
    )  # 8 ms there, 4 ms back


def test_memory_exhausted_is_a_row(simulated):
    """Batch size 16 does not fit: 03 stops with a sentence, 06 has its row, and nothing fails."""
    run(simulated, "ascend", "float16", 16)
    words = {
        stage: content(simulated, f".{stage}.json", 16)["status"] for stage in list(STAGES)[1:]
    }
    assert words == {
        "02_export": "ok",
        "03_convert": "out_of_memory",
        "04_infer": "skipped",
        "05_evaluate": "skipped",
        "06_perf": "ok",
        "07_inside": "skipped",
    }
    perf = content(simulated, "perf.json", 16)
    assert perf["status"] == "out_of_memory"
    assert "batch size 16 needs" in perf["reason"]
    page = report.write_index(simulated, "tiny").read_text()
    assert (
        page.split("Comparison with the published guide")[1]
        .split("batch size 16")[1]
        .count("out of memory")
        == 2
    )  # the guide's, and this one's


def test_a_card_elsewhere_gives_the_same_records_and_pages(simulated, tmp_path):
    """The dry run's folder, run without this package, and collected."""
    shutil.copytree(simulated / "tiny" / "data", tmp_path / "tiny" / "data")
    run(tmp_path, "ascend", "float16", 4, until="02_export")
    gma = [sys.executable, "-m", "gma_lib.cli", "ascend"]
    where = f"--outputs={tmp_path}"
    call([*gma, "dry-run", "--profile=tiny", "--batch-size=4", where])
    folder = tmp_path / "tiny" / "ascend-float16" / "ascend"
    call(["env", f"AIS_PYTHON={sys.executable}", "bash", str(folder / "run.sh")])
    call([*gma, "collect", str(folder), where])
    for name in ("metrics.json", "infer.json", "perf.json"):
        here, there = content(simulated, name), content(tmp_path, name)
        for record in (here, there):
            for other in ("provenance", "record_sha256", "made_from", "summary", "key", "load"):
                record.pop(other, None)
        assert here.keys() == there.keys()
    assert content(tmp_path, "metrics.json")["clean"] == content(simulated, "metrics.json")["clean"]
    assert content(tmp_path, "infer.json")["flow"] == content(simulated, "infer.json")["flow"]
    page = (tmp_path / "tiny" / "index.html").read_text()
    assert "ascend-float16 (SIMULATED)" in page
    for stage in ("04_infer", "05_evaluate", "06_perf"):
        assert (tmp_path / f"tiny/ascend-float16/bs4/{stage}.html").is_file()
