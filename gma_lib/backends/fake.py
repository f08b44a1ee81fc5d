"""A backend without a network, for tests of whatever stands around one."""

from collections.abc import Callable

import numpy as np

from gma_lib.backends.base import Backend, checked_frames


class FakeBackend(Backend):
    """Answers with ``answer(image1, image2)``, zero flow by default.

    Examples
    --------
    >>> backend = FakeBackend(lambda image1, image2: np.full((len(image1), 2, *image1.shape[2:]), 3, np.float32))
    """

    device = "none"
    precision = "float32"

    def __init__(self, answer: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None):
        self.answer = answer or zero_flow
        self.calls = 0

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        image1, image2 = checked_frames(image1, image2)
        self.calls += 1
        return self.answer(image1, image2)


def zero_flow(image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
    """No motion, (N, 2, H, W)."""
    batch, _, height, width = image1.shape
    return np.zeros((batch, 2, height, width), np.float32)
