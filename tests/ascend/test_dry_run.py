"""The commands for another machine."""

import subprocess
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
    assert (tmp_path / "ascend" / "keep.cfg").read_text() == "OpType::InstanceNorm\n"
    assert "# no rewrite needed" in script
    assert "# CANN 6.0: refused: nothing; unknown: nothing" in script
    assert (
        subprocess.run(["bash", "-n", str(tmp_path / "ascend" / "commands_bs4.sh")]).returncode == 0
    )


def test_dry_run_too_early(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_export first"):
        dry_run.write_commands(tmp_path, tmp_path / "ascend", AtcOptions("310P3"))
