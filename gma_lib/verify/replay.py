"""Compute an archived run again, from what its records say."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gma_lib.data.sintel import find_root
from gma_lib.network import SEEDED
from gma_lib.pipeline.settings import read_settings
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.runs.files import (
    RESOURCES,
    BadFile,
    hash_file,
    locate_path,
    reading,
    write_atomically,
)
from gma_lib.runs.records import Record, read_json
from gma_lib.runs.run import Run
from gma_lib.verify.values import collect_recorded

METADATA = "ro-crate-metadata.json"  # the name that RO-Crate prescribes
ARCHIVE = "a report that `gma report --archive` wrote"
RECORDS = [stage.products[0] for stage in STAGES.values()] + ["run.json"]
MEMBER = re.compile(r"[\w.-]{1,100}/(data|[\w.-]{1,100}/bs[0-9]{1,4})/[a-z]{1,20}\.json", re.ASCII)
MOST_BYTES = 2**26  # of all records; full Sintel's metrics have 2**24, and need 20 times that

MOST_GROWTH = 100  # of records when they are unpacked; ours grow tenfold


def unpack_records(archive: Path, folder: Path) -> list[Run]:
    """Write the records of an archive's runs into a folder, as a run would have left them, and
    check them. Nothing else of the archive is unpacked.

    Returns
    -------
    list of Run
        Every run whose flow was scored, sorted by name and batch size.

    Raises
    ------
    BadFile
        It is no such archive, holds no scored run, or a record in it is missing, was changed or is
        of another version.
    """
    with reading(archive, ARCHIVE, "Ask for it again") as archive, zipfile.ZipFile(archive) as file:
        records = [
            member
            for member in file.infolist()
            if MEMBER.fullmatch(member.filename) and Path(member.filename).name in RECORDS
        ]
        parsed = [*records, *(one for one in file.infolist() if one.filename == METADATA)]
        size, packed = (
            sum(one.file_size for one in parsed),
            sum(one.compress_size for one in parsed),
        )
        if size > min(MOST_BYTES, MOST_GROWTH * packed):
            raise ValueError(f"records of {packed:,} bytes that unpack to {size:,}")
        _check_listed(file, [member.filename for member in records])
        for member in records:
            if ".." in Path(member.filename).parts:
                raise ValueError(f"{member.filename} is no record")
            place = folder / member.filename
            with write_atomically(place) as partial, file.open(member) as content:
                partial.write_bytes(content.read(MOST_BYTES))
        try:
            runs = sorted(_find_runs(folder), key=lambda run: (run.name, run.batch_size))
            for run in runs:
                collect_recorded(run)
        except (FileNotFoundError, ValueError) as error:
            advice = "; expected |: run "  # for the run's owner
            raise ValueError(re.split(advice, str(error))[0]) from error
    if not runs:
        raise BadFile(archive, "no run that was scored", ARCHIVE, "Share a run after 05_evaluate")
    return runs


def _check_listed(file: zipfile.ZipFile, records: list[str]) -> None:
    """Raise ValueError unless an archive has the records that it lists, as they are listed."""
    with file.open(METADATA) as content:
        entities = json.loads(content.read(MOST_BYTES))["@graph"]
    listed = {
        entity["@id"]: entity.get("sha256")  # older archives have none
        for entity in entities
        if MEMBER.fullmatch(entity["@id"]) and Path(entity["@id"]).name in RECORDS
    }
    for name in sorted({*listed, *records}):
        if records.count(name) != 1 or name not in listed:
            raise ValueError(f"{name} is missing, there twice or not listed in {METADATA}")
        digest = hashlib.sha256(file.read(name)).hexdigest()
        if digest != (listed[name] or digest):
            raise ValueError(f"{name} was changed")


def _find_runs(folder: Path) -> Iterator[Run]:
    for metrics in folder.glob("*/*/bs*/metrics.json"):
        profile, name, size = metrics.parent.relative_to(folder).parts
        run = Run(folder, profile, "", "", int(size[2:]), name)
        settings = read_settings(run)
        yield replace(run, backend=settings["backend"], precision=str(settings["precision"]))


def list_overrides(run: Run, *, sintel: str | None, checkpoint: str | None) -> Record:
    """List the parameters with which an archived run is computed again.

    Parameters
    ----------
    sintel
        Folder of the frames, for a run on frames that this package does not render.
    checkpoint
        File of the weights, for a run with other than bundled ones.

    Raises
    ------
    ValueError
        Frames or weights are needed, with their digest, or a file given has another one.
    """
    index = read_json(locate_record("01_data", run), made_by="01_data")
    exported = read_json(locate_record("02_export", run), made_by="02_export")
    metrics = read_json(locate_record("05_evaluate", run), made_by="05_evaluate")
    settings: Record = {**read_settings(run)}
    del settings["ais_python"]  # a file of another machine
    overrides = {name: value for name, value in settings.items() if value is not None}
    overrides |= {"run": run.name, "split": index["split"]}
    overrides["passes"] = list(dict.fromkeys(pair["pass_name"] for pair in index["pairs"]))
    if "classical" in metrics:
        overrides["classical_pairs"] = metrics["classical"]["pairs"]
    scenes = list(dict.fromkeys(pair["scene"] for pair in index["pairs"]))
    if index["description"].startswith("Demo set"):
        last = max(pair["number"] for pair in index["pairs"])
        size = {"demo_height": index["height"], "demo_width": index["width"], "scenes": scenes}
        overrides |= size | {"demo_frames": last + 1}
    elif sintel is None:
        raise ValueError(f"the run is of {index['description']}: give its folder with --sintel")
    else:
        overrides |= {"sintel_root": sintel, "scenes": scenes}
        _require_frames(find_root(Path(sintel), index["split"]), index["pairs"])
    weights = exported["checkpoint"]
    if checkpoint is not None:
        overrides["checkpoint"] = checkpoint
        if hash_file(locate_path(checkpoint)) != weights["sha256"]:
            raise ValueError(
                f"{checkpoint} has another SHA-256 than the run's weights, {weights['sha256']}"
            )
    elif settings["checkpoint"] != SEEDED:
        bundled = RESOURCES / "weights" / f"{settings['checkpoint']}.safetensors"
        if not bundled.is_file() or hash_file(bundled) != weights["sha256"]:
            raise ValueError(
                f"the weights of SHA-256 {weights['sha256']} do not come with this version: give "
                "their file with --checkpoint"
            )
    return overrides


def _require_frames(root: Path, pairs: list[Record]) -> None:
    recorded = {
        pair["files"][kind]: pair["sha256"][kind] for pair in pairs for kind in pair["files"]
    }
    for name, digest in recorded.items():
        if not (root / name).is_file() or hash_file(root / name) != digest:
            raise ValueError(f"{root / name} is not the run's file, which has SHA-256 {digest}")


def read_surroundings(run: Run) -> dict[str, str]:
    """What may have decided the digits of an archived run, as far as its records say."""
    made = read_json(locate_record("05_evaluate", run), made_by="05_evaluate")["provenance"]
    versions = {name: version.split("+")[0] for name, version in made["versions"].items()}
    versions.pop("python")
    return versions | {name: str(made["machine"][name]) for name in ("processor", "cores")}
