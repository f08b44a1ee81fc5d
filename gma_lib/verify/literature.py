"""What others published of all of Sintel, as expected values."""

from pathlib import Path
from statistics import mean

from gma_lib.data.sintel import PAIRS_IN_TRAINING_SPLIT, PASSES, find_pairs
from gma_lib.evaluate import published
from gma_lib.pipeline.stages import locate_record
from gma_lib.runs.records import Record, read_json
from gma_lib.runs.run import Run
from gma_lib.verify.values import LAST, Value

SOURCES = {6: published.GUIDE_SOURCE, 32: published.PTLFLOW_SOURCE}  # updates -> whose numbers


def require_all_pairs(sintel: str, num_updates: int) -> None:
    """Raise ValueError unless a folder holds what the numbers are of: every training pair with its
    ground truth and, but for those of the guide (6 updates), the masks of invalid pixels.
    """
    for name in PASSES:
        pairs = find_pairs(Path(sintel), pass_name=name)
        scored = sum(pair.flow is not None for pair in pairs)
        if {len(pairs), scored} != {PAIRS_IN_TRAINING_SPLIT}:
            raise ValueError(
                f"{sintel}: {len(pairs)} pairs in {name}, {scored} of them with ground truth "
                f"(training/flow); the published numbers are of {PAIRS_IN_TRAINING_SPLIT} pairs "
                "with ground truth. Give the complete data set"
            )
        if num_updates != 6 and any(pair.invalid is None for pair in pairs):
            raise ValueError(
                f"{sintel}: masks are missing in training/invalid, and the published numbers at "
                f"{num_updates} updates leave out invalid pixels. Give the complete data set"
            )


def expect_published(num_updates: int) -> Record:
    """List published scores as expected values; each pass must also have all its pairs scored.

    Parameters
    ----------
    num_updates
        One of ``SOURCES``.
    """
    tolerances = {"epe": published.EPE_TOLERANCE}
    values: dict[str, tuple[str, float, float]] = {}
    for name in PASSES:
        values[f"{name}/pairs"] = ("count", PAIRS_IN_TRAINING_SPLIT, 0.0)
        guide = {"px1": published.GUIDE_PX1[name]}
        for metric, number in (guide if num_updates == 6 else published.PTLFLOW[name]).items():
            tolerance = tolerances.get(metric, published.PX1_TOLERANCE)
            values[f"{name}/{metric}"] = ("published", number, tolerance)
    return {"surroundings": {}, "kinds": {}, "values": values}


def collect_scores(run: Run, num_updates: int) -> dict[str, Value]:
    """Read a run's scores as the source of ``expect_published`` takes them: over all pixels of all
    pairs, or the mean over pairs of each pair's valid pixels.
    """
    metrics = read_json(locate_record(LAST, run), made_by=LAST)
    found = {}
    for name in PASSES:
        scores = metrics[name]
        found[f"{name}/pairs"] = Value("count", scores["pairs_scored"])
        if num_updates == 6:
            numbers = {"px1": scores["all"]["px1"]}
        else:
            valid = [pair["valid"] for pair in scores["pairs"]]
            numbers = {
                metric: mean(one[metric] for one in valid) for metric in published.PTLFLOW[name]
            }
        found |= {f"{name}/{metric}": Value("published", one) for metric, one in numbers.items()}
    return found
