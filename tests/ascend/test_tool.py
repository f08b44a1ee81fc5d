"""Tools in processes of their own."""

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gma_lib.ascend import tool


def test_ctrl_c_ends_the_tool(tmp_path):
    """An interrupted notebook leaves no process behind that still holds the card."""

    def interrupted(moments):
        next(iter(moments))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool.run_tool(
            ["sh", "-c", f"echo $$ > {tmp_path / 'pid'}; exec sleep 100"],
            timeout_s=50,
            watch=interrupted,
        )
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


HELPED = "trap '' HUP TERM; sleep 100 & echo $! > {0}.making; mv {0}.making {0}; {1}"
RUNS = "import sys; from gma_lib.ascend.tool import run_tool\nrun_tool(sys.argv[1:], timeout_s=50)"


def wait_for_helper(file):
    while not file.exists():
        time.sleep(0.05)
    return psutil.Process(int(file.read_text()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_tool_s_helpers_end_with_whoever_runs_it(tmp_path, number):
    command = [sys.executable, "-c", RUNS, "sh", "-c", HELPED.format(tmp_path / "pid", "wait")]
    with subprocess.Popen(command) as process:
        helper = wait_for_helper(tmp_path / "pid")
        process.send_signal(number)
    helper.wait(2)


def test_a_tool_that_ends_leaves_no_helper(tmp_path):
    command = ["sh", "-c", HELPED.format(tmp_path / "pid", "exit 3")]
    assert tool.run_tool(command, timeout_s=50) == (3, "")
    with suppress(psutil.NoSuchProcess):  # gone, or about to be reaped
        wait_for_helper(tmp_path / "pid").wait(2)


def test_both_channels_of_a_tool_in_one_text():
    assert tool.run_tool(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout_s=5) == (3, "a\nb\n")
    # more than a pipe holds
    much = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done"
    assert len(tool.run_tool(["sh", "-c", much], timeout_s=20)[1]) == 220_000
