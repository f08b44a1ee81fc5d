"""Pad frames to what the network takes, and cut flow back exactly; fill a partial batch up."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gma_lib.data.pair import FramePair
from gma_lib.network.sizes import SMALLEST_SIDE, STRIDE


@dataclass(frozen=True)
class Padding:
    """How many pixels are replicated on each side of a frame.

    Sintel's 1024x436 px become 1024x440 px by two rows above and two below, as the authors pad it.

    Examples
    --------
    >>> padding = Padding.for_size(436, 1024)
    >>> padding.top, padding.bottom, padding.left, padding.right
    (2, 2, 0, 0)
    """

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def for_size(cls, height: int, width: int) -> "Padding":
        """Padding to the next multiple of 8, and to 128 at least, half of it on each side (the odd
        pixel below, right).
        """
        if height < 1 or width < 1:
            raise ValueError(f"a frame has at least one pixel a side, not {width}x{height}")
        rows, columns = _missing(height), _missing(width)
        return cls(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)

    def pad(self, frames: np.ndarray, mode: Literal["constant", "edge"] = "edge") -> np.ndarray:
        """Replicate the edges of frames (..., H, W); ``constant``: surround them with zeros."""
        around = [(0, 0)] * (frames.ndim - 2) + [(self.top, self.bottom), (self.left, self.right)]
        return np.pad(frames, around, mode=mode)

    def unpad(self, arrays: np.ndarray) -> np.ndarray:
        """Cut (..., H, W) back to the size that was padded."""
        height, width = arrays.shape[-2:]
        return arrays[..., self.top : height - self.bottom, self.left : width - self.right]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of a padded frame of this height and width."""
        return height + self.top + self.bottom, width + self.left + self.right


def _missing(side: int) -> int:
    return max(-(-side // STRIDE) * STRIDE, SMALLEST_SIDE) - side


def read_batch(pairs: list[FramePair], batch_size: int) -> tuple[np.ndarray, np.ndarray, Padding]:
    """Read the frames of at most ``batch_size`` pairs as a full, padded batch.

    Returns
    -------
    images1, images2
        First and second frames, float32 (batch_size, 3, H, W), padded.
    padding
        The padding to undo.
    """
    first, second = map(np.stack, zip(*(pair.load_frames() for pair in pairs), strict=True))
    padding = Padding.for_size(*first.shape[-2:])
    return (
        fill_batch(padding.pad(first), batch_size),
        fill_batch(padding.pad(second), batch_size),
        padding,
    )


def fill_batch(frames: np.ndarray, batch_size: int) -> np.ndarray:
    """Fill a partial batch (N, ...) up to ``batch_size`` with copies of its last frame."""
    return np.concatenate([frames, np.repeat(frames[-1:], batch_size - len(frames), axis=0)])
