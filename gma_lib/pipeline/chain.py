"""The chain of records: what each was made from, checked whenever it is read.

It protects against accidents (a file changed, a stage forgotten), not against somebody who edits
records and stamps to match.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gma_lib.pipeline.dropped import list_dropped
from gma_lib.pipeline.settings import read_settings_record
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.runs.code import require_loaded_code
from gma_lib.runs.digests import require_files
from gma_lib.runs.files import hash_value, shorten_path
from gma_lib.runs.records import SCHEMA, Record, read_json, write_json
from gma_lib.runs.run import Run, list_batch_sizes

# Of a record: what tells of one call, one place or one moment, not of the result. Which batches
# could be compared in time, and which other batch sizes were there to agree with, depends on it.
NOT_RESULT = ("provenance", "summary", "root", "model", "compared", "deviation", "agreement")

RENDERED = "Demo set"  # how the description of frames begins that 01_data rendered


def read_index(run: Run) -> Record:
    """Read 01_data's record. Frames that it rendered lie beside it, wherever their folder was moved
    since; raises as ``read_json`` does.
    """
    index = read_json(locate_record("01_data", run), made_by="01_data")
    rendered = {"root": shorten_path(run.data_folder / "frames")}
    return index | (rendered if str(index.get("description")).startswith(RENDERED) else {})


def digest_record(record: Record) -> str:
    """SHA-256 of a record's result: the same work done again has the same digest."""
    return hash_value({name: value for name, value in record.items() if name not in NOT_RESULT})


def read_records(run: Run, stage: str) -> dict[str, Record]:
    """Read what the stages before ``stage`` recorded, each checked against those before it.

    Returns
    -------
    dict
        Stage -> its record, in the order of the stages. A measurement may lack the record of a
        conversion that did not fit in memory.

    Raises
    ------
    FileNotFoundError, ValueError
        A record is missing, damaged, or was made from another one than is there now; the message
        names the notebook to run.
    """
    records: dict[str, Record] = {}
    sources: dict[str, Record] = {}
    for before in STAGES[stage].reads:
        path = locate_record(before, run)
        if STAGES[stage].is_measurement and before == STAGES[stage].reads[-1] and not path.exists():
            continue
        record = read_index(run) if before == "01_data" else read_json(path, made_by=before)
        made_from = record.get("made_from", None if STAGES[before].reads else {})
        if not isinstance(made_from, dict):
            raise ValueError(f"{shorten_path(path)} is damaged: run {before} again")
        if before == "02_export":
            sources[run.settings_file.name] = read_settings_record(run)
        require_sources(path, before, made_from, sources)
        records[before] = sources[before] = record
    return records


def require_sources(
    path: Path, stage: str, made_from: Mapping[str, str], sources: Mapping[str, Record]
) -> None:
    """Raise ValueError unless a stage's record was made from these of ``sources`` that it names."""
    for source, digest in made_from.items():
        if source in sources and digest != digest_record(sources[source]):
            raise ValueError(
                f"{shorten_path(path)} was made from another result of {source} than is there now: "
                f"run {stage} again"
            )


def find_comparable(run: Run) -> dict[Run, Record]:
    """Find the other batch sizes of a run that have to have the same flow: made from the same
    frames and weights with the same settings, and unchanged since; each with its flow (pair ->
    SHA-256). Other files in its folder are of earlier settings.
    """
    if not (mine := _identify_flow(run)):
        return {}
    theirs = {other: _identify_flow(other) for other in _list_others(run)}
    return {other: one[1] for other, one in theirs.items() if one and one[0] == mine[0]}


def describe_uncompared(run: Run, compared: Collection[str]) -> str:
    """Say which other batch sizes a run's flow was not compared with, if that has to be said.

    Parameters
    ----------
    compared
        Folders of batch sizes (``bs1``) that it was compared with.
    """
    others = _list_others(run)
    if dropped := [one.folder.name for one in others if list_dropped(one)]:
        return f"Not compared: {', '.join(dropped)}, whose flow was deleted (keep_flow=false)."
    inferred = [one.folder.name for one in others if locate_record("04_infer", one).is_file()]
    if left := [name for name in inferred if name not in compared]:
        return (
            f"Not compared: {', '.join(left)}: of other frames, weights or settings, or changed. "
            "Computed again, it compares itself with this one."
        )
    if compared:
        return ""
    return "No other batch size was there; a later one compares itself with this one."


def _list_others(run: Run) -> list[Run]:
    """The other batch sizes of a run, whatever they hold."""
    sizes = list_batch_sizes(run.folder.parent)
    return [replace(run, batch_size=size) for size in sizes if size != run.batch_size]


def _identify_flow(run: Run) -> tuple[Record, Record] | None:
    """What a run's flow depends on, whatever the batch size, and the flow (pair -> SHA-256); None
    unless all of it is there.
    """
    try:
        records = read_records(run, "05_evaluate")
        flow = records["04_infer"]["flow"]
        files = {f"{pair}.flo": digest for pair, digest in flow.items()}
        require_files(run.flow_folder, files, made_by="04_infer")
    except (FileNotFoundError, ValueError):
        return None
    exported, converted = records["02_export"], records["03_convert"]
    settings = {name: exported[name] for name in ("num_updates", "attention")}
    settings |= {name: converted[name] for name in ("backend", "precision", "device")}
    return settings | {"weights": exported["checkpoint"]["sha256"]}, flow


def write_record(run: Run, stage: str, content: Record, made_from: Mapping[str, Record]) -> None:
    """Write a stage's record with the digests of the records that it was made from.

    A stage that found everything done keeps the summary of the call that computed it. RuntimeError
    where Python was started without assertions, which are the notebook's checks, and where the
    package's code has changed since this process loaded it.
    """
    require_loaded_code()
    if not __debug__:
        raise RuntimeError(
            "PYTHONOPTIMIZE (or -O) switches off what this notebook checks with `assert`: unset "
            "it, restart the kernel and run the notebook again"
        )
    path = locate_record(stage, run)
    sources = {name: digest_record(record) for name, record in made_from.items()}
    content = {"made_from": sources, **content}
    if content.get("summary", {}).get("computed") == 0:
        for known in (path, locate_earlier(path)):
            with suppress(OSError, ValueError):  # missing, or damaged, which counts as missing
                earlier = read_json(known, made_by=stage)
                if digest_record(earlier) == digest_record({"schema": SCHEMA} | content):
                    content["summary"] = earlier["summary"]
    write_json(path, content)
    locate_earlier(path).unlink(missing_ok=True)


def locate_earlier(record: Path) -> Path:
    """Return where the runner keeps a stage's last record while the stage runs again."""
    return record.with_suffix(".earlier")
