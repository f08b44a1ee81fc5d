"""How the network sees frames of any size: scaled down if too large, then padded."""

import math

import cv2
import numpy as np

from gma_lib.data.padding import Padding


class View:
    """How the network sees frames of one size: scaled down if too large, then padded."""

    def __init__(self, full: tuple[int, int], height: int, width: int):
        self.full = full
        self.height, self.width = height, width
        self.padding = Padding.for_size(height, width)
        self.padded = self.padding.padded_size(height, width)
        self.is_scaled = full != (height, width)

    @classmethod
    def fit(cls, height: int, width: int, max_pixels: int) -> "View":
        """The largest size of the same shape whose padded frame has at most ``max_pixels``; the
        frame's own size where that fits.
        """
        view = cls((height, width), height, width)
        step = 1.0
        while view.padded[0] * view.padded[1] > max_pixels:
            factor = step * math.sqrt(max_pixels / (height * width))
            step *= 0.99
            view = cls(
                (height, width), max(1, round(height * factor)), max(1, round(width * factor))
            )
        return view

    def shrink(self, frames: np.ndarray) -> np.ndarray:
        """Frames (N, 3, H, W) at the computed size, padded."""
        if self.is_scaled:
            frames = _resize(frames, self.height, self.width, cv2.INTER_AREA)
        return self.padding.pad(frames)

    def enlarge(self, flow: np.ndarray) -> np.ndarray:
        """Flow (N, 2, H, W) of a padded frame -> flow of the full frame, in its pixels."""
        flow = self.padding.unpad(flow)
        if self.is_scaled:
            factors = np.array([self.full[1] / self.width, self.full[0] / self.height], np.float32)
            flow = _resize(flow, *self.full, cv2.INTER_LINEAR) * factors[:, None, None]
        return np.ascontiguousarray(flow)


def _resize(arrays: np.ndarray, height: int, width: int, method: int) -> np.ndarray:
    pictures = [
        cv2.resize(
            np.ascontiguousarray(array.transpose(1, 2, 0)), (width, height), interpolation=method
        )
        for array in arrays
    ]
    return np.stack([picture.transpose(2, 0, 1) for picture in pictures])
