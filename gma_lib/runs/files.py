"""Write files whole or not at all, read those of others with one error type, hash them, check
free space.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gma_lib.runs.leftovers import name_partial, remove, remove_leftovers_once

# Weights, parameter files and notebooks: at the top of a checkout, inside an installed package.
PACKAGE = Path(__file__).resolve().parents[1]
IN_CHECKOUT = not (PACKAGE / "resources").is_dir()
RESOURCES = PACKAGE.parent if IN_CHECKOUT else PACKAGE / "resources"
# What relative paths start from, and where results go: the checkout, or the current folder
try:
    PROJECT = PACKAGE.parent if IN_CHECKOUT else Path.cwd()
except FileNotFoundError:
    raise FileNotFoundError("the current folder was deleted: change to another one") from None
REMEDY = "Replace the file"
LARGEST_TEXT = 2**26  # bytes; the largest record of full Sintel has half a million


def name_file(path: Path) -> str:
    """Return a path as it is put into a message, which is always one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


class BadFile(ValueError):
    """A file that cannot be used: what was found, what was expected, what to do."""

    def __init__(self, path: Path, found: str, expected: str, remedy: str = REMEDY):
        super().__init__(path, found, expected, remedy)

    def __str__(self) -> str:
        path, found, expected, remedy = self.args
        return f"{name_file(path)}: {found}; expected {expected}. {remedy}."


class MissingFile(BadFile, FileNotFoundError):
    """A file that is not there."""


@contextmanager
def reading(path: Path, expected: str, remedy: str = REMEDY) -> Iterator[Path]:
    """Read a file that may hold anything: raise ``BadFile`` for whatever goes wrong in the block.

    Raises
    ------
    MissingFile
        There is no such file.
    BadFile
        It is a folder, a pipe or a device, or the block raised: a decoder's error, or a ValueError
        that says what was found.
    """
    path = Path(path)
    with blaming(path, expected, remedy):
        if not path.exists():
            raise MissingFile(path, "no such file", expected, "Check the name")
        if not path.is_file():
            found = "a folder" if path.is_dir() else "a pipe or a device"
            raise BadFile(path, found, expected, "Name a file")
        yield path


@contextmanager
def blaming(path: Path, expected: str, remedy: str = REMEDY) -> Iterator[None]:
    """Raise ``BadFile`` with this path for whatever goes wrong in the block, as ``reading`` does,
    which also requires a file.
    """
    try:
        yield
    except BadFile:
        raise
    except Exception as error:  # decoders raise anything: AttributeError, TokenError, struct.error
        raise BadFile(path, _describe(error), expected, remedy) from error


def read_whole(path: Path, *, largest: int = LARGEST_TEXT) -> bytes:
    """Read a file; ValueError for one of more than ``largest`` bytes, before any is read."""
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{size:,} bytes; at most {largest:,} are read")
    return path.read_bytes()


def _describe(error: Exception) -> str:
    """One line, without advice of another library, such as to load what cannot be trusted."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = " ".join(str(error).strip().split("\n")[0].split())[:500].rstrip(".")
    is_ours = type(error) is ValueError
    return line if is_ours and line else f"{type(error).__name__}{line and ': '}{line}"


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error: a file, or
    a new folder.

    The temporary name keeps the suffix, by which OpenCV chooses the format. What a killed process
    leaves is removed by the next that writes in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers_once(path.parent)
    partial = name_partial(path)
    try:
        with naming(path, partial):
            yield partial
            put_in_place(partial, path)
    finally:
        remove(partial)


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Let an error of the disk name ``path``: a full disk names no file, or its temporary name."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):
            error.filename = str(path)
        elif not error.errno:  # as NumPy says that less was written
            raise OSError(f"{name_file(path)}: {error}; is the disk full?") from error
        raise


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file or a folder its name once the disk holds all of it, so that none that is found
    under this name after a crash is incomplete.
    """
    for one in (*partial.rglob("*"), partial):
        _sync(one)
    os.replace(partial, path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    with write_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Ask the disk to keep a file, or the names in a folder, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSUP):  # cannot, not failed
            raise
    finally:
        os.close(descriptor)


def make_plain(value: object) -> object:
    """Turn paths, NumPy numbers and NaN into what JSON can hold."""
    if isinstance(value, dict):
        return {str(key): make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item) for item in value]
    if isinstance(value, Path):
        return shorten_path(value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def require_writable(folder: Path, remedy: str = "give another folder") -> None:
    """Make a folder; raise OSError, in a sentence, where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {shorten_path(folder)} ({error.strerror}): {remedy}"
        ) from error


def locate_path(text: str | Path) -> Path:
    """Return the path that a user means: it starts at the project unless absolute, and a leading
    ``~/`` is the home folder. Nothing else is interpreted.
    """
    text = str(text)
    return PROJECT / (Path.home() / text[2:] if text.startswith("~/") else text)


def shorten_path(path: Path) -> str:
    """Make a path inside the project relative to it, for readers."""
    path = Path(path)
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value: object) -> str:
    """SHA-256 of a value made plain, as a key that says whether something is up to date."""
    return hashlib.sha256(json.dumps(make_plain(value), sort_keys=True).encode()).hexdigest()


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise OSError, with both numbers, where a large write would not fit on the disk."""
    place = Path(folder).absolute()
    existing = next(parent for parent in (place, *place.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise OSError(
            f"{folder} needs {needed_bytes / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free: "
            "make room, or choose another disk"
        )
