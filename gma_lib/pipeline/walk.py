"""Walk the graph of stages: every stage of every batch size, in order."""

import logging
from collections.abc import Sequence

from gma_lib.pipeline.runner import NotReady, WritePage, run_stage
from gma_lib.pipeline.stages import STAGES
from gma_lib.runs.records import Record

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
    ended: list[str] = []
    for stage, parameters in plan:
        try:
            ended.append(run_stage(stage, parameters, write_page=write_page, force=force))
        except NotReady as error:
            logger.error("%s", error)
            ended.append("not started")
        if ended[-1] == "interrupted":
            break
    return ended
