"""Take folders of a user out of what is sent to others."""

import html
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from gma_lib.pipeline.chain import digest_record
from gma_lib.pipeline.stages import STAGES
from gma_lib.pipeline.stamps import read_stamp
from gma_lib.runs.files import PROJECT, hash_value, locate_path
from gma_lib.runs.records import SEAL
from gma_lib.runs.run import Run

# Records in the order in which they are made from each other
_ORDER = ["run.json", *(stage.products[0] for stage in STAGES.values())]
SHORT = 8  # characters, which pictures in base64 may hold by chance
_APART = r"(?:(?<=\\n)|(?<=://)|(?<![\w+/=]))"  # not in the middle of such a picture
NOBODY = ("", "root", "home", "user", "users")  # names of home folders that are no user's
_HOME = re.compile(_APART + r"((?:/home|[a-zA-Z]:\\+Users|/Users)[/\\]+)[^/\\\s\"'<>&:;,)]+")


def read_without_folders(files: Iterable[Path], runs: Iterable[Run]) -> Iterator[tuple[Path, str]]:
    """Read text files with names in place of folders: the project's, the home's, Python's, and
    those that a run was given.

    Records that change are sealed again, and so are those that were made from them.

    Yields
    ------
    file, text
        In another order than given.
    """
    shorten = make_shortener(_list_folders(runs))
    digests: dict[str, str] = {}
    for path in sorted(files, key=lambda path: (path.name in _ORDER, _place(path), path)):
        text = path.read_text(encoding="utf-8")
        shorter = shorten(text)
        if path.name in _ORDER:
            before, after = json.loads(text), json.loads(shorter)
            for source, digest in after.get("made_from", {}).items():
                after["made_from"][source] = digests.get(digest, digest)
            for record in (before, after):
                record.pop(SEAL)
            digests[digest_record(before)] = digest_record(after)
            if before != after:
                shorter = json.dumps(after | {SEAL: hash_value(after)}, indent=1) + "\n"
            else:
                shorter = text
        yield path, shorter


def _place(path: Path) -> int:
    return _ORDER.index(path.name) if path.name in _ORDER else 0


def _list_folders(runs: Iterable[Run]) -> dict[str, str]:
    """Folder or file -> what is written instead."""
    found = {
        str(PROJECT): "project",
        str(Path.home()): "~",
        sys.prefix: "python",
        sys.base_prefix: "python",
    }
    for run in runs:
        found |= {str(run.outputs): "outputs", str(run.outputs.resolve()): "outputs"}
        for stage in STAGES:
            stamp = read_stamp(stage, run)
            given = stamp.parameters if stamp else {}
            for name in ("outputs", "sintel_root", "dry_run"):
                found |= _spell(given.get(name), name)
            for name in ("checkpoint", "ais_python"):
                found |= _spell(given.get(name), Path(given.get(name) or "").name)
    return found


def _spell(given: str | None, word: str) -> dict[str, str]:
    """The ways in which a path may have been written down."""
    if not given or "/" not in given:
        return {}
    path = locate_path(given)
    return dict.fromkeys((given, str(path), str(path.resolve())), word)


def make_shortener(folders: dict[str, str]) -> Callable[[str], str]:
    """Return a function that puts names in place of folders in a text: of those given, the longest
    first, as they are or as JSON, HTML and links spell them, and the user's in any other path.
    """
    words: dict[str, str] = {}
    # a root, as a container's home may be one, names nobody and is in every text
    folders = {folder: word for folder, word in folders.items() if len(Path(folder).parts) > 1}
    for write in (str, lambda text: json.dumps(text)[1:-1], html.escape, quote):
        words |= {write(folder): write(word) for folder, word in folders.items()}
    parts = [
        (_APART if len(form) < SHORT else "") + re.escape(form) + r"(?!\w)"
        for form in sorted(words, key=len, reverse=True)
    ]
    known, user = re.compile("|".join(parts)), Path.home().name
    elsewhere = re.compile(rf"([\s\"'(>=:](?:/[^\s\"'<>/]+)*/){re.escape(user)}(?=/)")

    def shorten(text: str) -> str:
        text = known.sub(lambda found: words[found[0]], text) if words else text
        text = _HOME.sub(r"\1user", text)
        return text if user.lower() in NOBODY else elsewhere.sub(r"\1user", text)

    return shorten
