"""Run a vendor's tool in a separate process, no longer than allowed: what it printed, and how it
ended.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gma_lib.runs.processes import SECONDS_BETWEEN_LOOKS, tie_child

# is given the seconds since a tool's start, again and again until it ends, and may show progress
Watch = Callable[[Iterator[float]], Iterable[float]]
# Kills its own process group when its stdin closes: when whoever started it closes that, or ends.
# The system's own signal (tie_child) reaches the tool, not its helpers.
KILL_GROUP = ("sh", "-c", "read line; kill -9 0")


def run_tool(
    arguments: list[str],
    *,
    timeout_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> tuple[int, str]:
    """Run without a shell; return the exit code and what was printed, stdout and stderr in order.

    However this ends, by Ctrl-C or by a SIGKILL of this process too, nothing of the tool is left
    running: some of them start helpers of their own. A helper that leaves the tool's process group
    escapes.

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
    # a file and not a pipe, which would fill up and hold the tool
    with tempfile.TemporaryFile() as printed, ExitStack() as reaped:
        with _process_group() as group:
            process = reaped.enter_context(
                subprocess.Popen(
                    arguments,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    process_group=group,
                    **tie_child(),
                )
            )
            moments = _until_it_ends(process, timeout_s)
            for _ in watch(moments) if watch else moments:
                pass
        printed.seek(0)
        return process.returncode, printed.read().decode(errors="replace")


def run_briefly(
    command: list[str], environment: Mapping[str, str] | None
) -> subprocess.CompletedProcess[str]:
    """Run what answers at once and starts no helpers; raise OSError or TimeoutExpired where it does
    not.
    """
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
        env=environment,
        **tie_child(),
    )


@contextmanager
def _process_group() -> Iterator[int]:
    """Yield a process group that is killed when the block ends, or this process, by any signal."""
    ender = subprocess.Popen(KILL_GROUP, stdin=subprocess.PIPE, process_group=0)
    try:
        yield ender.pid
    finally:
        ender.communicate()


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
