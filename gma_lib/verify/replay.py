"""Read the runs of a shared report or of a folder of results, and with which parameters each is
computed again.
"""

import hashlib
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

from gma_lib.data.sintel import choose_subset, find_pairs, find_root, load_pairs
from gma_lib.network import SEEDED
from gma_lib.pipeline.chain import RENDERED, read_index, read_records, require_sources
from gma_lib.pipeline.settings import read_settings
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.pipeline.stamps import CURRENT, read_statuses
from gma_lib.runs.files import (
    RESOURCES,
    BadFile,
    blaming,
    hash_file,
    locate_path,
    read_whole,
    reading,
    shorten_path,
    write_atomically,
)
from gma_lib.runs.records import Record, parse_json, read_json
from gma_lib.runs.run import Run
from gma_lib.verify.expected import describe_values
from gma_lib.verify.values import INSIDE, LAST, Value, collect_inside, collect_recorded, read_inside

METADATA = "ro-crate-metadata.json"  # the name that RO-Crate prescribes
DESCRIBED = 100  # characters of an archive's own words in a message
ARCHIVE = "a report that `gma report --archive` wrote, or a profile's folder in outputs/"
_NEWER = ("distance", "graph", "work")  # kinds of which earlier versions recorded fewer entries
ASK = "Ask for it again, or run gma reproduce again if it is yours"
RECORDS = [stage.products[0] for stage in STAGES.values()] + ["run.json"]
METRICS = STAGES[LAST].products[0]
FOLDER = r"[a-zA-Z0-9][\w.-]{0,99}"  # as check_folder_name has it
MEMBER = re.compile(rf"{FOLDER}/(data|{FOLDER}/bs[1-9][0-9]{{0,3}})/[a-z]{{1,20}}\.json", re.ASCII)
MOST_BYTES = 2**26  # of all records; full Sintel's metrics have 2**24, and need 20 times that
MOST_GROWTH = 100  # of records when they are unpacked; ours grow tenfold


class AskedFor(ValueError):
    """Frames or weights that an archive does not hold: not given, or others than the run's."""


def unpack_records(archive: Path, folder: Path) -> list[Run]:
    """Write the records of an archive's runs into a folder, as a run would have left them, and
    check them. Nothing else of the archive is unpacked.

    Parameters
    ----------
    archive
        What ``make share`` wrote, packed or unpacked, or the folder of a profile's results.

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
    if archive.is_dir():
        with blaming(archive, ARCHIVE, ASK):
            records = _read_folder(archive)
    else:
        with reading(archive, ARCHIVE, ASK):
            records = _read_records(archive)
    for name, content in records.items():
        with write_atomically(folder / name) as partial:
            partial.write_bytes(content)
    with blaming(archive, ARCHIVE, ASK):
        try:
            runs = sorted(_find_runs(folder), key=lambda run: (run.name, run.batch_size))
            for run in runs:
                _require_readable(run)
        except (FileNotFoundError, ValueError) as error:
            advice = "; expected |[:;] run "  # for the run's owner
            found = re.split(advice, str(error))[0].replace(f"{shorten_path(folder)}/", "")
            raise ValueError(found) from error
    if not runs:
        raise BadFile(archive, "no run that was scored", ARCHIVE, "Share a run after 05_evaluate")
    return runs


def _require_readable(run: Run) -> None:
    """Raise ValueError unless all that a replay reads of an archived run can be read, and belongs
    together.
    """
    try:
        describe_values(collect_recorded(run) | collect_inside(run), read_surroundings(run))
        for stage in (LAST, *([INSIDE] if read_inside(run) else [])):
            path = locate_record(stage, run)
            made_from = read_json(path, made_by=stage).get("made_from", {})
            require_sources(path, stage, made_from, read_records(run, stage))
        with suppress(AskedFor):  # once all is read
            list_overrides(run, sintel=None, checkpoint=None)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{run.title}: not as this version writes it ({error!r:.80})") from error


def _read_records(archive: Path) -> dict[str, bytes]:
    """Return the records of an archive that it lists, as they are listed."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            names = [one.filename for one in members if _is_record(one.filename)]
            parsed = [one for one in members if one.filename in (METADATA, *names)]
            size, packed = (
                sum(one.file_size for one in parsed),
                sum(one.compress_size for one in parsed),
            )
            if size > min(MOST_BYTES, MOST_GROWTH * packed):
                raise ValueError(f"records of {packed:,} bytes that unpack to {size:,}")
            content = {one.filename: file.read(one) for one in parsed}
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError("no zip file, or a damaged or encrypted one") from error
    if METADATA not in content:
        raise ValueError(f"an archive without {METADATA} at its top")
    _require_listed(content, names)
    return content


def _read_folder(folder: Path) -> dict[str, bytes]:
    """Return the records of an unpacked archive, as it lists them, or of a profile's results."""
    top, listed = folder.resolve(), (folder / METADATA).is_file()
    root, profile = (top, "*") if listed else (top.parent, top.name)
    is_named = listed or re.fullmatch(FOLDER, profile, re.ASCII)
    files = {
        name: path
        for pattern in (("data/*.json", "*/bs*/*.json") if is_named else ())
        for path in root.glob(f"{profile}/{pattern}")
        if _is_record(name := path.relative_to(root).as_posix())
    }
    if (size := sum(path.stat().st_size for path in files.values())) > MOST_BYTES:
        raise ValueError(f"records of {size:,} bytes")
    content = {name: read_whole(path) for name, path in files.items()}
    if listed:
        content[METADATA] = read_whole(folder / METADATA)
        _require_listed(content, list(files))
    else:
        _require_current(root, files)
    return content


def _require_current(root: Path, names: Iterable[str]) -> None:
    """Raise ValueError unless every scored run of these results is as its stages left it: the
    numbers of one that is not are of other frames, weights or settings than are there now.
    """
    for run in _list_scored(root, names):
        read_settings(run)  # which tells a copied or renamed folder
        statuses = read_statuses(run)
        stages = [*STAGES[LAST].reads, LAST, *([INSIDE] if read_inside(run) else [])]
        for stage in stages:
            if statuses[stage] not in CURRENT:
                raise ValueError(f"{run.title}: {stage} is {statuses[stage] or 'not run'}")


def _require_listed(content: dict[str, bytes], names: list[str]) -> None:
    """Take the metadata out of an archive's content; raise ValueError unless its records are those
    that the metadata list, as they are listed.
    """
    listed = _list_digests(content.pop(METADATA))
    for name in sorted({*listed, *names}):
        if name not in content:
            raise ValueError(f"{name} is missing")
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice")
        if name not in listed:
            raise ValueError(f"{name} is not listed in {METADATA}: added or renamed")
        digest = hashlib.sha256(content[name]).hexdigest()
        if digest != (listed[name] or digest):
            raise ValueError(f"{name} was changed")


def _is_record(name: str) -> bool:
    return bool(MEMBER.fullmatch(name)) and Path(name).name in RECORDS


def _list_digests(metadata: bytes) -> dict[str, str | None]:
    """Record -> SHA-256, from ``ro-crate-metadata.json``; older archives have none."""
    content = parse_json(metadata)
    entities = content.get("@graph") if isinstance(content, dict) else None
    if not isinstance(entities, list) or not all(
        isinstance(one, dict) and isinstance(one.get("@id"), str) for one in entities
    ):
        raise ValueError(f"{METADATA} lists no files")
    return {one["@id"]: one.get("sha256") for one in entities if _is_record(one["@id"])}


def _find_runs(folder: Path) -> Iterator[Run]:
    files = (path.relative_to(folder).as_posix() for path in folder.glob("*/*/bs*/*.json"))
    for run in _list_scored(folder, files):
        settings = read_settings(run)
        yield replace(run, backend=settings["backend"], precision=str(settings["precision"]))


def _list_scored(root: Path, names: Iterable[str]) -> Iterator[Run]:
    """List the runs that have scores, by the names of their records."""
    for name in names:
        profile, run, *size, file = name.split("/")
        if file == METRICS and size:
            yield Run(root, profile, "", "", int(size[0][2:]), run)


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
    AskedFor
        Frames or weights are needed, with their digest, or a file given has another one.
    ValueError
        No parameters choose the run's pairs.
    """
    index = read_index(run)
    exported = read_json(locate_record("02_export", run), made_by="02_export")
    metrics = read_json(locate_record("05_evaluate", run), made_by="05_evaluate")
    settings = read_settings(run)
    overrides: Record = {**settings}  # null too, which a profile may set
    del overrides["ais_python"]  # a file of another machine
    overrides |= {"run": run.name, "split": index["split"]}
    overrides["passes"] = list(dict.fromkeys(pair["pass_name"] for pair in index["pairs"]))
    overrides |= _find_subset(run, index)
    if "classical" in metrics:
        overrides["classical_pairs"] = metrics["classical"]["pairs"]
    scenes = list(dict.fromkeys(pair["scene"] for pair in index["pairs"]))
    if index["description"].startswith(RENDERED):
        last = max(pair["number"] for pair in index["pairs"])
        size = {"demo_height": index["height"], "demo_width": index["width"], "scenes": scenes}
        overrides |= size | {"demo_frames": last + 1, "sintel_root": None}
    elif sintel is None:
        what = ascii(index["description"][:DESCRIBED])
        raise AskedFor(f"the run is of {what}: give its folder with --sintel")
    else:
        overrides |= {"sintel_root": sintel, "scenes": scenes}
        _require_frames(Path(sintel), index, scenes)
    if pair := read_inside(run).get("pair"):
        overrides["look_at"] = pair
    weights = exported["checkpoint"]
    if checkpoint is not None:
        overrides["checkpoint"] = checkpoint
        if hash_file(locate_path(checkpoint)) != weights["sha256"]:
            raise AskedFor(
                f"{checkpoint} has another SHA-256 than the run's weights, {weights['sha256']}"
            )
    elif settings["checkpoint"] != SEEDED:
        bundled = RESOURCES / "weights" / f"{settings['checkpoint']}.safetensors"
        if not bundled.is_file() or hash_file(bundled) != weights["sha256"]:
            raise AskedFor(
                f"the weights of SHA-256 {weights['sha256']} do not come with this version: give "
                "their file with --checkpoint"
            )
    return overrides


def _find_subset(run: Run, index: Record) -> Record:
    """Parameters that choose the pairs that the run inferred; ValueError where none does."""
    inferred = read_json(locate_record("04_infer", run), made_by="04_infer")["pairs"]
    names = [pair["name"] for pair in index["pairs"]]
    first = Counter(str(Path(name).parent) for name in inferred)
    most = 0 if inferred == names else max(first.values(), default=0)
    other = 2 if run.batch_size == 1 else 1  # the run's own size would infer all pairs
    chosen, _ = choose_subset(
        load_pairs(index), batch_size=run.batch_size, full_batch_size=other, pairs_per_scene=most
    )
    if [pair.name for pair in chosen] != inferred:
        raise ValueError(
            f"the run inferred {len(inferred)} of {len(names)} pairs, and not the first of each "
            "scene: it cannot be computed again"
        )
    return {"subset_pairs_per_scene": most, "full_batch_size": other}


def _require_frames(sintel: Path, index: Record, scenes: list[str]) -> None:
    """Raise AskedFor unless a data set holds the files that a run had, and no other pairs."""
    root, pairs = find_root(sintel, index["split"]), index["pairs"]
    recorded = {
        pair["files"][kind]: pair["sha256"][kind] for pair in pairs for kind in pair["files"]
    }
    for name, digest in recorded.items():
        if not (root / name).is_file() or hash_file(root / name) != digest:
            raise AskedFor(f"{root / name} is not the run's file, which has SHA-256 {digest}")
    for name in dict.fromkeys(pair["pass_name"] for pair in pairs):
        found = find_pairs(root, split=index["split"], pass_name=name, scenes=scenes)
        if more := {pair.name for pair in found}.difference(pair["name"] for pair in pairs):
            raise AskedFor(f"{root} holds {min(more)}, which the run had not")


def read_surroundings(run: Run) -> dict[str, str]:
    """What may have decided the digits of an archived run, as far as its records say."""
    stages = ("02_export", "05_evaluate")
    exported, made = (
        read_json(locate_record(one, run), made_by=one)["provenance"] for one in stages
    )
    versions = {name: version.split("+")[0] for name, version in made["versions"].items()}
    versions.pop("python")
    found = versions | {name: str(made["machine"][name]) for name in ("processor", "cores")}
    # An export has loaded PyTorch, which knows them; older archives lack them
    same = exported["machine"] == made["machine"]
    return found | (exported.get("computing", {}) if same else {})


def drop_newer(values: dict[str, Value], recorded: Mapping[str, Value]) -> dict[str, Value]:
    """Leave out distances, work and digests of files that an older version did not record."""
    return {
        name: value
        for name, value in values.items()
        if name in recorded or value.kind not in _NEWER
    }
