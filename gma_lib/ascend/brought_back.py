"""What another machine made of a dry run's folder: checked whole, then read like results of a card
that is here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import gma_lib
from gma_lib.ascend.ais_bench import (
    Timing,
    collect_outputs,
    find_summary,
    read_loop,
    read_summary,
    refuse_failure,
)
from gma_lib.ascend.atc import SUCCESS, AtcError, parse_memory
from gma_lib.ascend.errors import explain_atc_error
from gma_lib.ascend.toolkit import read_version
from gma_lib.runs import Record, hash_file, read_json, read_whole, reading, shorten_path

ABOUT, SENT, MEASURED = "dry_run.json", "sent.sha256", "measured"
MEMORY = "memory.txt"  # what atc --mode=6 printed
_MADE = ("soc", "keep", "command", "options", "onnx_sha256", "source_sha256")
WROTE_IT = "make ascend-dry-run"
BRING = "Run run.sh there, and bring output_* and measured back"


@dataclass(frozen=True)
class BroughtBack:
    """One batch size of a folder, every file of which is as it was written.

    Attributes
    ----------
    manifest
        As ``gma_lib.ascend.atc.convert_to_om`` returns it, and the digests of what was brought
        back.
    flow
        Digests of the files of both frames -> the output file of that pair.
    timing
        Of the loop on zeros.
    """

    manifest: Record
    flow: dict[tuple[str, str], Path]
    timing: Timing


def read_about(folder: Path) -> Record:
    """Read what a dry run's folder says about itself; ValueError where another version of this
    package wrote it, or its list of files has changed.
    """
    about = read_json(Path(folder) / ABOUT, made_by=WROTE_IT)
    version = about["provenance"]["package"]
    if version != gma_lib.__version__:
        raise ValueError(
            f"{shorten_path(folder)} was made by version {version} of this package, this is "
            f"{gma_lib.__version__}: run {WROTE_IT} and run.sh again, or use that version"
        )
    if hash_file(Path(folder) / SENT) != about["sent_sha256"]:
        raise ValueError(f"{shorten_path(folder)}/{SENT} has changed: run {WROTE_IT} again")
    return about


def require_unchanged(folder: Path) -> None:
    """Raise ValueError where a model, a script or a tensor that is there is not what was sent."""
    for name, digest in _read_sums(folder / SENT).items():
        if (folder / name).is_file() and hash_file(folder / name) != digest:
            raise ValueError(
                f"{shorten_path(folder / name)} is not what the dry run wrote: run {WROTE_IT} "
                "again, and run.sh with the new folder"
            )


def read_brought_back(folder: Path, batch_size: int) -> BroughtBack:
    """Read the results of one batch size.

    Raises
    ------
    DoesNotFit
        The card's memory ran out.
    AtcError, AisBenchError
        A tool failed there; as where it runs here.
    ValueError
        Files are missing, more than was written, changed, or of another dry run or batch size.
    """
    folder = Path(folder)
    about, name = read_about(folder), f"bs{batch_size}"
    if str(batch_size) not in about["sizes"]:
        raise ValueError(
            f"{shorten_path(folder)} was made for batch size {', '.join(about['sizes'])}, not "
            f"{batch_size}: run {WROTE_IT} with BS={batch_size}"
        )
    mine, places = about["sizes"][str(batch_size)], list_places(about["passes"], batch_size)
    if not mine.keys() >= set(_MADE):
        raise ValueError(f"{shorten_path(folder)} is of an older version: run {WROTE_IT} again")
    done, cann = folder / MEASURED / f"{name}.sha256", place_cann(name)
    if not done.is_file():
        _explain_absence(folder, about["sent_sha256"], batch_size)
    sums, sent = _read_sums(done), _read_sums(folder / SENT)
    if sums.pop(SENT, None) != about["sent_sha256"] or mine["om"] not in sums:
        raise ValueError(f"{shorten_path(done)} is of another dry run or batch size. {BRING}")
    om_sha256 = sums.pop(mine["om"])
    _require_memory(done, f"{cann}/{MEMORY}", sums)
    _require_whole(folder, [*places, cann], sums)
    outputs = {
        pass_name: collect_outputs(
            folder / f"output_{pass_name}" / name, stems, tuple(mine["output_shape"])
        )
        for pass_name, stems in about["passes"].items()
    }
    timings = [
        read_loop(folder / places[-1], newer_than=0, batch_size=batch_size),
        *(read_summary(find_summary(folder / place, newer_than=0)) for place in places[:-1]),
    ]
    tensor = "tensors/{}/image{}/{}.bin".format
    return BroughtBack(
        {name: mine[name] for name in _MADE}
        | {
            "cann": read_version(folder / cann),
            "om_sha256": om_sha256,
            "memory_bytes": parse_memory(_read_text(folder / cann / MEMORY)),
            "simulated": any(timing.simulated for timing in timings),
            "warnings": [],
            "brought_back": sums,
        },
        {
            (sent[tensor(pass_name, 1, stem)], sent[tensor(pass_name, 2, stem)]): file
            for pass_name, files in outputs.items()
            for stem, file in files.items()
        },
        timings[0],
    )


def says_simulated(folder: Path, batch_size: int) -> bool:
    """Whether the log of a batch size that failed is of stand-ins for the tools."""
    return "[SIMULATED]" in _read_text(Path(folder) / _name_log(batch_size))


def _name_log(batch_size: int) -> str:
    return f"{MEASURED}/bs{batch_size}.log"


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def place_cann(name: str) -> str:
    """Return the folder for the version of CANN and the memory of ``bs<n>``."""
    return f"{MEASURED}/{name}_cann"


def list_places(passes: Iterable[str], batch_size: int) -> list[str]:
    """List the folders that ``ais_bench`` writes for a batch size, that of the times last; each has
    its summary beside it.
    """
    return [f"{place}/bs{batch_size}" for place in (*(f"output_{one}" for one in passes), MEASURED)]


def _read_sums(path: Path) -> dict[str, str]:
    """Name -> digest, of a file of ``sha256sum``."""
    with reading(path, "lines of sha256sum", BRING) as path:
        lines = read_whole(path).decode().splitlines()
        parts = [re.fullmatch(r"([0-9a-f]{64})  (?:\./)?(.+)", line) for line in lines]
        sums = {part[2]: part[1] for part in parts if part}
        if not sums or len(sums) != len(lines):
            raise ValueError("lines that are no checksums, or a name twice")
        return sums


def _require_memory(done: Path, memory: str, sums: dict[str, str]) -> None:
    """Raise ValueError where the list is of a run.sh that left memory and version unlisted."""
    if memory not in sums:
        raise ValueError(
            f"{shorten_path(done)} does not list {memory}, as an older run.sh wrote it: run "
            f"{WROTE_IT} again, and run.sh with the new folder"
        )


def _require_whole(folder: Path, places: list[str], sums: dict[str, str]) -> None:
    """Raise ValueError unless exactly these files lie in the places, unchanged."""
    there = {
        file.relative_to(folder).as_posix()
        for place in places
        for file in (*(folder / place).rglob("*"), folder / f"{place}_summary.json")
        if file.is_file() and not file.name.startswith(".")  # macOS leaves ._names
    }
    wrong = {
        "missing": sorted(sums.keys() - there),
        "not of this run": sorted(there - sums.keys()),
        "changed": [
            name for name in sorted(there & sums.keys()) if hash_file(folder / name) != sums[name]
        ],
    }
    if any(wrong.values()):
        found = "; ".join(
            f"{len(names)} {word}, such as {names[0]}" for word, names in wrong.items() if names
        )
        raise ValueError(f"{shorten_path(folder)} is not what run.sh left: {found}. {BRING}")


def _explain_absence(folder: Path, sent_sha256: str, batch_size: int) -> NoReturn:
    """Raise what the tools' own wrappers raise when a tool has failed, by what it printed."""
    log = _name_log(batch_size)
    if not (folder / log).is_file():
        raise FileNotFoundError(
            f"{shorten_path(folder)} has no results of batch size {batch_size}. {BRING}"
        )
    ended = folder / f"{log}.sha256"
    if not ended.is_file():
        raise FileNotFoundError(
            f"{shorten_path(ended)} is missing: run.sh did not finish batch size {batch_size}, or "
            f"is of an older version. {BRING}, or run {WROTE_IT} again"
        )
    if _read_sums(ended) != {SENT: sent_sha256, log: hash_file(folder / log)}:
        raise ValueError(
            f"{shorten_path(folder / log)} has changed, or is of another dry run or batch size. "
            f"{BRING}"
        )
    text = _read_text(folder / log)
    if "sha256sum:" in text:
        raise ValueError(
            f"{shorten_path(folder)}: its models or tensors had changed on the other machine "
            f"({log} names them): copy the folder there again. {BRING}"
        )
    if SUCCESS not in text:
        raise AtcError(f"atc failed on the other machine: {explain_atc_error(text)}")
    refuse_failure("on the other machine", text, text, batch_size)
