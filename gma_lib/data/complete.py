"""What a data set lacks, by what else it holds: an average over what is left would say nothing."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gma_lib.data.sintel import FramePair


def require_masks(pairs: "list[FramePair]") -> None:
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


def require_same_pairs(pairs: "list[FramePair]") -> None:
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


def _refuse(folder: Path, pair: "FramePair", suffix: str, present: Path) -> None:
    file = folder / pair.scene / f"frame_{pair.number:04d}.{suffix}"
    raise FileNotFoundError(f"{file} is missing, and {present} is there: copy it")
