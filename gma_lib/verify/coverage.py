"""The numbers of a run that are compared with nothing, and why not; every other one is compared."""

from fnmatch import fnmatchcase

from gma_lib.pipeline.stages import STAGES, locate_record
from gma_lib.runs.files import shorten_path
from gma_lib.runs.records import load_record
from gma_lib.runs.run import Run
from gma_lib.verify.values import (
    Value,
    collect_inside,
    collect_values,
    is_whole_batch,
    name_entry,
    walk_numbers,
)

_PARAMETER = "A parameter: runs of other parameters are refused, not compared."
_MACHINE = "Time, memory and load are those of one machine at one moment."
_IN_NAME = "Part of the pair's name, which is the name of its entries."
_IN_GRAPH = "Counted in gma.onnx, whose digest is compared."

# Record -> pattern of the numbers' names -> why they are not compared. Times, paths and the host
# are in ``provenance``, too, which no stage reads.
NOT_COMPARED = {
    "index.json": {"height": _PARAMETER, "width": _PARAMETER, "pairs/*/number": _IN_NAME},
    "run.json": {"*": _PARAMETER},
    "export.json": {
        "num_updates": _PARAMETER,
        "opset": _PARAMETER,
        "size/*": _PARAMETER,
        "operators/*": _IN_GRAPH,
        "wide_activations": _IN_GRAPH,
    },
    "convert.json": {
        "at_once": _PARAMETER,
        "predicted_bytes": "A forecast of memory, which decides whether a batch is tried.",
    },
    "infer.json": {
        "batch_size": _PARAMETER,
        "summary/*": f"{_MACHINE} So is how much was there before, and who computed the rest.",
    },
    "metrics.json": {
        "*/pairs/*/number": _IN_NAME,
        "agreement/*": "With those batch sizes that were there; each is compared by itself.",
    },
    "perf.json": {"*": _MACHINE},
    "inside.json": {"gamma": "One of the weights, whose digest is compared."},
}
_OF_RECORDS = ("schema", "provenance")  # that of each is checked whenever it is read


def collect_all(run: Run) -> dict[str, Value]:
    """As ``collect_values``, for a run of this version.

    Raises
    ------
    ValueError
        A file of results holds a number that is neither among the values nor in ``NOT_COMPARED``.
    """
    values = collect_values(run)
    if uncovered := find_uncovered(run, values | collect_inside(run)):
        more = f" and {len(uncovered) - 1} more" if len(uncovered) > 1 else ""
        raise ValueError(
            f"{shorten_path(run.folder)}: {uncovered[0]}{more} would not be compared: add it to "
            "gma_lib/verify/values.py, or to gma_lib/verify/coverage.py with the reason"
        )
    return values


def find_uncovered(run: Run, values: dict[str, Value]) -> list[str]:
    """List the numbers in all files of results, also those that no stage is known to write, that
    are neither among ``values`` nor in ``NOT_COMPARED``.
    """
    stages = {locate_record(stage, run): stage for stage in STAGES}
    found = []
    for path in sorted([*run.data_folder.glob("[!.]*.json"), *run.folder.glob("[!.]*.json")]):
        record = load_record(path, "results of a stage")
        content = {name: item for name, item in record.items() if name not in _OF_RECORDS}
        for name, _ in walk_numbers(content):
            entry = name_entry(stages.get(path, ""), name)
            patterns = NOT_COMPARED.get(path.name, {})
            again = path.name == "convert.json" and is_whole_batch(name)
            if entry not in values and not (
                again or any(fnmatchcase(name, pattern) for pattern in patterns)
            ):
                found.append(f"{path.name} {name}")
    return found
