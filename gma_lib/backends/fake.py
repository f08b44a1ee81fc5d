"""A backend without a network, for tests."""

from collections.abc import Callable

import numpy as np

from gma_lib.backends.base import Backend, check_frames


class FakeBackend(Backend):
    """Answers with ``answer(image1, image2)``, zero flow by default.

    Examples
    --------
    >>> one = FakeBackend(lambda image1, image2: np.ones_like(image1[:, :2]))
    """

    device = "none"
    precision = "float32"

    def __init__(self, answer: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None):
        self.answer = answer or (lambda image1, image2: np.zeros_like(image1[:, :2]))
        self.calls = 0

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        image1, image2 = check_frames(image1, image2)
        self.calls += 1
        return self.answer(image1, image2)
