"""What a data set lacks, by what else it holds: an average over what is left would say nothing."""

from itertools import groupby
from pathlib import Path

from gma_lib.data.pair import FramePair
from gma_lib.flow.images import FEW_BITS, decode_image, has_few_bits
from gma_lib.runs.files import BadFile


def require_masks(pairs: list[FramePair]) -> None:
    """Raise where only some of the ground truth has a mask (groups of pixels would be of a part),
    and where a mask has no ground truth (a pair would not be scored).
    """
    for kind in ("occlusion", "invalid"):
        masks = {pair: mask for pair in pairs if (mask := getattr(pair, kind)) is not None}
        lacking = [pair for pair in pairs if pair.flow is not None and pair not in masks]
        if lacking and masks:
            mask = next(iter(masks.values()))
            _refuse(mask.parents[1], lacking[0], "png", mask)
        for pair, mask in masks.items():
            if pair.flow is None:
                _refuse(mask.parents[2] / "flow", pair, "flo", mask)


def require_same_pairs(pairs: list[FramePair]) -> None:
    """Raise where one pass lacks a pair that another has: they would not be of the same frames."""
    places = {(pair.scene, pair.number): pair.image1.parent for pair in pairs}
    held = {(pair.pass_name, pair.scene, pair.number) for pair in pairs}
    for (scene, number), place in sorted(places.items()):
        for name in sorted({pair.pass_name for pair in pairs}):
            if (name, scene, number) not in held:
                lacking = place.parents[1] / name / scene
                raise FileNotFoundError(
                    f"{lacking} lacks frame {number} or {number + 1}, and {place} has both: copy it"
                )


def require_all_bits(pairs: list[FramePair]) -> None:
    """Raise where a scene's frames store values of 12 bits or fewer in 16: they would be read as
    almost black. Reads frames up to the first that does not.
    """
    for _, scene in groupby(pairs, key=lambda pair: (pair.pass_name, pair.scene)):
        frames = dict.fromkeys(path for pair in scene for path in (pair.image1, pair.image2))
        if all(has_few_bits(decode_image(path)[0]) for path in frames):
            found = f"has 16 bits, and no frame of its scene has a value above {FEW_BITS}"
            expected = f"values up to {2**16 - 1}"
            raise BadFile(next(iter(frames)), found, expected, "Scale them to 16 bits")


def _refuse(folder: Path, pair: FramePair, suffix: str, present: Path) -> None:
    file = folder / pair.scene / f"frame_{pair.number:04d}.{suffix}"
    raise FileNotFoundError(f"{file} is missing, and {present} is there: copy it")
