"""Worker processes of this machine that are replaced when they die or hang."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import (
    CancelledError,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TypeVar

from gma_lib.runs.devices import Place
from gma_lib.runs.processes import end_with_parent

Answer = TypeVar("Answer")

TRIES = 3  # of one shard whose worker is killed
SECONDS_IDLE = 150  # after which a worker that computes nothing counts as hanging

logger = logging.getLogger(__name__)


class ProcessPool(ThreadPoolExecutor):
    """Worker processes, each fed by a thread of its own, so that one that is killed is replaced
    and disturbs no other. Each keeps its place.
    """

    def __init__(self, places: list[Place]):
        super().__init__(len(places))
        self._places = iter(places)
        self._mine = threading.local()
        self._running: dict[ProcessPoolExecutor, int] = {}
        self._is_closing = False

    def submit(
        self, fn: Callable[..., Answer], /, *args: object, **kwargs: object
    ) -> Future[Answer]:
        return super().submit(self._compute, fn, *args, **kwargs)

    def _compute(self, fn: Callable[..., Answer], /, *args: object, **kwargs: object) -> Answer:
        for number in range(1, TRIES + 1):
            try:
                process = self._process()
                if self._is_closing:  # since it was started, and so it was not ended
                    raise CancelledError
                return _await(process.submit(fn, *args, **kwargs), self._running[process])
            except BrokenProcessPool:
                self._running.pop(self._mine.__dict__.pop("pool"), None)
                if self._is_closing:
                    raise
                logger.warning("a worker was killed in try %d of %d of a shard", number, TRIES)
        raise RuntimeError(
            f"a worker was killed {TRIES} times at one shard, for lack of memory or because it "
            "hung: try fewer workers, or a smaller batch size"
        )

    def _process(self) -> ProcessPoolExecutor:
        """The process of this thread, started if need be."""
        if "place" not in self._mine.__dict__:
            self._mine.place = next(self._places)
        if "pool" not in self._mine.__dict__:
            self._mine.pool = ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),
                _start_worker,
                (os.getpid(), self._mine.place),
            )
            self._running[self._mine.pool] = self._mine.pool.submit(os.getpid).result()
        pool: ProcessPoolExecutor = self._mine.pool
        return pool

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """End the processes; after an error, without waiting for what they compute."""
        self._is_closing = kind is not None
        for number in list(self._running.values()) if self._is_closing else ():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.shutdown(cancel_futures=True)
        for pool in list(self._running):
            pool.shutdown()


def _start_worker(parent: int, place: Place) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's business
    end_with_parent(parent)
    place.take()


def _await(future: Future[Answer], number: int) -> Answer:
    """Return what a process answers; one that hangs is killed."""
    used = -1.0
    while not wait([future], SECONDS_IDLE).done:
        before, used = used, _count_processor_seconds(number)
        if used <= before:
            logger.warning("a worker used no processor time for %d s: it is killed", SECONDS_IDLE)
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    return future.result()


def _count_processor_seconds(number: int) -> float:
    """What a process and those that it started have used; 0 if it is gone."""
    import psutil

    try:
        process = psutil.Process(number)
        alive = [process, *process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:4]) for one in alive)  # with its children that have ended
    except psutil.NoSuchProcess:
        return 0
