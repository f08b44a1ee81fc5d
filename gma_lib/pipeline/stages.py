"""The one graph of stages: their order, what each reads, what it leaves, and where that lies."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gma_lib.runs.files import RESOURCES, locate_path
from gma_lib.runs.records import Record
from gma_lib.runs.run import Run

NOTEBOOKS = RESOURCES / "notebooks"


@dataclass(frozen=True)
class Stage:
    """One notebook of the pipeline.

    Attributes
    ----------
    reads
        Stages whose files it reads, in order.
    products
        Files that it leaves besides its notebook: patterns relative to its folder, each of which
        matches at least one file. The first is its record.
    list_inputs
        Parameters -> files that it reads from outside the outputs.
    extras
        As ``products``, where there may be none.
    is_shared
        Runs once per profile, for all batch sizes and backends.
    is_measurement
        Asks for the machine itself, and records what does not fit instead of being skipped.
    is_on_device
        Runs the converted model, on the backend's device.
    """

    reads: tuple[str, ...]
    products: tuple[str, ...]
    list_inputs: Callable[[Record], list[Path]] = lambda parameters: []
    extras: tuple[str, ...] = ()
    is_shared: bool = False
    is_measurement: bool = False
    is_on_device: bool = False


def _list_frames(parameters: Record) -> list[Path]:
    """Frames and ground truth of a data set on disk."""
    if not parameters.get("sintel_root"):
        return []
    folder = locate_path(parameters["sintel_root"]) / parameters["split"]
    kinds = [*parameters["passes"], "flow", "occlusions", "invalid"]
    return [path for kind in kinds for path in (folder / kind).glob("*/*")]


def _list_weights(parameters: Record) -> list[Path]:
    """The weights, a file of the user or bundled, with their card."""
    given = locate_path(parameters["checkpoint"])
    bundled = RESOURCES / "weights" / f"{parameters['checkpoint']}.safetensors"
    return [path for one in (given, bundled) for path in (one, one.with_suffix(".json"))]


def _list_for_conversion(parameters: Record) -> list[Path]:
    """What an Ascend machine left, and what says how frames are rendered to calibrate int8."""
    is_calibrated = parameters.get("precision") == "int8"
    scenes = [RESOURCES / "params" / "train.yaml"] if is_calibrated else []
    return _list_brought_back(parameters) + scenes


def _list_for_measurement(parameters: Record) -> list[Path]:
    """What an Ascend machine left, and what the advice on precisions is from."""
    advice = RESOURCES / "benchmarks" / "results" / "precision.json"
    return _list_brought_back(parameters) + [advice] * advice.is_file()


def _list_brought_back(parameters: Record) -> list[Path]:
    """What an Ascend machine left in a dry run's folder."""
    if not parameters.get("dry_run"):
        return []
    folder = locate_path(parameters["dry_run"])
    return [*folder.glob("*.*"), *folder.glob("measured/**/*"), *folder.glob("output_*/**/*")]


STAGES = {
    "01_data": Stage(
        (), ("index.json",), _list_frames, ("frames/*/*/*/*", "tensors/*/*/*"), is_shared=True
    ),
    "02_export": Stage(
        ("01_data",),
        (
            "export.json",
            "run.json",
            "model/gma.onnx",
            "model/gma_features.onnx",
            "model/gma_context.onnx",
            "model/gma_refine.onnx",
            "model/reference.flo",
        ),
        _list_weights,
    ),
    # Folders in model/ hold compiled models, which any stage may add.
    "03_convert": Stage(
        ("01_data", "02_export"),
        ("convert.json", "model/*"),
        _list_for_conversion,
        is_on_device=True,
    ),
    "04_infer": Stage(
        ("01_data", "02_export", "03_convert"),
        ("infer.json", "flow/*/*/*.flo"),
        is_on_device=True,
    ),
    "05_evaluate": Stage(
        ("01_data", "02_export", "03_convert", "04_infer"),
        ("metrics.json",),
        extras=("overview.jpg", "overview-narrow.jpg", "viewer.html", "viewer/*.js"),
    ),
    "06_perf": Stage(
        ("01_data", "02_export", "03_convert"),
        ("perf.json",),
        _list_for_measurement,
        is_measurement=True,
        is_on_device=True,
    ),
    "07_inside": Stage(
        ("01_data", "02_export", "03_convert", "04_infer"),
        ("inside.json",),
        extras=("updates.html",),
    ),
}


def locate_stage(stage: str, run: Run) -> Path:
    """Return the folder that a stage writes to."""
    return run.data_folder if STAGES[stage].is_shared else run.folder


def locate_record(stage: str, run: Run) -> Path:
    """Return the JSON file with a stage's numbers."""
    return locate_stage(stage, run) / STAGES[stage].products[0]


def locate_neighbours(stage: str, run: Run) -> tuple[Path | None, Path | None]:
    """Return the pages before and after a stage's; 01_data, which serves every batch size, links to
    the index only.
    """
    names = [None, *STAGES, None]
    place = names.index(stage)
    before, after = (
        name and locate_stage(name, run) / f"{name}.html"
        for name in (names[place - 1], names[place + 1])
    )
    return before or None, None if STAGES[stage].is_shared else after or None


def read_cells(stage: str) -> tuple[Record, ...]:
    """Read the cells of a stage's notebook as they are stored."""
    path = NOTEBOOKS / f"{stage}.ipynb"
    return tuple(json.loads(path.read_text(encoding="utf-8"))["cells"])
