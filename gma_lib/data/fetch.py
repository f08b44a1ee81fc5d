"""MPI Sintel from its own site: one archive, fetched and unpacked in steps that go on where they
stopped.
"""

import errno
import json
import logging
import re
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3

from gma_lib.data.sintel import PAIRS_IN_TRAINING_SPLIT, PASSES, find_pairs
from gma_lib.runs.files import (
    BadFile,
    hash_file,
    naming,
    put_in_place,
    reading,
    require_free_space,
    write_text,
)
from gma_lib.runs.leftovers import remove
from gma_lib.runs.processes import lock_path
from gma_lib.runs.progress import Track, pass_silently
from gma_lib.runs.records import Record

logger = logging.getLogger(__name__)

SINTEL_URLS = tuple(
    f"{scheme}://files.is.tue.mpg.de/sintel/MPI-Sintel-complete.zip" for scheme in ("https", "http")
)
ARCHIVE_BYTES = 5_700_000_000  # 5.3 GiB, where a server does not say how long it is
MOST_BYTES = 2 * ARCHIVE_BYTES
MOST_FILES = 100_000  # in an archive
MOST_GROWTH = 4  # of its bytes when it is unpacked
BLOCK = 1_000_000  # bytes; a step of the progress shown
SECONDS = 30.0  # without an answer
SECONDS_BETWEEN_TRIES = 5.0
TRIES = 4  # one after the other without a further byte
# errno of what an entry cannot be, by its name: a file in a file, a file for a folder, too long
WRONG_NAMES = (
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
)


def fetch_sintel(
    folder: Path, *, urls: Sequence[str] = SINTEL_URLS, track: Track = pass_silently
) -> Path:
    """Download and unpack the complete data set (5.3 GiB) into ``folder`` and return its root.

    A call goes on where an earlier one stopped. An archive that cannot be unpacked is moved aside
    and fetched again, once. The authors publish no checksum: SHA-256 and size of the first download
    that was a data set are kept next to it, and a later one is compared with them.

    Parameters
    ----------
    urls
        Where the archive is, tried in this order.
    track
        ``gma_lib.runs.progress.track`` to show progress.

    Raises
    ------
    OSError
        No server answers, or the disk is full.
    BadFile
        What came is no archive, not the one of an earlier download, or larger inside than it may
        be; or a folder of that name is not the whole data set, or holds a link where it unpacks.
    """
    root = Path(folder).absolute() / "MPI-Sintel-complete"  # make would start at the project
    archive = root.with_name(f"{root.name}.zip")
    note = _locate_note(archive)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with lock_path(root.with_name(f"{root.name}.lock"), wait=False):
        for is_last in (False, True):
            if root.is_dir():
                break
            try:
                if not archive.is_file():
                    _fetch_from_any(urls, archive, track)
                else:  # it may have been brought by hand
                    _compare_with_first(archive, note)
                unpack(archive, root, track=track)
            except BadFile as error:
                if archive.is_file():
                    if error.args[0] != archive:  # such as a link: the archive is good
                        raise
                    archive.replace(root.with_name(f"{root.name}.damaged.zip"))
                    remove(_locate_partial(root))  # nothing of it stays among the next one's files
                if is_last:
                    raise
                logger.warning("%s Fetching it again.", error)
        _require_whole(root, archive, track)
        known = _read_note(note)
        if archive.is_file() and "sha256" not in known:
            write_text(note, json.dumps(known | {"sha256": hash_file(archive)}))
    return root


def _require_whole(root: Path, archive: Path, track: Track) -> None:
    """Raise BadFile for a data set that lacks frames of its archive or, without one, pairs."""
    if not (root / "training").is_dir() or not any((root / "training").glob("*/*/frame_*")):
        raise BadFile(root, "holds no frames", "MPI Sintel", f"Remove it and {archive}")
    remedy = "Remove that folder and call again, which unpacks all of it"
    if archive.is_file():
        with reading(archive, "a zip file of MPI Sintel", f"Remove it, or {root} as well"):
            entries = zipfile.ZipFile(archive).infolist()
        needed = [one for one in entries if one.filename.startswith(("training/", "test/"))]
        checked = track(needed, label=f"checking {root.name}", unit="file")
        lacking = [one for one in checked if not _is_there(root / one.filename, one)]
        if lacking:
            found = f"lacks, or has changed, {len(lacking)} of {len(needed)} files, such as "
            found += lacking[0].filename
            raise BadFile(root, found, f"all of {archive.name}", remedy)
        return
    for name in PASSES:
        pairs = [pair for pair in find_pairs(root, pass_name=name) if pair.flow]
        if len(pairs) != PAIRS_IN_TRAINING_SPLIT:
            found = f"{len(pairs)} pairs with ground truth in its {name} pass"
            raise BadFile(root, found, f"{PAIRS_IN_TRAINING_SPLIT}", remedy)


def _fetch_from_any(urls: Sequence[str], path: Path, track: Track) -> None:
    for url in urls:
        try:
            return fetch_file(url, path, track=track)
        except (OSError, BadFile) as error:
            is_of_the_disk = isinstance(error, OSError) and error.errno
            if url == urls[-1] or is_of_the_disk:
                raise
            logger.warning("%s", error)


def fetch_file(url: str, path: Path, *, track: Track = pass_silently) -> None:
    """Download a file; what an earlier call left of it in ``<path>.partial`` is completed.

    The server is asked again after an error or a pause of 30 seconds, four times without a further
    byte. pooch would fetch all of it again each time.

    Raises
    ------
    OSError
        The server cannot be reached, refuses, or does not send all of it; or the disk is full.
    BadFile
        The answer is a web page, or not what the first download was.
    """
    partial, note = path.with_name(f"{path.name}.partial"), _locate_note(path)
    most = failures = 0
    while True:
        try:
            _request_rest(url, partial, note, track)
            break
        except (requests.RequestException, urllib3.exceptions.HTTPError, EOFError) as error:
            size = _measure(partial)
            refused = isinstance(error, requests.HTTPError) and _is_final(error)
            failures = TRIES if refused else 1 if size > most else failures + 1
            most = max(most, size)
            if failures == TRIES:
                raise OSError(
                    f"{url}: {_shorten(error)}. Call it again later, which goes on from here, or "
                    f"fetch the file otherwise and put it at {path}"
                ) from error
            logger.warning("%s: %s; asking again", url, _shorten(error))
            time.sleep(SECONDS_BETWEEN_TRIES)
    _compare_with_first(partial, note)
    put_in_place(partial, path)


def _is_final(error: requests.HTTPError) -> bool:
    """Whether a server that is asked again would say the same."""
    code = 0 if error.response is None else error.response.status_code
    return 400 <= code < 500 and code not in (408, 429)


def _shorten(error: Exception) -> str:
    """The innermost reason of an error: urllib3's are in those of requests."""
    inner = getattr(error, "reason", None) or next(reversed(error.args), None)
    if isinstance(inner, Exception):
        return _shorten(inner)
    return str(error).rpartition(">: ")[2].split(" for url")[0] or str(error)


def _measure(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _request_rest(url: str, partial: Path, note: Path, track: Track) -> None:
    """Ask for what is missing; write that, or all if the server sends all or another file."""
    done, known = _measure(partial), _read_note(note)
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if known.get("validator"):
            headers["If-Range"] = str(known["validator"])
    with requests.get(url, headers=headers, stream=True, timeout=SECONDS) as answer:
        found = _find_version(answer.headers)
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        is_rest = answer.status_code == requests.codes.partial
        fits = start and int(start[1]) == done and all(known.get(k) == found[k] for k in found)
        if answer.status_code == requests.codes.range_not_satisfiable or (is_rest and not fits):
            partial.unlink(missing_ok=True)
            raise EOFError(f"what follows the {done:,} bytes that are here is not there")
        answer.raise_for_status()
        if urlsplit(url).scheme == "https" != urlsplit(answer.url).scheme:
            raise BadFile(partial, f"sent on to {answer.url}", "an address with https")
        if "html" in answer.headers.get("Content-Type", ""):
            raise BadFile(partial, f"a web page from {answer.url}", "a file", "Look at that page")
        if not is_rest:
            write_text(note, json.dumps(known | found) + "\n")
            done = 0
        _write(answer.raw, partial, done, found["total"], track)


def _find_version(headers: Mapping[str, str]) -> Record:
    """What tells a file from its other versions: its bytes and, if the server knows it, a tag."""
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    tag = headers.get("ETag", "W/")
    validator = headers.get("Last-Modified") if tag.startswith("W/") else tag
    return {"total": int(total) if total.isdecimal() else None, "validator": validator}


def _write(source: BinaryIO, partial: Path, done: int, total: int | None, track: Track) -> None:
    """Append an answer to the first bytes of a file, which may then not be whole."""
    size = ARCHIVE_BYTES if total is None else total
    too_large = OSError(errno.EFBIG, f"more than {MOST_BYTES:,} bytes", str(partial))
    if total is not None and total > MOST_BYTES:
        raise too_large
    require_free_space(partial.parent, size - done + 2 * size)  # with what it unpacks to
    left = None if total is None else (total - done) // BLOCK
    with open(partial, "r+b" if done else "wb") as file, naming(partial):
        file.seek(done)
        for _ in track(_copy(source, file), label=partial.stem, unit="MB", total=left):
            if file.tell() > MOST_BYTES:
                file.truncate(0)
                raise too_large
    if total is not None and _measure(partial) != total:
        raise EOFError(f"{_measure(partial):,} of {total:,} bytes came")


def _copy(source: BinaryIO, file: BinaryIO) -> Iterator[None]:
    """Copy what comes, as it comes; yield after each block."""
    written = 0
    while data := source.read1(2**16):  # type: ignore[attr-defined]  # urllib3's response has it
        file.write(data)
        yield from [None] * ((written + len(data)) // BLOCK - written // BLOCK)
        written += len(data)


def _locate_note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _locate_partial(root: Path) -> Path:
    return root.with_name(f"{root.name}.partial")


def _read_note(note: Path) -> Record:
    """What is known of a file's download; nothing if the note is absent or damaged."""
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def _compare_with_first(partial: Path, note: Path) -> None:
    """Refuse another file than that of the first download."""
    wanted = _read_note(note).get("sha256")
    if wanted and (found := hash_file(partial)) != wanted:
        other = partial.with_suffix(".different")
        partial.replace(other)
        remedy = f"Remove {note} if its publisher has changed the file"
        raise BadFile(other, f"SHA-256 {found}", f"{wanted}, as at the first download", remedy)


def unpack(archive: Path, root: Path, *, track: Track = pass_silently) -> None:
    """Unpack a zip file as a folder that appears when it is whole.

    Files that an earlier call has unpacked, with the size and the CRC-32 that the archive says, are
    kept.

    Raises
    ------
    BadFile
        It is no zip file, damaged, larger inside than it may be, names files outside or such as
        this disk cannot hold, or holds no frames.
    OSError
        The disk is full.
    """
    partial = _locate_partial(root)
    if link := next((one for one in (partial, *partial.rglob("*")) if one.is_symlink()), None):
        raise BadFile(link, "a link", "what an earlier call unpacked", "Remove it")
    with reading(archive, "a zip file of MPI Sintel", "Fetch it again"):
        packed = zipfile.ZipFile(archive)
    with packed:
        entries = packed.infolist()
        bytes_inside = sum(entry.file_size for entry in entries)
        most = MOST_GROWTH * archive.stat().st_size
        outside = [one.filename for one in entries if not _is_inside(one.filename)]
        if outside or bytes_inside > most or not 0 < len(entries) <= MOST_FILES:
            found = f"{len(entries)} files of {bytes_inside:,} bytes"
            limits = f"1 to {MOST_FILES:,} files and at most {most:,} bytes, all inside its folder"
            raise BadFile(archive, (outside or [found])[0], limits, "Fetch it again")
        if not any(re.match("training/[^/]+/[^/]+/frame_", one.filename) for one in entries):
            raise BadFile(archive, "holds no frames", "MPI Sintel", "Fetch it again")
        missing = [one for one in entries if not _is_there(partial / one.filename, one)]
        require_free_space(root.parent, sum(entry.file_size for entry in missing))
        for entry in track(missing, label=f"unpacking {archive.name}", unit="file"):
            with naming(partial):
                _extract(packed, entry, partial)
    put_in_place(partial, root)


def _extract(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    try:
        packed.extract(entry, folder)
    except Exception as error:  # zlib.error, BadZipFile, RuntimeError for a password, struct.error
        if isinstance(error, OSError) and error.errno not in WRONG_NAMES:
            raise  # of the disk
        found = f"{entry.filename} cannot be unpacked ({error})"
        raise BadFile(Path(str(packed.filename)), found, "a whole zip file") from error


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _is_there(path: Path, entry: zipfile.ZipInfo) -> bool:
    """Whether a file, or a folder, was unpacked whole by an earlier call."""
    return _has_size(path, entry) and (entry.is_dir() or zlib.crc32(path.read_bytes()) == entry.CRC)


def _has_size(path: Path, entry: zipfile.ZipInfo) -> bool:
    if entry.is_dir():
        return path.is_dir()
    return path.is_file() and path.stat().st_size == entry.file_size
