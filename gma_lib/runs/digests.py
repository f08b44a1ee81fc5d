"""Digests of files and of code, remembered, so that a file that did not change is read once."""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from gma_lib.runs.code import hash_code
from gma_lib.runs.files import PROJECT, hash_file, shorten_path, write_atomically
from gma_lib.runs.machine import count_cores

Content = TypeVar("Content")
CLOCK_GRANULARITY_S = 2.0  # of the coarsest file system in use (FAT)


class Digests:
    """SHA-256 of files, remembered by path, size, times and inode.

    A file is read again if any of these differ. A file that changed within the clock's granularity
    before it was read is not remembered: a second change could leave its times alike.

    Parameters
    ----------
    memory
        JSON file that keeps the digests between processes; damaged or missing, it counts as empty.
    """

    def __init__(self, memory: Path):
        self.memory = Path(memory)
        self._known = _read_memory(self.memory)
        self._changed = False

    def digest_file(self, path: Path) -> str:
        """SHA-256 of a file's content."""
        return self._remember(Path(path), hash_file, "")

    def digest_code(self, path: Path) -> str:
        """SHA-256 of a module's syntax tree: comments, layout and docstrings do not count."""
        return self._remember(Path(path), hash_code, "#code")

    def digest_files(self, paths: Iterable[Path], root: Path = PROJECT) -> dict[str, str]:
        """Path relative to ``root`` -> SHA-256; on all cores, as hashing does not hold the GIL."""
        found = sorted({path for path in map(Path, paths) if path.is_file()})
        with ThreadPoolExecutor(count_cores()) as pool:
            digests = pool.map(self.digest_file, found)
        names = (path.relative_to(root) if path.is_relative_to(root) else path for path in found)
        return dict(zip(map(str, names), digests, strict=True))

    def save(self) -> None:
        """Write what is remembered; a folder that cannot be written costs time, not correctness."""
        if self._changed:
            with suppress(OSError), write_atomically(self.memory) as partial:
                partial.write_text(json.dumps(self._known), encoding="utf-8")

    def _remember(self, path: Path, compute: Callable[[Path], str], kind: str) -> str:
        state = path.stat()
        identity = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        known = self._known.get(f"{path}{kind}")
        if known is not None and known[:-1] == identity:
            return str(known[-1])
        now, digest = time.time(), compute(path)
        if now - max(state.st_mtime, state.st_ctime) > CLOCK_GRANULARITY_S:
            self._known[f"{path}{kind}"] = [*identity, digest]
            self._changed = True
        return digest


def _read_memory(path: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): entry
            for name, entry in content.items()
            if len(entry) == 5 and isinstance(entry[-1], str)
        }
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
        return {}


def hash_files(paths: Iterable[Path]) -> dict[str, str]:
    """File name -> SHA-256, for a record that says what a stage wrote."""
    return {path.name: hash_file(path) for path in map(Path, paths)}


def require_files(folder: Path, digests: dict[str, str], *, made_by: str) -> None:
    """Raise ValueError unless files are what a record says, before anything is read from them.

    Parameters
    ----------
    digests
        Path relative to ``folder`` -> SHA-256.
    made_by
        The notebook that wrote them, for the message.
    """
    for name, digest in digests.items():
        path = Path(folder) / name
        if not path.is_file() or hash_file(path) != digest:
            state = "has changed" if path.is_file() else "is missing"
            raise ValueError(f"{shorten_path(path)} {state} since {made_by}: run {made_by} again")


def read_recorded(
    path: Path, read: Callable[[Path], Content], digest: str | None, *, made_by: str
) -> Content:
    """Return what ``read`` finds in a file, which has to be the recorded one before and after.

    Parameters
    ----------
    digest
        SHA-256 of the file; None: nothing is recorded, and it must only stay as it is.
    made_by
        The notebook that recorded it, for the message of the ValueError.
    """
    before = _identify(path)
    if digest is not None and digest != (before and hash_file(path)):
        raise ValueError(f"{path} has changed or gone since {made_by}: run {made_by} again")
    content = read(path)
    if _identify(path) != before:
        do = "start again" if digest is None else f"run {made_by} again"
        raise ValueError(f"{path} changed while it was read: {do}")
    return content


def _identify(path: Path) -> tuple[int, ...] | None:
    """What differs once a file is written or replaced; None where there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
