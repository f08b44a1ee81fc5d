"""Read and write the JSON files of this package: schema, provenance, content."""

import json
import math
import platform
import re
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import gma_lib
from gma_lib.runs.code import list_loaded_modules
from gma_lib.runs.files import (
    REMEDY,
    hash_value,
    make_plain,
    read_whole,
    reading,
    shorten_path,
    write_text,
)
from gma_lib.runs.machine import (
    describe_computing,
    describe_machine,
    find_commit,
    find_versions,
)

SCHEMA = 3
SEAL = "record_sha256"
DEEPEST = 20  # levels of a YAML file
LONGEST_YAML = 50_000  # characters, which take about a second
DECIMAL = re.compile(r"[-+]?((0|[1-9]\d*)|(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\.(inf|nan))", re.I)
Record = dict[str, Any]  # a JSON object


def write_json(path: Path, content: Record) -> None:
    """Write ``content`` with its schema, its provenance and its own digest, whole or not at all.

    NaN and infinity become null.
    """
    whole = {"schema": SCHEMA, "provenance": trace_provenance()} | content
    sealed = whole | {SEAL: hash_value(whole)}
    write_text(path, json.dumps(make_plain(sealed), indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *, made_by: str) -> Record:
    """Read a record that ``write_json`` wrote, exactly as it was written.

    Its digest covers every name, type and value, so no model of each record has to repeat them.

    Raises
    ------
    FileNotFoundError, ValueError
        It is missing, damaged, changed or of another version; the message names the notebook.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{shorten_path(path)} is missing: run {made_by} first, with the same parameters"
        )
    content = load_record(path, f"a record of {made_by}", f"Delete it and run {made_by} again")
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"{shorten_path(path)} has schema {content.get('schema')}, not {SCHEMA}: "
            f"run {made_by} again"
        )
    if content.pop(SEAL, None) != hash_value(content):
        raise ValueError(f"{shorten_path(path)} was changed since: run {made_by} again")
    return content


def load_record(path: Path, expected: str, remedy: str = REMEDY) -> Record:
    """Read a JSON file that holds an object; raise ``BadFile`` for any other."""
    with reading(path, expected, remedy) as path:
        content = parse_json(read_whole(path))
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}")
    return content


def parse_json(text: str | bytes) -> object:
    """Parse JSON text; ValueError if it is not valid.

    What the digest of a record would not show is refused: a name twice in an object, of which the
    last would count, and NaN, infinity and numbers beyond what floats hold.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_require_unique,
            parse_constant=_parse_finite,
            parse_float=_parse_finite,
            parse_int=_parse_finite,
        )
    except RecursionError as error:
        raise ValueError("objects or lists too deep inside each other") from error


def _require_unique(pairs: list[tuple[str, object]]) -> Record:
    if len(found := dict(pairs)) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!a} is given twice")
    return found


def _parse_finite(text: str) -> float:
    """Return a number, whole where it is written so."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is none that a record holds")
    return int(text) if text.lstrip("-").isdigit() else number


def read_yaml(path: Path) -> object:
    """Read a YAML file; ValueError if it is not valid."""
    return parse_yaml(read_whole(path, largest=4 * LONGEST_YAML).decode())


def parse_yaml(text: str) -> object:
    """Parse YAML text; ValueError if it is not valid.

    Aliases and deep nesting are refused: with them, a few lines can describe more than a memory
    holds, or take minutes to read. So is a name twice, of which the last would count.
    """
    try:
        if len(text) > LONGEST_YAML:
            raise ValueError(f"{len(text):,} characters; at most {LONGEST_YAML:,} are read")
        depth = 0
        for event in yaml.parse(text):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
                raise ValueError(f"aliases (*name), or more than {DEEPEST} levels")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _require_clear(node)
        return node and loader.construct_document(node)
    except Exception as error:  # its constructors raise anything
        raise ValueError(f"not readable YAML: {' '.join(str(error).split())[:200]}") from error


def _require_clear(node: object) -> None:
    """Raise ValueError where a mapping of a YAML text holds a name twice, or a number is another
    one than it looks, as 012 is ten and 1:30 is ninety.
    """
    if isinstance(node, yaml.ScalarNode):
        is_number = node.tag.endswith((":int", ":float"))
        if is_number and not DECIMAL.fullmatch(node.value):
            raise ValueError(f"{node.value!a} is not a decimal number; put quotes around a text")
    inside = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        _require_unique([(str(name.value), None) for name, _ in inside])
        inside = [one for pair in inside for one in pair]
    for one in inside:
        _require_clear(one)


def trace_provenance() -> Record:
    """Collect what made a result: package, commit, machine, versions, time; where PyTorch is loaded
    (to import it takes seconds), also instruction sets and threads.
    """
    return {
        "package": gma_lib.__version__,
        "commit": find_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version()} | find_versions(),
        **({"computing": describe_computing()} if sys.modules.get("torch") else {}),
        "modules": list_loaded_modules(),
    }


def describe_provenance(made: Record | None = None) -> str:
    """Say what made a page, in a sentence for its footer: this process, or what a record names."""
    made = made or trace_provenance()
    here = made["machine"]
    versions_line = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"Made by gma_lib {made['package']}, commit {made['commit'] or 'unknown'}, "
        f"on {made['created']}; {here['processor']}, {here['cores']} cores, "
        f"{here['memory_bytes'] / 1e9:.0f} GB; {versions_line}."
    )
