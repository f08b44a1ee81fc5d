"""Folders of built files, each sealed by a list of their digests: used as they were built, or built
again.

A seal protects from accidents: a damaged disk, an interrupted copy, a file that was edited. It does
not protect from somebody who changes the seal too.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from gma_lib.runs.code import digest_module, list_loaded_modules, locate_module
from gma_lib.runs.files import hash_file, hash_value, make_plain, require_writable, write_atomically
from gma_lib.runs.leftovers import remove, remove_leftovers
from gma_lib.runs.processes import lock_path
from gma_lib.runs.records import Record

SEAL = "seal.json"
SCHEMA = 1

logger = logging.getLogger(__name__)


def open_sealed(
    folder: Path,
    made_from: Record,
    build: Callable[[Path], object],
    *,
    with_code: bool = False,
    first: str = "",
    say: Callable[[str], None] = logger.warning,
) -> Path:
    """Return a folder of built files after checking all of them; build it where it is absent or not
    as it was built.

    Parameters
    ----------
    folder
        Whole or absent; a killed build leaves nothing in its place.
    made_from
        What decides the files, by digest or value.
    build
        Writes the files into the empty folder that it is given.
    with_code
        Whether the code decides the files too: all modules of this package that were loaded when
        they were built.
    first
        Message before a first build, if any.
    say
        Callback for that message, or for the one that says why a folder is built again.
    """
    if folder.parent.is_dir():
        remove_leftovers(folder.parent)
    if find_fault(folder, made_from) is None:
        return folder
    require_writable(folder.parent, "make it writable, or name another one (GMA_CACHE)")
    with lock_path(folder.with_name(f".{folder.name}.lock")):
        if (fault := find_fault(folder, made_from)) is None:
            return folder  # another process was faster
        if message := f"{folder}: {fault}; building it again" if os.path.lexists(folder) else first:
            say(message)
        remove(folder)
        with write_atomically(folder) as making:
            making.mkdir()
            build(making)
            _write_seal(making, made_from, list_loaded_modules() if with_code else [])
    return folder


def find_fault(folder: Path, made_from: Record) -> str | None:
    """Say what is wrong with a sealed folder, or None; folders inside it are not its business."""
    try:
        seal = json.loads((folder / SEAL).read_bytes())
        if seal.pop("sha256") != hash_value(seal) or seal["schema"] != SCHEMA:
            return "its seal was changed"
        found, files = _hash_files(folder), seal["files"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return "its files or its seal cannot be read"
    if seal["made_from"] != make_plain(made_from):
        return "it was made from something else"
    changed = sorted(name for name in found | files if found.get(name) != files.get(name))
    changed += [name for name, digests in seal["code"].items() if not _is_same(name, *digests)]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"{', '.join(changed[:3])}{more} changed since" if changed else None


def _write_seal(folder: Path, made_from: Record, modules: list[str]) -> None:
    content = {
        "schema": SCHEMA,
        "made_from": make_plain(made_from),
        "files": _hash_files(folder),
        "code": {name: [hash_file(locate_module(name)), digest_module(name)] for name in modules},
    }
    whole = content | {"sha256": hash_value(content)}
    (folder / SEAL).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _hash_files(folder: Path) -> dict[str, str]:
    return {
        path.name: hash_file(path)
        for path in sorted(folder.iterdir())
        if path.name != SEAL and not path.is_dir()
    }


def _is_same(module: str, file_digest: str, tree_digest: str) -> bool:
    """Whether a module's code is as it was; its file's digest spares reading most of them."""
    path = locate_module(module)
    return path.is_file() and (
        hash_file(path) == file_digest or digest_module(module) == tree_digest
    )
