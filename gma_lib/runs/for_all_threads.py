"""Settings that a library has once for the whole process, while any thread needs them."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Before = TypeVar("Before")


class WhileAnyInside(Generic[Before]):
    """A context that is set up when the first thread enters it, and undone when the last one has
    left.

    Parameters
    ----------
    begin
        Sets up, and returns what ``end`` needs.
    end
        Undoes it.
    """

    def __init__(self, begin: Callable[[], Before], end: Callable[[Before], None]):
        self._begin, self._end = begin, end
        self._lock = threading.Lock()
        self._inside: int = 0
        self._before: Before

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = self._begin()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._end(self._before)
