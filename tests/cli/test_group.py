"""``gma``: help at once, exit codes."""

import sys
import time

import pytest
from click.testing import CliRunner
from command_line import gma, loaded_by

from gma_lib.cli import COMMANDS, main
from gma_lib.cli.options import show_waiting


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_screen(command):
    text = gma(*([command] if command else []), "--help")
    assert len(text.splitlines()) <= 32
    assert max(map(len, text.splitlines())) <= 110


def test_help_answers_at_once():
    loaded = loaded_by("--help")
    assert "gma_lib.cli" in loaded
    assert not loaded & {"torch", "numpy", "openvino", "cv2", "matplotlib", "gma_lib.cli.flow"}


def test_a_wrong_command_line_exits_with_2(tmp_path):
    gma("flow", "a.png", exit_code=2)
    gma("video", "a", "-o", tmp_path / "b", "--max-pixels", "3", exit_code=2)


def test_doctor_answers():
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code in (0, 1)
    assert "Python" in done.output


def test_seconds_are_counted_in_a_terminal_of_60_columns_and_nowhere_else(monkeypatch, capsys):
    with show_waiting("shot 1.png"):
        time.sleep(1.1)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with show_waiting("x" * 100):
        time.sleep(1.1)
    _, counted, *_ = capsys.readouterr().err.split("\r")
    assert counted == "x" * 59
