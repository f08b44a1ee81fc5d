"""What a run computed, as named values, and the tolerance of each kind of value."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gma_lib.data.sintel import load_pairs
from gma_lib.evaluate.evaluation import select_passes
from gma_lib.pipeline.chain import read_index, read_records
from gma_lib.pipeline.settings import read_settings
from gma_lib.pipeline.stages import locate_record
from gma_lib.runs.records import Record, read_json
from gma_lib.runs.run import Run

LAST, INSIDE = "05_evaluate", "07_inside"


@dataclass(frozen=True)
class Kind:
    """Values of one kind.

    Attributes
    ----------
    unit
        Of values and tolerances.
    tolerance
        Largest difference that another correct computation explains; None: equal or not.
    per_pixel
        The tolerance is at least this over the number of pixels: what a few pixels may do to a
        small group.
    reason
        Why this tolerance.
    depends_on
        What else decides the value, as names of ``describe_surroundings``. Where one differs, a
        digest may differ, and a number by up to ``elsewhere``: that is reported.
    elsewhere
        The wider tolerance of numbers; None: as everywhere.
    """

    unit: str
    tolerance: float | None
    reason: str
    depends_on: tuple[str, ...] = ()
    per_pixel: float = 0.0
    elsewhere: float | None = None


# The tolerances follow from the table in docs/reproducibility.md: the flow of a pair moved by up to
# 1e-4 px with threads, instruction sets and runtimes, EPE by up to 1e-6 px, no error across a
# threshold of a share, and a few across one of WAUC's hundred.
KINDS = {
    "pixels": Kind(
        "digest",
        None,
        "Decoded frames and ground truth. NumPy and OpenCV draw them; another instruction set "
        "rounds some pixels the other way.",
        ("numpy", "opencv-python-headless", "instruction set"),
    ),
    "file": Kind(
        "digest",
        None,
        "Files of frames and ground truth; OpenCV may compress the same pixels otherwise.",
        ("numpy", "opencv-python-headless", "instruction set"),
    ),
    "weights": Kind("digest", None, "They come with the package."),
    "graph": Kind(
        "digest",
        None,
        "The ONNX file, as PyTorch's exporter writes it.",
        ("torch", "onnx", "numpy", "instruction set"),
    ),
    "flow": Kind(
        "digest",
        None,
        "Flow is equal bit for bit only on the same processor, with the same libraries and numbers "
        "of threads and cores.",
        (
            "numpy",
            "opencv-python-headless",
            "torch",
            "onnx",
            "openvino",
            "instruction set",
            "processor",
            "processor's instructions",
            "threads",
            "cores",
        ),
    ),
    "median": Kind(
        "px",
        1e-4,
        "Interpolated between steps of 0.05 px: each pixel that crosses a step moves it by 0.05 px "
        "over the number of pixels in the step. Three always may where that step holds 1.5 % of "
        "the group.",
        per_pixel=10.0,
    ),
    "classical median": Kind(
        "px",
        1e-4,
        "As the network's; another version of OpenCV moves it as it does the EPE.",
        ("opencv-python-headless",),
        per_pixel=10.0,
        elsewhere=0.1,
    ),
    "count": Kind("pixels or pairs", 0.0, "Counts are exact."),
    "work": Kind(
        "1e9 multiply-accumulates",
        1e-6,
        "Products of the shapes in the ONNX file, added up: only the last digits may differ.",
    ),
    "distance": Kind(
        "px",
        5e-3,
        "Distance of a runtime from PyTorch: rounding error, so its size matters, not its digits. "
        "On noise, where it grows most, it is 5e-4 px, and 1.4e-3 px with other instruction sets.",
    ),
    "attention": Kind(
        "share of attention",
        1e-5,
        "Sums of softmax weights. Threads and instruction sets moved them by up to 1e-7.",
    ),
    "epe": Kind(
        "px",
        2e-5,
        "Threads and instruction sets moved it by up to 1e-6 px. In a group of fewer than 500 "
        "pixels, a hundred of them may move by 1e-4 px each.",
        per_pixel=0.01,
    ),
    "share": Kind(
        "share of pixels",
        2e-5,
        "Threads and instruction sets moved no pixel across a threshold; two always may.",
        per_pixel=2.0,
    ),
    "wauc": Kind(
        "percent",
        0.002,
        "Threads and instruction sets moved up to three pixels across one of its hundred "
        "thresholds, which weighs up to two percent of a pixel; ten always may.",
        per_pixel=20.0,
    ),
}
_OTHER_OPENCV = {"epe": 0.1, "share": 0.02, "wauc": 1.5}
_REFINED = {"epe": 10.0, "share": 1.0, "wauc": 3.0}  # times the network's tolerance
KINDS |= {
    f"classical {name}": replace(
        KINDS[name],
        reason="DIS, Farneback and the refinement are OpenCV's. The refinement of the network's "
        "flow moves further than that flow: by up to 6e-5 px of EPE and 0.0014 points on another "
        "processor. OpenCV 4.12 in place of 5.0 moved DIS by up to 0.037 px, 0.0084 of the pixels "
        "and 0.5 points.",
        tolerance=(KINDS[name].tolerance or 0.0) * _REFINED[name],
        depends_on=("opencv-python-headless",),
        elsewhere=wider,
    )
    for name, wider in _OTHER_OPENCV.items()
}
_NOT_OPENCV = ("network", "no motion")  # of the methods in the classical comparison
_LEAVES = {
    "epe": "epe",
    "median": "median",
    "px1": "share",
    "px3": "share",
    "px5": "share",
    "fl": "share",
    "share_within": "share",
    "wauc": "wauc",
    "pixels": "count",
    "pairs": "count",
    "pairs_inferred": "count",
    "pairs_scored": "count",
}
# Part of a record -> kind of its numbers
_NUMBERS = {
    "02_export": {"deviation": "distance", "gmac_per_pair": "work"},
    "03_convert": {"deviation": "distance", "compared": "distance"},
}
_INSIDE = {
    "epe_after_updates": "epe",
    "epe_without_aggregation": "epe",
    "attention": "attention",
    "point": "count",
}
_GROUPS = {"occluded": "occluded", "not occluded": "non_occluded"}  # as metrics.json has them


@dataclass(frozen=True)
class Value:
    """One entry: its kind, a number or a digest, and its tolerance in the kind's unit (None: equal
    or not).
    """

    kind: str
    value: float | str | None
    tolerance: float | None = None


def collect_values(run: Run) -> dict[str, Value]:
    """Read every number and digest of a finished run, each record checked against those before it.

    Returns
    -------
    dict
        ``05_evaluate/clean/scenes/drift/all/epe`` -> its value.

    Raises
    ------
    FileNotFoundError, ValueError
        A record or a frame is missing or changed; the message names the notebook to run.
    """
    index = read_index(run)
    pixels = {
        f"01_data/{pair.name}/{name}": Value("pixels", _hash_array(array))
        for pair in load_pairs(index)
        for name, array in vars(pair.load()).items()
        if array is not None
    }
    return pixels | collect_recorded(run)


def collect_recorded(run: Run) -> dict[str, Value]:
    """As ``collect_values``, from the records alone: frames need not be there."""
    records = read_records(run, LAST)
    exported = records["02_export"]
    found = {
        f"01_data/{pair['name']}/{name} file": Value("file", digest)
        for pair in records["01_data"]["pairs"]
        for name, digest in pair["sha256"].items()
    }
    found |= {
        "02_export/weights": Value("weights", exported["checkpoint"]["sha256"]),
        "02_export/gma.onnx": Value("graph", exported["onnx_sha256"]),
    }
    for name, digest in exported.get("files", {}).items():  # 04_infer runs the parts of gma.onnx
        if name.endswith(".onnx"):
            found[f"02_export/{name}"] = Value("graph", digest)
    for stage, parts in _NUMBERS.items():
        for part, kind in parts.items():
            for path, number in walk_numbers(records[stage].get(part, {}), part):
                if not is_whole_batch(path):
                    found[name_entry(stage, path)] = Value(kind, number, KINDS[kind].tolerance)
    for name, digest in records["04_infer"]["flow"].items():
        found[f"04_infer/{name}"] = Value("flow", digest)
    metrics = read_json(locate_record(LAST, run), made_by=LAST)
    return found | {
        f"{LAST}/{name}": value
        for part in (*select_passes(metrics), "classical")
        for name, value in _collect_metrics(part, metrics[part])
    }


def read_inside(run: Run) -> Record:
    """Read what 07_inside recorded; empty where it has not run."""
    path = locate_record(INSIDE, run)
    return read_json(path, made_by=INSIDE) if path.is_file() else {}


def collect_inside(run: Run) -> dict[str, Value]:
    """Read what 07_inside found in one pair: EPE after each update and without the aggregation, and
    where attention goes; empty where it examined none.
    """
    record = read_inside(run)
    if not record.get("pair"):
        return {}
    read_records(run, INSIDE)
    metrics = read_json(locate_record(LAST, run), made_by=LAST)
    pixels = {
        f"{pair['name']}/{group}": scores["pixels"]
        for one in select_passes(metrics).values()
        for pair in one["pairs"]
        for group, scores in pair.items()
        if isinstance(scores, dict)
    }
    found = {}
    for path, number in walk_numbers(record):
        part, _, rest = path.partition("/")
        if part in _INSIDE:
            kind = KINDS[_INSIDE[part]]
            group = _GROUPS.get(rest.partition("/")[0], "all")
            count = pixels.get(f"{record['pair']}/{group}") or 1
            tolerance = max(kind.tolerance or 0.0, kind.per_pixel / count)
            found[name_entry(INSIDE, path)] = Value(_INSIDE[part], number, tolerance)
    return found


def name_entry(stage: str, path: str) -> str:
    """Name the entry of a record's number: as the record does, but for distances from PyTorch,
    where the record's words are of one size of frames and of batches.
    """
    part, _, rest = path.partition("/")
    if part == "compared":
        what, _, number = rest.rpartition("/")
        rest = f"{what.rpartition(', ')[2]}/{number}"
    return f"{stage}/distance/{rest}" if part in ("deviation", "compared") else f"{stage}/{path}"


def is_whole_batch(path: str) -> bool:
    """Whether a number of 03_convert is of the batch at full size: that is its ``deviation``, and
    ``compared`` has it again, in words that say how much time and memory allowed.
    """
    part, _, rest = path.partition("/")
    return part == "compared" and rest.rpartition("/")[0].endswith((" px", ")"))


def read_run_parameters(run: Run) -> Record:
    """What was computed, without where or on what: two runs of equal parameters have to agree."""
    index = read_index(run)
    settings: Record = {**read_settings(run)}
    names = ("batch_size", "num_updates", "attention", "checkpoint")
    return {
        **{name: settings[name] for name in names},
        "height": index["height"],
        "width": index["width"],
        "pairs": [pair["name"] for pair in index["pairs"]],
    }


def _hash_array(array: np.ndarray) -> str:
    described = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(described + array.tobytes()).hexdigest()


def walk_numbers(content: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested record, each with its path; a list's items have their own name,
    or their number.
    """
    if isinstance(content, dict):
        for key, item in content.items():
            yield from walk_numbers(item, f"{name}/{key}" if name else str(key))
    elif isinstance(content, list):
        for number, item in enumerate(content):
            key = item.get("name", number) if isinstance(item, dict) else number
            yield from walk_numbers(item, f"{name}/{key}")
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield name, content


def _collect_metrics(part: str, content: Record) -> Iterator[tuple[str, Value]]:
    numbers = dict(walk_numbers(content, part))
    for name, number in numbers.items():
        group, _, leaf = name.rpartition("/")
        if "/share_within/" in name:
            group, leaf = part, "share_within"
        if leaf not in _LEAVES:
            continue
        is_opencv = part == "classical" and name.split("/")[1] not in _NOT_OPENCV
        prefix = "classical " if is_opencv and KINDS[_LEAVES[leaf]].tolerance else ""
        kind = KINDS[prefix + _LEAVES[leaf]]
        pixels = numbers.get(f"{group}/pixels") or 1
        tolerance = max(kind.tolerance or 0.0, kind.per_pixel / pixels)
        yield name, Value(prefix + _LEAVES[leaf], number, tolerance)
