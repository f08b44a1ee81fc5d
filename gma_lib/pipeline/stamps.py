"""What is up to date: a stage is, if what it consumed and what it left are what is there now."""

import functools
import logging
from collections import ChainMap
from dataclasses import asdict
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from gma_lib.infer.means import find_gpu
from gma_lib.pipeline.chain import digest_record
from gma_lib.pipeline.dropped import list_dropped
from gma_lib.pipeline.settings import read_settings_record
from gma_lib.pipeline.stages import STAGES, locate_stage, read_cells
from gma_lib.runs.code import locate_module
from gma_lib.runs.digests import Digests
from gma_lib.runs.files import PACKAGE, hash_value, shorten_path
from gma_lib.runs.machine import count_cores, find_memory, find_versions, identify_processor
from gma_lib.runs.records import Record, read_json, write_json
from gma_lib.runs.run import Run

logger = logging.getLogger(__name__)
# Parameters that change no result: a moved folder holds the same, and so does other workers' work
PLACES = ("outputs", "cluster")
PAGE_ALTERED = "page altered"  # a stage's page or notebook is not what it left; its results are
CURRENT = ("ok", PAGE_ALTERED)  # of a stage's results, as ``read_statuses`` has them


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Stamp:
    """How a stage's last run ended, written last of all.

    Attributes
    ----------
    status, reason
        ``ok``, or how and why the run ended otherwise.
    seconds
        Wall-clock time.
    parameters
        What the notebook was given.
    consumed, products
        What the run read and what it left: name -> digest.
    """

    stage: str
    status: str
    reason: str
    seconds: float
    parameters: Record
    consumed: dict[str, str]
    products: dict[str, str]


def locate_stamp(stage: str, run: Run) -> Path:
    """Return where a stage's stamp lies."""
    return locate_stage(stage, run) / f".{stage}.json"


def read_stamp(stage: str, run: Run) -> Stamp | None:
    """Read the stamp of a stage's last run; a damaged one, or one of another version of this
    package, counts as absent.
    """
    path = locate_stamp(stage, run)
    try:
        content = read_json(path, made_by=stage)
        own = ("schema", "provenance")  # of every record
        return Stamp(**{name: value for name, value in content.items() if name not in own})
    except FileNotFoundError:
        return None
    except ValueError:
        _warn_once(
            f"{shorten_path(path)} is damaged or of another version: {stage} counts as not run"
        )
        return None


def find_other_data(run: Run, parameters: Record) -> str | None:
    """Say which parameter 01_data was given by now that is not what a whole run asks for."""
    stamp = read_stamp("01_data", run)
    for name, value in (stamp.parameters if stamp else {}).items():
        if name not in PLACES and parameters.get(name, value) != value:
            return (
                f"01_data has {name} = {value!r} by now, not {parameters[name]!r}: another run "
                "changed it"
            )
    return None


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def read_given(run: Run) -> Record:
    """Return what 01_data and 02_export were given when they last ended well, but for the folder of
    the results; FileNotFoundError where one did not.
    """
    stamps = [read_stamp(stage, run) for stage in ("01_data", "02_export")]
    if not all(stamp and stamp.status == "ok" for stamp in stamps):
        raise FileNotFoundError(f"{shorten_path(run.folder)}: run 02_export first")
    given = ChainMap(*(stamp.parameters for stamp in stamps if stamp))
    return {name: value for name, value in given.items() if name != "outputs"}


def write_stamp(run: Run, stamp: Stamp) -> None:
    """Write the stamp: it promises that everything that it names is in place. A failed stage leaves
    one too, for the report.
    """
    write_json(locate_stamp(stamp.stage, run), asdict(stamp))


def digest_consumed(stage: str, run: Run, parameters: Record, digests: Digests) -> dict[str, str]:
    """Digest all that a stage's result depends on, as it is now: name -> digest.

    Its notebook and parameters, files from outside the outputs, what the stages before left, the
    library's modules (all of them: ``of_modules`` keeps those that the stage loaded), the versions
    of other libraries, the processor; for what runs the converted model, the GPU, too; for what is
    timed, the number of cores and the memory, and for what writes pages of its own, their
    templates.
    """
    cells = [["".join(cell["source"]), cell["cell_type"]] for cell in read_cells(stage)]
    consumed = {"notebook": hash_value(cells), "processor": identify_processor()}
    if STAGES[stage].is_on_device and (gpu := find_gpu(run.backend)):
        consumed["GPU"] = gpu
    if STAGES[stage].is_measurement:
        consumed["number of cores"] = str(count_cores())
        consumed["memory"] = f"{find_memory() / 1e9:.0f} GB"
    consumed |= {
        f"parameter {name}": repr(value) for name, value in parameters.items() if name not in PLACES
    }
    consumed |= {f"library {name}": version for name, version in find_versions().items()}
    consumed |= digests.digest_files(STAGES[stage].list_inputs(parameters))
    for before in STAGES[stage].reads:
        consumed |= digest_products(before, run, digests)
    if any(name.endswith(".html") for name in STAGES[stage].extras):
        consumed |= digests.digest_files(list_templates(), PACKAGE)
    for path in sorted(PACKAGE.rglob("*.py")):
        consumed[f"code {path.relative_to(PACKAGE)}"] = digests.digest_code(path)
    return consumed


def list_templates() -> list[Path]:
    """List the templates and scripts of the pages that this package writes."""
    folder = PACKAGE / "report" / "templates"
    return sorted(path for path in folder.iterdir() if path.is_file())


def of_modules(consumed: dict[str, str], stage: str, run: Run) -> dict[str, str]:
    """Keep, of the library's modules, those that the stage had loaded when it wrote its record."""
    record = read_json(locate_stage(stage, run) / STAGES[stage].products[0], made_by=stage)
    modules = record["provenance"]["modules"] + record.get("modules", [])  # of a child process
    loaded = {f"code {locate_module(module).relative_to(PACKAGE)}" for module in modules}
    return {
        name: digest
        for name, digest in consumed.items()
        if not name.startswith("code ") or name in loaded
    }


def digest_products(stage: str, run: Run, digests: Digests) -> dict[str, str]:
    """Digest the files that a stage left, as they are now; of records, the result alone; of flow
    that was dropped, what its record says.
    """
    folder = locate_stage(stage, run)
    patterns = (*STAGES[stage].products, *STAGES[stage].extras)
    found = digests.digest_files(
        (path for pattern in patterns for path in folder.glob(pattern)), folder
    )
    for record in [name for name in STAGES[stage].products if name in found and ".json" in name]:
        try:
            found[record] = digest_record(read_json(folder / record, made_by=stage))
        except ValueError:
            found[record] = "damaged"
    if stage == "04_infer":
        found |= list_dropped(run)
    return {f"{stage} {name}": digest for name, digest in found.items()}


def digest_pages(stage: str, run: Run, digests: Digests) -> dict[str, str]:
    """Digest the executed notebook and its page, which no other stage reads."""
    folder = locate_stage(stage, run)
    return digests.digest_files([folder / f"{stage}.ipynb", folder / f"{stage}.html"], folder)


def find_changes(stage: str, run: Run, parameters: Record, digests: Digests) -> list[str]:
    """Name what differs between a stage's stamp and what is there now; empty if it is up to date.

    Parameters
    ----------
    parameters
        What the stage would be given now.
    """
    stamp = read_stamp(stage, run)
    if stamp is None or stamp.status != "ok":
        return ["not run"]
    left = digest_products(stage, run, digests) | digest_pages(stage, run, digests)
    if changed := compare_digests(stamp.products, left):
        return changed
    now = digest_consumed(stage, run, parameters, digests)
    modules = {name for name in stamp.consumed if name.startswith("code ")}
    kept = {name: now[name] for name in now if not name.startswith("code ") or name in modules}
    return compare_digests(stamp.consumed, kept)


def compare_digests(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names that differ, appeared or are gone."""
    return [name for name in sorted(before | now) if before.get(name) != now.get(name)]


def read_statuses(run: Run) -> dict[str, str | None]:
    """Return how the last run of every stage ended, for a reader that computes nothing.

    ``altered``: its record or another product, or what a stage before left for it, is not what was
    left, or its folder was copied or renamed;
    ``page altered``: its page or its notebook alone is not what was left;
    ``stale``: what it read has changed since, or has not ended well; None: it never ran.
    """
    digests = Digests(run.outputs / ".digests.json")
    left = {stage: digest_products(stage, run, digests) for stage in STAGES}
    statuses: dict[str, str | None] = {}
    spoilt = {"02_export"} if _is_of_another_run(run) else set()
    for stage, graph in STAGES.items():
        stamp = read_stamp(stage, run)
        if stamp is None or stamp.status != "ok":
            statuses[stage] = stamp.status if stamp else None
            continue
        before = dict(ChainMap(*(left[name] for name in graph.reads)))
        reads = tuple(f"{name} " for name in graph.reads)
        consumed = {name: item for name, item in stamp.consumed.items() if name.startswith(reads)}
        now = left[stage] | digest_pages(stage, run, digests)
        changed = compare_digests(stamp.products, now)
        if spoilt.intersection(graph.reads) or any(
            name.startswith(f"{stage} ") for name in changed
        ):
            spoilt.add(stage)
        if stage in spoilt:
            statuses[stage] = "altered"
        else:
            stale = consumed != before or any(
                statuses[name] == "stale" or blocks(name, stage, run) for name in graph.reads
            )
            fine = PAGE_ALTERED if changed else "ok"
            statuses[stage] = "stale" if stale else fine
    return statuses


def _is_of_another_run(run: Run) -> bool:
    try:
        read_settings_record(run)
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def blocks(before: str, stage: str, run: Run) -> bool:
    """Return whether the stage before left nothing to work on. A measurement has its own row for
    what does not fit.
    """
    stamp = read_stamp(before, run)
    status = stamp and stamp.status
    return status != "ok" and not (STAGES[stage].is_measurement and status == "out_of_memory")
