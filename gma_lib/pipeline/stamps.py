"""What is up to date: the key of all that a stage's result depends on, and the stamp that a run
leaves last.
"""

import functools
import logging
from pathlib import Path

from gma_lib.pipeline.stages import STAGES, locate_stage, read_cells
from gma_lib.runs.files import PROJECT, hash_file, hash_value, shorten_path
from gma_lib.runs.records import Record, read_json, write_json
from gma_lib.runs.run import Run

# Modules that no stage runs, relative to gma_lib: training decides only through its weights.
NOT_IN_STAGES = (
    "doctor.py",
    "report/index.py",
    "training/log.py",
    "training/losses.py",
    "training/model_card.py",
    "training/trainer.py",
)

logger = logging.getLogger(__name__)


@functools.cache
def hash_library() -> str:
    """Digest of every module that may decide a stage's result."""
    library = PROJECT / "gma_lib"
    aside = {library / name for name in NOT_IN_STAGES}
    modules = sorted(path for path in library.rglob("*.py") if path not in aside)
    return hash_value([[str(path.relative_to(PROJECT)), hash_file(path)] for path in modules])


def compute_key(stage: str, run: Run, parameters: Record) -> str:
    """Digest of all that a stage's result depends on; if it changes, the stage has to run again."""
    cells = [["".join(cell["source"]), cell["cell_type"]] for cell in read_cells(stage)]
    inputs = STAGES[stage].list_inputs(parameters)
    return hash_value(
        [stage, cells, parameters, hash_library(), read_upstream_keys(stage, run), inputs]
    )


def read_upstream_keys(stage: str, run: Run) -> list[str | None]:
    """Read the keys under which the stages before were last run."""
    return [(read_stamp(before, run) or {}).get("key") for before in STAGES[stage].reads]


def locate_stamp(stage: str, run: Run) -> Path:
    """Return where a stage's stamp lies: the targets of the Makefile."""
    return locate_stage(stage, run) / f".{stage}.json"


def read_stamp(stage: str, run: Run) -> Record | None:
    """Read the stamp of a stage's last run; None if it never ended, or if another version of this
    package wrote it.
    """
    try:
        return read_json(locate_stamp(stage, run), made_by=stage)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        _warn_once(run.outputs / run.profile)
        return None


@functools.cache
def _warn_once(folder: Path) -> None:
    logger.warning(
        "%s: results of another version of this package, or damaged ones, count as not run",
        shorten_path(folder),
    )


def write_stamp(
    stage: str,
    run: Run,
    *,
    status: str,
    reason: str,
    key: str = "",
    seconds: float = 0,
    parameters: Record | None = None,
    outputs: dict[str, str] | None = None,
) -> None:
    """Write the stamp, last of all: it promises that everything before it is in place. A failed
    stage leaves one too, for the report.
    """
    content = {
        "stage": stage,
        "status": status,
        "reason": reason,
        "key": key,
        "upstream": read_upstream_keys(stage, run),
        "seconds": seconds,
        "parameters": parameters or {},
        "outputs": outputs or {},
    }
    write_json(locate_stamp(stage, run), content)


def is_up_to_date(stage: str, run: Run, key: str) -> bool:
    """Return whether the stamp carries this key and everything that the stage left is still there,
    unchanged.
    """
    stamp = read_stamp(stage, run)
    if stamp is None or stamp["key"] != key or stamp["status"] != "ok":
        return False
    return bool(hash_outputs(stage, run) == stamp["outputs"])


def hash_outputs(stage: str, run: Run) -> dict[str, str]:
    """Every file that a stage left -> SHA-256; flow files by size, because the ledger holds their
    hashes.
    """
    folder = locate_stage(stage, run)
    patterns = (f"{stage}.ipynb", f"{stage}.html", *STAGES[stage].products)
    files = sorted(
        {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    )
    return {
        str(path.relative_to(folder)): str(path.stat().st_size)
        if path.suffix == ".flo"
        else hash_file(path)
        for path in files
    }


def read_status(stage: str, run: Run) -> str | None:
    """Return how a stage's last run ended; ``stale`` when a stage before it has run since or has
    not ended well, None if it never ran.
    """
    stamp = read_stamp(stage, run)
    if stamp is None:
        return None
    stale = stamp["upstream"] != read_upstream_keys(stage, run)
    stale = stale or any(
        blocks(before, stage, run) or read_status(before, run) == "stale"
        for before in STAGES[stage].reads
    )
    return "stale" if stale and stamp["status"] == "ok" else str(stamp["status"])


def blocks(before: str, stage: str, run: Run) -> bool:
    """Return whether the stage before left nothing to work on. A measurement has its own row for
    what does not fit.
    """
    status = (read_stamp(before, run) or {}).get("status")
    return status != "ok" and not (STAGES[stage].is_measurement and status == "out_of_memory")
