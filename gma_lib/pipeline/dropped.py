"""Delete flow that was scored (``keep_flow``; when: ``walk``): recorded digests stand for it."""

from pathlib import Path

from gma_lib.pipeline.stages import locate_record
from gma_lib.runs.files import write_text
from gma_lib.runs.records import Record, read_json
from gma_lib.runs.run import Run

NOTE = (
    "The flow of this folder was scored and then deleted, as keep_flow=false asked.\n"
    "infer.json holds the SHA-256 of each file. Delete this file, and the next run computes the\n"
    "flow again.\n"
)


def locate_note(run: Run) -> Path:
    """Return where it says that a run's flow was dropped."""
    return run.flow_folder / "dropped.txt"


def drop_flow(run: Run) -> int:
    """Delete the flow files that 04_infer recorded, and return how many bytes that made free.

    The note comes first: an interruption leaves files that are whole.
    """
    recorded = {f"{name}.flo" for name in _read_flow(run)}
    files = run.flow_folder.glob("*/*/*.flo")  # and nothing outside, whatever the record says
    found = [path for path in files if path.relative_to(run.flow_folder).as_posix() in recorded]
    freed = sum(path.stat().st_size for path in found)
    write_text(locate_note(run), NOTE)
    for path in found:
        path.unlink()
    return freed


def list_dropped(run: Run) -> dict[str, str]:
    """Recorded flow that is no longer there since it was dropped: its path in the run's folder ->
    SHA-256. Empty where nothing was dropped, or the record is damaged.
    """
    if not locate_note(run).is_file():
        return {}
    try:
        recorded = _read_flow(run)
    except (FileNotFoundError, ValueError):
        return {}
    files = {name: run.flow_folder / f"{name}.flo" for name in recorded}
    return {
        str(path.relative_to(run.folder)): recorded[name]
        for name, path in files.items()
        if not path.exists()
    }


def _read_flow(run: Run) -> Record:
    """Name of a pair -> SHA-256 of its flow."""
    flow = read_json(locate_record("04_infer", run), made_by="04_infer").get("flow")
    if not isinstance(flow, dict):
        raise ValueError("no flow is recorded")
    return flow
