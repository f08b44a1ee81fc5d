"""Unfinished files carry the name of their process, and are removed once it is gone."""

import hashlib
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_NAME = re.compile(r"\.gma-(?P<host>[0-9a-f]{4})-(?P<pid>\d+)-(?P<started>\d+)\.")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux draws it anew at every start
_CLOCK_SECONDS = 2  # when a process started is known to about a second


def name_partial(path: Path) -> Path:
    """Return the name under which this process writes ``path``: same folder and suffix, and a dot
    in front, so that no reader of this package takes it for a result.
    """
    name = path.name
    if len(os.fsencode(name)) > 200:  # file systems take 255
        name = hashlib.sha256(os.fsencode(name)).hexdigest() + path.suffix
    return path.with_name(f".gma-{name_process()}.{name}")


def name_process() -> str:
    """Return what tells this process from those of other machines and containers, which may have
    its number and its host's name.
    """
    return _name_owner(os.getpid())


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder, which is gone afterwards; that of a killed process goes with the next.

    Parameters
    ----------
    parent
        Where it lies; None: in the system's temporary folder.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_leftovers_once(parent)
    prefix = f".gma-{name_process()}."
    with tempfile.TemporaryDirectory("", prefix, parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine were writing in ``folder`` when they were killed."""
    try:
        paths = list(folder.iterdir())
    except PermissionError:  # as of some temporary folders, which may be written, not listed
        return
    for path in paths:
        name = _NAME.match(path.name)
        if (
            name
            and name["host"] == _name_host()
            and abs(_find_start(int(name["pid"])) - int(name["started"])) > _CLOCK_SECONDS
        ):
            with suppress(OSError):  # another process was faster, or it is another user's
                remove(path)


@cache
def remove_leftovers_once(folder: Path) -> None:
    """``remove_leftovers``, at this process's first call for the folder only."""
    remove_leftovers(folder)


@cache
def _name_host() -> str:
    space = ""
    with suppress(OSError):  # not Linux
        space = os.readlink("/proc/self/ns/pid")  # containers count their processes apart
    return hashlib.sha256(f"{platform.node()}{space}".encode()).hexdigest()[:4]


@cache
def _name_owner(pid: int) -> str:
    return f"{_name_host()}-{pid}-{_find_start(pid):.0f}"


def _find_start(pid: int) -> float:
    """When a process started; minus infinity if it is gone, NaN if that is hidden from this user.

    In seconds from a number that stands for this start of the machine, and not from 1970, because
    somebody may set the clock.
    """
    import psutil

    try:
        process, booted = psutil.Process(pid), psutil.boot_time()
        if process.status() == psutil.STATUS_ZOMBIE:
            return -math.inf
        started = float(process.create_time() - booted)
    except psutil.AccessDenied:  # another user's, which is there
        return math.nan
    except psutil.NoSuchProcess:
        return -math.inf
    try:
        return started + 1e5 * int(BOOT_ID.read_text()[:8], 16)
    except OSError:  # not Linux
        return started + float(booted)
