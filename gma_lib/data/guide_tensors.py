"""Tensor files as the guide's preprocessing writes and ``ais_bench`` exchanges them: headerless
float32.
"""

import json
import math
from pathlib import Path

import numpy as np

from gma_lib.data.padding import Padding
from gma_lib.data.pair import FramePair
from gma_lib.flow.images import read_frame
from gma_lib.runs import (
    Track,
    pass_silently,
    reading,
    require_free_space,
    write_atomically,
    write_text,
)

KINDS = ("image1", "image2", "gt")  # folders of a pass


def read_tensor(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a headerless little-endian float32 file of the given shape."""
    with reading(path, f"a float32 tensor {shape}") as path:
        found, wanted = path.stat().st_size, 4 * math.prod(shape)
        if found != wanted:
            raise ValueError(f"{found} bytes where float32 {shape} has {wanted}")
        return np.fromfile(path, dtype="<f4").reshape(shape)


def write_tensor(path: Path, tensor: np.ndarray) -> None:
    """Write an array as headerless little-endian float32."""
    with write_atomically(path) as partial:
        np.ascontiguousarray(tensor, dtype="<f4").tofile(partial)


def write_guide_tensors(
    pairs: list[FramePair],
    folder: Path,
    *,
    with_truth: bool = True,
    plain_names: bool = False,
    track: Track = pass_silently,
) -> dict[str, str]:
    """Write padded frames and ground truth for tools that read files; return each pair's number.
    An earlier set in the folder is removed first: such tools read all that is there.

    Per pass, ``image1/<i>.bin`` and ``image2/<i>.bin`` are float32 (1, 3, H, W), 0..255, padded;
    ``gt/<i>.bin`` is the true flow, float32 (H, W, 2), not padded, where it exists. The number
    ``<i>`` is zero-padded; ``pairs.json`` maps each pair's name to it.

    Parameters
    ----------
    pairs
        Pairs of frames of one size.
    plain_names
        Write numbers without leading zeros, as the guide's scripts write and expect them.
    """
    folder = Path(folder)
    remove_guide_tensors(folder)
    height, width = read_frame(pairs[0].image1).shape[1:]
    padding = Padding.for_size(height, width)
    rows, columns = padding.padded_size(height, width)
    require_free_space(folder, len(pairs) * 4 * (2 * 3 * rows * columns + 2 * height * width))
    numbers = number_pairs(pairs, plain=plain_names)
    image1, image2, truth = KINDS
    for pair in track(pairs, label="tensors", unit="pair"):
        place, file = folder / pair.pass_name, f"{numbers[pair.name]}.bin"
        for kind, frame in zip((image1, image2), pair.load_frames(), strict=True):
            write_tensor(place / kind / file, padding.pad(frame)[None])
        if with_truth and pair.flow is not None:
            write_tensor(place / truth / file, pair.load_flow().transpose(1, 2, 0))
    write_text(folder / "pairs.json", json.dumps(numbers, indent=1) + "\n")
    return numbers


def remove_guide_tensors(folder: Path) -> None:
    """Remove the set that ``write_guide_tensors`` wrote into a folder; other files stay."""
    (folder / "pairs.json").unlink(missing_ok=True)
    for path in [*folder.glob("*/*/*.bin")]:
        if path.parent.name in KINDS and path.stem.isdecimal():
            path.unlink()


def number_pairs(pairs: list[FramePair], *, plain: bool = False) -> dict[str, str]:
    """Map each pair's name to its number within its pass, with as many digits for all unless
    ``plain``.

    Sorting by number and sorting by text then give the same order.
    """
    numbers: dict[str, str] = {}
    for pass_name in dict.fromkeys(pair.pass_name for pair in pairs):
        names = [pair.name for pair in pairs if pair.pass_name == pass_name]
        digits = 1 if plain else len(str(len(names) - 1))
        numbers |= {name: str(index).zfill(digits) for index, name in enumerate(names)}
    return numbers
