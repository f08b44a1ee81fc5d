"""The commands for another machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gma_lib.ascend import dry_run
from gma_lib.ascend.atc import AtcOptions


def test_dry_run_writes_commands_and_files(models, tmp_path, monkeypatch):
    """ascend.md 7.54; 2.4, E10054: what a shell would cut is quoted."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gma.onnx").write_bytes((models / "GMA_m_4.onnx").read_bytes())
    commands = dry_run.write_commands(tmp_path / "model", tmp_path / "ascend", AtcOptions("310P3"))
    assert [Path(command[0]).name for command in commands] == [
        "atc",
        "atc",
        "python3",
        "python3",
        "python3",
    ]
    script = (tmp_path / "ascend" / "commands_bs4.sh").read_text()
    assert (
        "'--input_shape=image1:4,3,128,160;image2:4,3,128,160'" in script
    )  # the ';' is quoted: 7.6, E10054
    assert (tmp_path / "ascend" / "keep_bs4.cfg").read_text() == "OpType::InstanceNorm\n"
    assert "# no rewrite needed" in script
    assert "# CANN 6.0: refused: nothing; unknown: nothing" in script
    assert (
        subprocess.run(["bash", "-n", str(tmp_path / "ascend" / "commands_bs4.sh")]).returncode == 0
    )


@pytest.mark.slow
def test_the_folder_runs_elsewhere(standins, models, folders, tmp_path):
    """One script for every batch size, in a folder of its own, from wherever it is called; with
    another card and interpreter than the usual ones, and a second time.
    """
    package = tmp_path / "package"
    for size, keep in ((1, "guide"), (4, "coordinates")):
        place = tmp_path / f"bs{size}" / "model"
        place.mkdir(parents=True)
        (place / "gma.onnx").write_bytes((models / f"GMA_m_{size}.onnx").read_bytes())
        dry_run.write_commands(place, package, AtcOptions("310P3"), keep=keep)
    dry_run.write_run_script(package, [1, 4])
    assert len((package / "keep_bs1.cfg").read_text().splitlines()) == 1
    assert len((package / "keep_bs4.cfg").read_text().splitlines()) > 1
    for pass_name in ("clean", "final"):
        shutil.copytree(folders[0].parent, package / "tensors" / pass_name)
    standins.setenv("AIS_PYTHON", sys.executable)
    standins.setenv("DEVICE", "1")
    for _ in range(2):
        done = subprocess.run(
            ["bash", str(package / "run.sh")], cwd="/", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for size in (1, 4):
        assert len(list((package / "output_final" / f"bs{size}").iterdir())) == 5
        summary = (package / "measured" / f"bs{size}_summary.json").read_text()
        assert len(json.loads(summary)["npu_compute_time_list"]) == 100
        assert "'--device', '1'" in str(json.loads(summary)["args"])


def test_a_batch_size_that_fails_does_not_stop_the_others(standins, models, tmp_path):
    for size in (1, 4):
        (tmp_path / "p").mkdir(exist_ok=True)
        code = "exit 3" if size == 1 else "touch four"
        (tmp_path / "p" / f"commands_bs{size}.sh").write_text(code + "\n")
    dry_run.write_run_script(tmp_path / "p", [1, 4])
    assert subprocess.run(["bash", str(tmp_path / "p" / "run.sh")]).returncode == 1
    assert (tmp_path / "p" / "four").exists()


def test_dry_run_too_early(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_export first"):
        dry_run.write_commands(tmp_path, tmp_path / "ascend", AtcOptions("310P3"))
