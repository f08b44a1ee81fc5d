"""Scores of anybody's flow files against anybody's ground truth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gma_lib.flow.files import FLOW_SUFFIXES, read_flow_file
from gma_lib.flow.images import read_mask
from gma_lib.flow.metrics import ErrorSums, endpoint_error, pixel_groups


def matched_files(prediction: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Name -> (prediction, ground truth): two files, or every flow file under a folder of ground
    truth and its like-named prediction.

    Raises
    ------
    FileNotFoundError
        When something is missing, a single prediction included: an average over what happens to be
        there would say nothing.
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
            f"{prediction}: {len(missing)} of {len(truths)} predictions are missing (first: {missing[0]})"
        )
    return {name: (predictions[name], path) for name, path in truths.items()}


def _flow_files(folder: Path) -> dict[str, Path]:
    """Path below the folder, without its ending -> file."""
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
    """Error sums per group of pixels, pooled over all fields, and how many pixels were left out.

    Pixels that the ground truth leaves unknown are not scored; a prediction has to be finite
    wherever the truth is known.

    Parameters
    ----------
    files
        From ``matched_files``.
    occlusions
        A mask, or a folder of masks named like the ground truth; white is occluded.

    Raises
    ------
    ValueError
        For sizes that differ, a prediction with gaps, and ground truth that is known nowhere.
    """
    totals: dict[str, ErrorSums] = {}
    unknown = 0
    for name, (prediction, truth) in files.items():
        sums, left_out = _score(prediction, truth, _mask_file(occlusions, name, len(files)))
        unknown += left_out
        for group, errors in sums.items():
            totals[group] = totals.get(group, ErrorSums()) + errors
    if not totals["all"].pixels:
        raise ValueError(
            f"{', '.join(str(truth) for _, truth in list(files.values())[:3])}: the true flow is known in no pixel"
        )
    return totals, unknown


def _mask_file(occlusions: Path | None, name: str, fields: int) -> Path | None:
    if occlusions is None:
        return None
    occlusions = Path(occlusions)
    if occlusions.is_dir():
        return occlusions / f"{name}.png"
    if fields > 1:
        raise ValueError(
            f"{occlusions}: one mask for {fields} fields; give a folder of masks named like the ground truth"
        )
    return occlusions


def _score(prediction: Path, truth: Path, mask: Path | None) -> tuple[dict[str, ErrorSums], int]:
    flow, computed = read_flow_file(prediction)
    wanted, known = read_flow_file(truth)
    if flow.shape != wanted.shape:
        sizes = [f"{field.shape[2]}x{field.shape[1]}" for field in (flow, wanted)]
        raise ValueError(
            f"{prediction} has {sizes[0]} px and its ground truth {truth} {sizes[1]}; scale neither: compute at the truth's size"
        )
    if not computed[known].all():
        raise ValueError(
            f"{prediction}: {int((~computed & known).sum())} pixels hold no flow where {truth} does"
        )
    occluded = None if mask is None else read_mask(mask)
    if occluded is not None and occluded.shape != known.shape:
        raise ValueError(f"{mask} has another size than {truth}")
    flow, wanted = np.where(known, flow, 0), np.where(known, wanted, 0)
    error, speed = endpoint_error(flow, wanted), np.hypot(*wanted)
    groups = pixel_groups(wanted, occluded)
    del groups["valid"]  # the same as all: unknown pixels are left out everywhere
    sums = {
        name: ErrorSums.of(error[group & known], speed[group & known])
        for name, group in groups.items()
    }
    return sums, int((~known).sum())
