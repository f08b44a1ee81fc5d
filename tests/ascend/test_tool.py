"""Tools in processes of their own."""

from pathlib import Path

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


def test_both_channels_of_a_tool_in_one_text():
    assert tool.run_tool(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout_s=5) == (3, "a\nb\n")
    # more than a pipe holds
    much = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done"
    assert len(tool.run_tool(["sh", "-c", much], timeout_s=20)[1]) == 220_000
