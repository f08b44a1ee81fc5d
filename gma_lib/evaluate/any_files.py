"""Scores of anybody's flow files against anybody's ground truth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gma_lib.flow.files import FLOW_SUFFIXES, read_flow_file
from gma_lib.flow.images import read_mask
from gma_lib.flow.metrics import ErrorSums, endpoint_error, group_pixels, pool_scores


def match_files(prediction: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Return name -> (prediction, ground truth) for two files, or for every flow file in a folder
    of ground truth and the prediction of the same name.

    Raises
    ------
    FileNotFoundError
        When something is missing, be it a single prediction: an average over the files that exist
        would be meaningless.
    """
    prediction, truth = Path(prediction), Path(truth)
    for path in (prediction, truth):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if prediction.is_dir() != truth.is_dir():
        raise ValueError(
            f"give two flow files or two folders, not one of each: {prediction} and {truth}"
        )
    if truth.is_file():
        return {truth.name: (prediction, truth)}
    truths, predictions = _flow_files(truth), _flow_files(prediction)
    if not truths:
        raise FileNotFoundError(f"{truth}: holds no flow file ({', '.join(FLOW_SUFFIXES)})")
    missing = [name for name in truths if name not in predictions]
    if missing:
        raise FileNotFoundError(
            f"{prediction}: {len(missing)} of {len(truths)} predictions are missing "
            f"(first: {missing[0]})"
        )
    return {name: (predictions[name], path) for name, path in truths.items()}


def _flow_files(folder: Path) -> dict[str, Path]:
    """Return path below the folder, without its suffix -> file."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in FLOW_SUFFIXES)
    found: dict[str, Path] = {}
    for path in files:
        name = str(path.relative_to(folder).with_suffix(""))
        if name in found:
            raise ValueError(
                f"{folder}: {found[name].name} and {path.name} are the same field twice; keep one"
            )
        found[name] = path
    return found


def score_files(
    files: Mapping[str, tuple[Path, Path]], *, occlusions: Path | None = None
) -> tuple[dict[str, ErrorSums], int]:
    """Return error sums per group of pixels, pooled over all fields, and how many pixels were left
    out.

    Pixels of unknown true flow are not scored; a prediction must be finite where the truth is
    known.

    Parameters
    ----------
    files
        From ``match_files``.
    occlusions
        A mask, or a folder of masks named like the ground truth; white is occluded.

    Raises
    ------
    ValueError
        For sizes that differ, a prediction with gaps, and ground truth that is known nowhere.
    """
    scored = [
        _score(prediction, truth, _mask_file(occlusions, name, len(files)))
        for name, (prediction, truth) in files.items()
    ]
    totals = pool_scores(sums for sums, _ in scored)
    if not totals["all"].pixels:
        truths = ", ".join(str(truth) for _, truth in list(files.values())[:3])
        raise ValueError(f"{truths}: the true flow is known in no pixel")
    return totals, sum(unknown for _, unknown in scored)


def _mask_file(occlusions: Path | None, name: str, fields: int) -> Path | None:
    if occlusions is None:
        return None
    occlusions = Path(occlusions)
    if occlusions.is_dir():
        return occlusions / f"{name}.png"
    if fields > 1:
        raise ValueError(
            f"{occlusions}: one mask for {fields} fields. "
            "Give a folder of masks with the names of the ground truth."
        )
    return occlusions


def _score(prediction: Path, truth: Path, mask: Path | None) -> tuple[dict[str, ErrorSums], int]:
    flow, computed = read_flow_file(prediction)
    wanted, known = read_flow_file(truth)
    if flow.shape != wanted.shape:
        sizes = [f"{field.shape[2]}x{field.shape[1]}" for field in (flow, wanted)]
        raise ValueError(
            f"{prediction} has {sizes[0]} px and its ground truth {truth} {sizes[1]}. "
            "Run the prediction at the resolution of the ground truth."
        )
    if not computed[known].all():
        holes = int((~computed & known).sum())
        raise ValueError(f"{prediction}: {holes} pixels hold no flow where {truth} does")
    occluded = None if mask is None else read_mask(mask)
    if occluded is not None and occluded.shape != known.shape:
        raise ValueError(f"{mask}: its size differs from that of {truth}")
    flow, wanted = np.where(known, flow, 0), np.where(known, wanted, 0)
    error, speed = endpoint_error(flow, wanted), np.hypot(*wanted)
    groups = group_pixels(wanted, occluded)
    del groups["valid"]  # the same as all: unknown pixels are left out everywhere
    sums = {
        name: ErrorSums.of(error[group & known], speed[group & known])
        for name, group in groups.items()
    }
    return sums, int((~known).sum())
