"""Walk the graph of stages: every stage of every batch size, in order."""

import logging
from collections.abc import Sequence

from gma_lib.backends.kinds import find_backend
from gma_lib.data.sintel import choose_subset, load_pairs
from gma_lib.flow.files import count_flow_bytes
from gma_lib.infer.inference import flow_path
from gma_lib.pipeline.chain import read_index
from gma_lib.pipeline.dropped import drop_flow, list_dropped
from gma_lib.pipeline.runner import EXIT, NotReady, WritePage, run_stage
from gma_lib.pipeline.settings import make_run
from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.pipeline.stamps import CURRENT, read_stamp, read_statuses
from gma_lib.runs.files import require_free_space, shorten_path
from gma_lib.runs.processes import hold_lock
from gma_lib.runs.records import Record

# Seconds of the demo's stages on two cores, until this machine's own are known
USUAL_S = {
    "01_data": 25,
    "02_export": 45,
    "03_convert": 40,
    "04_infer": 45,
    "05_evaluate": 40,
    "06_perf": 85,
    "07_inside": 25,
}

logger = logging.getLogger(__name__)


def run_stages(
    runs: Sequence[Record],
    *,
    until: str | None = None,
    write_page: WritePage,
    force: bool = False,
) -> list[str]:
    """Run the stages of several batch sizes, measurements last.

    A batch size that fails or does not fit leaves the others alone; an interruption ends all.

    Parameters
    ----------
    runs
        The checked parameters of each batch size.
    until
        Run only this stage and those that it reads; None: all.
    force
        Run even what is up to date.

    Returns
    -------
    list of str
        How each stage ended, in the order in which they ran: keys of ``runner.EXIT``.
    """
    wanted = [stage for stage in STAGES if until is None or stage in (until, *STAGES[until].reads)]
    plan = [
        (stage, parameters)
        for is_measurement in (False, True)
        for place, parameters in enumerate(runs)
        for stage in wanted
        if STAGES[stage].is_measurement == is_measurement
        and not (place and STAGES[stage].is_shared)
    ]
    if "03_convert" in wanted:
        _require_device(runs)
    ended: list[str] = []
    for number, (stage, parameters) in enumerate(plan):
        place = f"stage {number + 1} of {len(plan)}{_estimate_left(plan, number)}: "
        try:
            ended.append(
                run_stage(stage, parameters, write_page=write_page, force=force, place=place)
            )
        except NotReady as error:
            logger.error("%s", error)
            ended.append("not started")
        if ended[-1] == "interrupted":
            break
        if stage == "01_data" and not EXIT[ended[-1]]:
            if "04_infer" in wanted:
                _require_space(runs)
            if "07_inside" in wanted:
                _require_look_at(runs)
    if until is None and not any(EXIT[status] for status in ended):
        _drop_scored_flow(runs)
    return ended


def _drop_scored_flow(runs: Sequence[Record]) -> None:
    """Delete flow where ``keep_flow`` is false and all that reads it has read this one, and say how
    much; a batch size that did not fit has none.
    """
    readers = [name for name, stage in STAGES.items() if "04_infer" in (name, *stage.reads)]
    for parameters in runs:
        run = make_run(parameters)
        if parameters.get("keep_flow", True) or not locate_record("04_infer", run).is_file():
            continue
        with hold_lock(run.folder / ".lock", f"another run in {shorten_path(run.folder)}"):
            statuses = read_statuses(run)  # another run may have computed it again meanwhile
            if not {statuses[name] for name in readers} <= {*CURRENT}:
                logger.warning("flow bs%d: kept, as not all has read it", run.batch_size)
            elif freed := drop_flow(run):
                logger.info(
                    "flow bs%d: %.1f MB deleted, now that it is scored (keep_flow=false)",
                    run.batch_size,
                    freed / 1e6,
                )


def _require_device(runs: Sequence[Record]) -> None:
    """Raise ValueError, before a network is exported, without the GPU that a backend needs, which
    stages are asked for, or for a reduced precision that this machine does not compute in.
    03_convert says itself what a card needs.
    """
    for backend, precision in {(one["backend"], one.get("precision")) for one in runs}:
        kind = find_backend(backend)
        if backend != "ascend" and (precision or kind.computes_on == "cuda"):
            kind.options(precision=precision or "float32").require()


def _require_space(runs: Sequence[Record]) -> None:
    """Ask for room for the flow of all batch sizes, before hours of work; raise OSError without."""
    needed = 0
    for parameters in runs:
        run = make_run(parameters)
        if list_dropped(run):  # most likely there is nothing to compute
            continue
        index = read_index(run)
        chosen, _ = choose_subset(
            load_pairs(index),
            batch_size=run.batch_size,
            full_batch_size=parameters.get("full_batch_size"),
            pairs_per_scene=parameters.get("subset_pairs_per_scene", 0),
        )
        missing = [pair for pair in chosen if not flow_path(run.flow_folder, pair).is_file()]
        needed += len(missing) * count_flow_bytes(index["height"], index["width"])
    require_free_space(run.folder, needed)


def _require_look_at(runs: Sequence[Record]) -> None:
    """Raise ValueError, before hours of work, where 07_inside is to look at no pair of the data."""
    for parameters in runs:
        index = read_index(make_run(parameters))
        names = [None, *(pair["name"] for pair in index["pairs"])]
        if (wanted := parameters.get("look_at")) not in names:
            raise ValueError(f"look_at: there is no pair {wanted!r}; the first is {names[1]}")


def _estimate_left(plan: Sequence[tuple[str, Record]], number: int) -> str:
    """Say how long the rest of the plan takes if all of it runs: as long as each stage's last run,
    or else that of another batch size; empty where one is unknown.
    """
    left = 0.0
    for stage, parameters in plan[number:]:
        others = [other for name, other in plan if name == stage]
        stamps = (read_stamp(stage, make_run(one)) for one in (parameters, *others))
        usual = USUAL_S[stage] if parameters["profile"] == "demo" else 0
        seconds = next((stamp.seconds for stamp in stamps if stamp and stamp.seconds), usual)
        if not seconds:
            return ""
        left += seconds
    return f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
