"""Take folders and names of a user out of what is sent to others."""

import html
import json
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from gma_lib.pipeline.chain import digest_record
from gma_lib.pipeline.stages import NOTEBOOKS, STAGES
from gma_lib.pipeline.stamps import read_stamp
from gma_lib.runs.files import PACKAGE, PROJECT, hash_value, locate_path
from gma_lib.runs.records import SEAL
from gma_lib.runs.run import Run

# Records in the order in which they are made from each other
_ORDER = ["run.json", *(stage.products[0] for stage in STAGES.values())]
PROSE = (".ipynb", ".html")  # elsewhere a word may be a key, or a scene's name
SHORTEST_NAME = 4  # letters, of a name that is looked for as a word
SHORT = 8  # characters, which pictures in base64 may hold by chance
_APART = r"(?:(?<=\\n)|(?<=://)|(?<![\w+/=]))"  # not in the middle of such a picture
_AFTER = r"\\n|\\u001b\[[\d;]*m"  # the end of a line and a colour, as JSON spells them
NOBODY = ("", "root", "home", "user", "users")  # names of home folders that are no user's
_HOME = re.compile(_APART + r"((?:/home|[a-zA-Z]:\\+Users|/Users)[/\\]+)[^/\\\s\"'<>&:;,)]+")
_WORKER = re.compile(r"\b(the worker )\S+?(?=, and | cannot keep | was lost)")  # in gma_lib.runs


def read_without_folders(files: Iterable[Path], runs: Iterable[Run]) -> Iterator[tuple[Path, str]]:
    """Read text files with names in place of folders: the project's, the home's, Python's, and
    those that a run was given. Notebooks and pages name neither the machine nor its user, no
    scheduler and no worker.

    Records that change are sealed again, and so are those that were made from them.

    Yields
    ------
    file, text
        In another order than given.
    """
    runs = list(runs)
    shorten, rename = make_shortener(_list_folders(runs)), make_renamer(_list_names(runs))
    digests: dict[str, str] = {}
    for path in sorted(files, key=lambda path: (path.name in _ORDER, _place(path), path)):
        text = path.read_text(encoding="utf-8")
        shorter = rename(shorten(text)) if path.suffix in PROSE else shorten(text)
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


def _list_names(runs: Iterable[Run]) -> dict[str, str]:
    """Name of a machine or a user -> what is written instead."""
    found = {platform.node(): "machine", Path.home().name: "user"}
    stamps = (read_stamp(stage, run) for run in runs for stage in STAGES)
    for cluster in {stamp.parameters.get("cluster", "") for stamp in stamps if stamp}:
        if cluster.startswith("dask:") and cluster != "dask:local":
            address = cluster.removeprefix("dask:").rpartition("/")[2]
            found |= dict.fromkeys((address, address.rpartition(":")[0]), "scheduler")
    return {name.partition(".")[0]: word for name, word in found.items()} | found


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
    elsewhere = re.compile(rf"((?:[\s\"'(>=:]|{_AFTER})(?:/[^\s\"'<>/]+)*/){re.escape(user)}(?!\w)")

    def shorten(text: str) -> str:
        text = known.sub(lambda found: words[found[0]], text) if words else text
        text = _HOME.sub(r"\1user", text)
        return text if user.lower() in NOBODY else elsewhere.sub(r"\1user", text)

    return shorten


def make_renamer(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that puts words in place of names in a notebook or a page, where they stand
    alone, and of workers in the messages of ``gma_lib.runs``.

    A name of fewer than four letters stays, and so does one that the package has as a word itself
    ("flow"): it tells nothing, and a notebook or a page may need it.
    """
    sources = (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.j2"), *NOTEBOOKS.glob("*.ipynb"))
    own = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    told = {
        name: word
        for name, word in names.items()
        if len(name) >= SHORTEST_NAME
        and name.lower() not in NOBODY
        and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", own, re.IGNORECASE)
    }
    longest_first = sorted(told, key=len, reverse=True)
    parts = [rf"{_APART}(?<![.#-]){re.escape(name)}(?!\w)" for name in longest_first]
    known = re.compile("|".join(parts))

    def rename(text: str) -> str:
        text = _WORKER.sub(r"\1NAME", text)
        return known.sub(lambda found: told[found[0]], text) if told else text

    return rename
