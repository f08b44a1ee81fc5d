"""Scores of anybody's flow files against anybody's ground truth."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gma_lib.flow import (
    FLOW_SUFFIXES,
    ErrorSums,
    endpoint_error,
    group_pixels,
    pool_scores,
    read_flow_file,
    read_mask,
)
from gma_lib.flow.metrics import sum_groups
from gma_lib.runs.files import BadFile, MissingFile
from gma_lib.runs.progress import Track, pass_silently

FORMS = f"a flow file ({', '.join(FLOW_SUFFIXES)}) or a folder of them"


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
            raise MissingFile(path, "no such file or folder", FORMS, "Check the name")
    if prediction.is_dir() != truth.is_dir():
        raise ValueError(
            f"give two flow files or two folders, not one of each: {prediction} and {truth}"
        )
    if not truth.is_dir():
        return {_name_field(truth): (prediction, truth)}
    truths = _list_fields(truth, FLOW_SUFFIXES)
    predictions = _list_fields(prediction, FLOW_SUFFIXES)
    if not truths:
        raise MissingFile(truth, "holds no flow file", FORMS, "Name another folder")
    missing = [name for name in truths if name not in predictions]
    if missing:
        raise FileNotFoundError(
            f"{prediction}: {len(missing)} of {len(truths)} predictions are missing "
            f"(first: {missing[0]})"
        )
    return {name: (predictions[name], path) for name, path in truths.items()}


def count_others(truth: Path) -> int:
    """Count the files in a folder of ground truth that are no flow files, and so are not scored."""
    if not truth.is_dir():
        return 0
    return sum(path.is_file() and path.suffix.lower() not in FLOW_SUFFIXES for path in _walk(truth))


def list_without_truth(prediction: Path, files: Mapping[str, tuple[Path, Path]]) -> list[str]:
    """List the flow files in a folder of predictions that have no ground truth in ``files``, and so
    are not scored.
    """
    found = _list_fields(prediction, FLOW_SUFFIXES) if prediction.is_dir() else ()
    return [name for name in found if name not in files]


def _list_fields(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return path below the folder, without its suffix -> file."""
    found: dict[str, Path] = {}
    for path in _walk(folder):
        if path.suffix.lower() not in suffixes:
            continue
        name = str(path.relative_to(folder).with_name(_name_field(path)))
        if name in found:
            raise ValueError(
                f"{folder}: {found[name].name} and {path.name} are the same field twice; keep one"
            )
        found[name] = path
    return found


def _name_field(path: Path) -> str:
    """``frame0001``, as Sintel's benchmark wants it, is the same field as ``frame_0001``."""
    return re.sub(r"^frame(?=[0-9])", "frame_", path.stem)


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Everything below a folder, sorted, also behind links, but for hidden names, which macOS
    writes; an average without what cannot be listed would be wrong, so that is an error.
    """
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.exists():
            raise BadFile(path, "a link to nothing", "a file or a folder", "Mend or remove it")
        yield path
        if path.is_dir():
            if path.resolve() in above:
                raise BadFile(path, "a link to a folder it lies in", "no circle", "Remove it")
            yield from _walk(path, above)


def score_files(
    files: Mapping[str, tuple[Path, Path]],
    *,
    occlusions: Path | None = None,
    track: Track = pass_silently,
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
    masks = _match_masks(list(files), occlusions)
    scored = [
        _score(*files[name], masks.get(name))
        for name in track(list(files), label="scores", unit="field")
    ]
    totals = pool_scores(sums for sums, _ in scored)
    if not totals["all"].pixels:
        truths = ", ".join(str(truth) for _, truth in list(files.values())[:3])
        raise ValueError(f"{truths}: the true flow is known in no pixel")
    return totals, sum(unknown for _, unknown in scored)


def _match_masks(names: list[str], occlusions: Path | None) -> dict[str, Path]:
    """Name of a field -> its mask; empty without masks."""
    if occlusions is None:
        return {}
    if not Path(occlusions).is_dir():
        if len(names) > 1:
            raise ValueError(
                f"{occlusions}: one mask for {len(names)} fields. "
                "Give a folder of masks with the names of the ground truth."
            )
        return {names[0]: occlusions}
    found = _list_fields(Path(occlusions), (".png",))
    if missing := [name for name in names if name not in found]:
        path = Path(occlusions) / f"{missing[0]}.png"
        raise MissingFile(path, "no such mask", "one for every field", "Add it")
    return found


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
    sums = sum_groups(error, speed, {name: group & known for name, group in groups.items()})
    return sums, int((~known).sum())
