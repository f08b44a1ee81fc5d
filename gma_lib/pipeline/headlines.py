"""The number of each stage that a reader wants first, for the line that says that it is done."""

from collections.abc import Callable

from gma_lib.evaluate.evaluation import select_passes
from gma_lib.runs.records import Record


def describe_result(stage: str, record: Record) -> str:
    """Return a stage's headline from its record; a simulated one says so first."""
    found = _HEADLINES[stage](record)
    return f"SIMULATED: {found}" if record.get("simulated") else found


def _of_data(record: Record) -> str:
    return f"{len(record['pairs'])} pairs of {record['width']}x{record['height']} px"


def _of_export(record: Record) -> str:
    return _tell_farthest(record["deviation"])


def _of_conversion(record: Record) -> str:
    return f"{record['backend']} in {record['precision']}, {_tell_farthest(record['compared'])}"


def _tell_farthest(compared: Record) -> str:
    return f"at most {max(found['max'] for found in compared.values()):.1e} px from PyTorch"


def _of_inference(record: Record) -> str:
    summary = record["summary"]
    found = f"flow of {summary['pairs']} pairs, {summary['reused']} of them there before"
    return f"{found}; {record['subset']}" if record.get("subset") else found


def _of_scores(record: Record) -> str:
    scores = [
        f"EPE {found['all']['epe']:.2f} px, 1px {found['all']['px1']:.1%} "
        f"({name}, {found['pairs_scored']} of {found['pairs_inferred']} pairs)"
        for name, found in select_passes(record).items()
        if found["pairs_scored"]
    ]
    return "; ".join(scores) or "no ground truth"


def _of_speed(record: Record) -> str:
    rate = record.get("pairs_per_second")
    caution = f" ({record['caution']})" if record.get("caution") else ""
    return f"{rate:.2f} pairs/s{caution}" if rate else str(record["reason"])


def _of_inside(record: Record) -> str:
    if record["pair"] is None:
        return str(record["reason"])
    errors = record["epe_after_updates"]["all pixels"]
    return f"EPE {errors[0]:.2f} px after the first update, {errors[-1]:.2f} after the last"


_HEADLINES: dict[str, Callable[[Record], str]] = {
    "01_data": _of_data,
    "02_export": _of_export,
    "03_convert": _of_conversion,
    "04_infer": _of_inference,
    "05_evaluate": _of_scores,
    "06_perf": _of_speed,
    "07_inside": _of_inside,
}
