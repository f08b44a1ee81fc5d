"""Files that a worker reads: its own copies, or else what whoever gives the work sends it."""

import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gma_lib.runs.files import hash_file
from gma_lib.runs.leftovers import temporary_folder

# SHA-256 -> content. None: in the process that gives the work, whose files are where they are.
Sent = Mapping[str, bytes] | None


class Lacking(Exception):
    """A worker needs files, path -> SHA-256, that it neither has nor was sent."""

    def __init__(self, files: Mapping[Path, str]):
        super().__init__(files)
        self.files = files

    def read(self) -> dict[str, bytes]:
        """Read them, where they are: SHA-256 -> content."""
        return {digest: path.read_bytes() for path, digest in self.files.items()}


@contextmanager
def place_files(files: Mapping[Path, str], sent: Sent) -> Iterator[Callable[[Path], Path]]:
    """Yield a function that says where a file, or its folder, lies on this machine: at its own
    path, if all files are there; else in a temporary folder, written from what was sent.

    Parameters
    ----------
    files
        Path -> SHA-256.

    Raises
    ------
    Lacking
        Files are neither here nor sent.
    ValueError
        A file has another content here.
    OSError
        There is no room for what was sent.
    """
    here = [] if sent is None else [path for path in files if path.is_file()]
    for path in here:
        _require_same(path, hash_file(path), files[path])
    if sent is None or len(here) == len(files):
        yield Path
        return
    if lacking := {path: digest for path, digest in files.items() if digest not in sent}:
        raise Lacking(lacking)
    for path, digest in files.items():
        _require_same(path, hashlib.sha256(sent[digest]).hexdigest(), digest)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder())

            def locate(path: Path) -> Path:
                return folder / path.relative_to(path.anchor)

            for path, digest in files.items():
                locate(path).parent.mkdir(parents=True, exist_ok=True)
                locate(path).write_bytes(sent[digest])
        except OSError as error:
            size = sum(map(len, sent.values()))
            raise OSError(
                f"the worker {platform.node()} cannot keep {size / 1e6:.1f} MB that it was sent in "
                f"{tempfile.tempdir or 'TMPDIR'} ({error.strerror or error}): make room there, or "
                "start it with another TMPDIR"
            ) from error
        yield locate


def _require_same(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise ValueError(
            f"{path} has SHA-256 {found} on the worker {platform.node()}, and {wanted} where the "
            "work comes from: copy it again, or remove it from the worker"
        )
