"""Lock files, and processes that end together: a child ends with this process, and holds its locks
until then.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TypedDict

import portalocker
from portalocker import LockFlags

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_LINES = 30.0

_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_held: set[int] = set()

logger = logging.getLogger(__name__)


class ChildOptions(TypedDict, total=False):
    """Options of ``subprocess.Popen``."""

    pass_fds: tuple[int, ...]
    preexec_fn: Callable[[], None]


def require_posix(command: str) -> None:
    """Raise RuntimeError on Windows, which has no signals that interrupt, stop or end processes as
    ``command`` needs.
    """
    if not hasattr(signal, "SIGALRM"):
        raise RuntimeError(f"{command} needs the signals of Linux or macOS: on Windows, use WSL")


def tie_child() -> ChildOptions:
    """Return options of ``subprocess.Popen`` for a child that does not outlive this process.

    On Linux the system kills the child when this process ends, even by SIGKILL; elsewhere a child
    that is this package's own calls ``end_with_parent``. The locks that this process holds
    (``hold_lock``) stay held until the child has ended, too.
    """
    options = ChildOptions(pass_fds=tuple(_held))
    if _prctl:
        options["preexec_fn"] = partial(end_with_parent, os.getpid())
    return options


def end_with_parent(parent: int) -> None:
    """Have this process killed as soon as its parent, the process of this number, ends."""
    if _prctl:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def hold_lock(
    path: Path, waiting_for: str, kind: LockFlags = LockFlags.EXCLUSIVE
) -> Iterator[None]:
    """Hold a lock file, alone or shared; wait for it, with a line that says for what.

    It is free again when this process and the children that it has tied to itself have ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    next_line = 0.0
    with open(path, "a") as file:
        for seconds in _until_locked(file, kind):
            if seconds >= next_line:
                so_far = f" ({seconds:.0f} s so far)" if next_line else ""
                logger.info("waiting for %s%s", waiting_for, so_far)
                next_line = seconds + SECONDS_BETWEEN_LINES
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.remove(file.fileno())


@contextmanager
def lock_path(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a file that only one process can hold; removed before it is let go.

    Raises
    ------
    ValueError
        Another process holds it, and this one was not to ``wait``.
    """
    kind = LockFlags.EXCLUSIVE if wait else LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING
    while True:
        with open(path, "a") as file:
            try:
                portalocker.lock(file, kind)
            except portalocker.AlreadyLocked as error:
                raise ValueError(f"another process holds {path}: wait until it ends") from error
            # whoever waited for a file that was removed holds nothing that others would see
            if os.fstat(file.fileno()).st_nlink:
                try:
                    yield
                finally:
                    with suppress(OSError):  # Windows removes no open file
                        path.unlink()
                return


def _until_locked(file: IO[str], kind: LockFlags) -> Iterator[float]:
    """Seconds of waiting, again and again until the lock is held."""
    start = time.monotonic()
    while True:
        try:
            portalocker.lock(file, kind | LockFlags.NON_BLOCKING)
            return
        except portalocker.AlreadyLocked:
            yield time.monotonic() - start
            time.sleep(SECONDS_BETWEEN_LOOKS)
