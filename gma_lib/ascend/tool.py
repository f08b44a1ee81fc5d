"""Run a vendor's tool in a separate process, no longer than allowed: what it printed, and how it
ended.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gma_lib.runs.processes import SECONDS_BETWEEN_LOOKS, tie_child

# is given the seconds since a tool's start, again and again until it ends, and may show progress
Watch = Callable[[Iterator[float]], Iterable[float]]


def run_tool(
    arguments: list[str],
    *,
    timeout_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> tuple[int, str]:
    """Run without a shell; return the exit code and what was printed, stdout and stderr in order.

    However this ends, by Ctrl-C too, nothing of the tool is left running: some of them start
    helpers of their own.

    Parameters
    ----------
    folder
        Where it runs; here when None.
    environment
        Environment of the process; this one's when None.
    watch
        Shows progress, such as ``gma_lib.runs.progress.log_elapsed``.

    Raises
    ------
    FileNotFoundError
        When there is no such program.
    TimeoutError
        When it was stopped after ``timeout_s``.
    """
    with (
        tempfile.TemporaryFile() as printed
    ):  # a file and not a pipe, which would fill up and hold the tool
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **tie_child(),
        )
        try:
            moments = _until_it_ends(process, timeout_s)
            for _ in watch(moments) if watch else moments:
                pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed.seek(0)
        return process.returncode, printed.read().decode(errors="replace")


def _until_it_ends(process: subprocess.Popen[bytes], timeout_s: float) -> Iterator[float]:
    start = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"did not end within {timeout_s:.0f} s and was stopped")
        try:
            process.wait(SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            yield time.monotonic() - start
    yield time.monotonic() - start
