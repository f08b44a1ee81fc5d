"""MPI Sintel from its own site: one archive, unpacked whole or not at all."""

import logging
import zipfile
from pathlib import Path

from gma_lib.runs.files import BadFile, reading, require_free_space, write_atomically

logger = logging.getLogger(__name__)

DOWNLOAD_URL = "https://files.is.tue.mpg.de/sintel/MPI-Sintel-complete.zip"
DOWNLOAD_BYTES = 5_700_000_000  # about 5.3 GiB; as much again and more when unpacked
MOST_FILES = 100_000  # in its archive


def download(folder: Path, *, url: str = DOWNLOAD_URL, size: int = DOWNLOAD_BYTES) -> Path:
    """Download and unpack the complete data set (5.3 GiB) into ``folder`` and return its root.

    An archive that cannot be unpacked is moved aside and fetched again, once. The authors publish
    no checksum: pooch prints the one it found, to compare with another copy.

    Parameters
    ----------
    url, size
        Where the archive is, and its size in bytes, of which it may unpack to twice as many.

    Raises
    ------
    BadFile
        The archive is no zip file, or is larger inside than it may be.
    """
    import pooch

    root = Path(folder) / "MPI-Sintel-complete"
    archive = root.with_suffix(".zip")
    for is_last in (False, True):
        if root.is_dir():
            break
        require_free_space(folder, 3 * size)
        try:
            pooch.retrieve(url, known_hash=None, path=folder, fname=archive.name, progressbar=True)
            _unpack(archive, root, max_bytes=2 * size)
        except (BadFile, OSError) as error:
            if archive.is_file() and not root.is_dir():  # by another download, meanwhile
                archive.replace(root.with_suffix(".damaged.zip"))
            if is_last:
                raise
            logger.warning("%s Fetching it again.", error)
    return root


def _unpack(archive: Path, root: Path, *, max_bytes: int) -> None:
    """Unpack a zip file as a folder that appears when it is whole."""
    with (
        reading(archive, f"a zip file of MPI Sintel ({DOWNLOAD_URL})", "Try again later"),
        zipfile.ZipFile(archive) as packed,
        write_atomically(root) as partial,
    ):
        entries = packed.infolist()
        if sum(entry.file_size for entry in entries) > max_bytes or len(entries) > MOST_FILES:
            raise ValueError(f"{len(entries)} files of more than {max_bytes:,} bytes inside")
        packed.extractall(partial)
