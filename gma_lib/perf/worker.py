"""Time one variant of `gma bench` in a process of its own, stopped until it is its turn."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, ClassVar, cast

import numpy as np

from gma_lib.backends import AlongSequence, Backend, SplitBackend, load_backend
from gma_lib.backends.base import PARTS
from gma_lib.perf.timing import measure_peak_rss
from gma_lib.runs import Record, end_with_parent, tie_child


@dataclass(frozen=True)
class Variant:
    """One way to compute flow.

    Attributes
    ----------
    backend, precision
        As for ``gma_lib.backends.load_backend``.
    lookup, opset, steps, num_updates, batch_size, at_once
        As for ``gma_lib.convert.ModelSpec``.
    sequence
        Whether to walk along a scene, each frame encoded once, instead of computing independent
        pairs; ``batch_size`` is then 1.
    """

    backend: str
    precision: str
    lookup: str
    opset: int
    steps: tuple[str, ...]
    num_updates: int
    batch_size: int
    at_once: int | None
    sequence: bool

    # for whoever reads one from a file
    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    def __post_init__(self) -> None:
        if self.sequence and self.batch_size != 1:
            raise ValueError(
                f"a sequence is walked pair by pair: batch_size is 1, not {self.batch_size}"
            )


class Worker:
    """The measuring side of a worker process, which stands still unless it is asked."""

    def __init__(self, variant: Variant, folder: Path):
        self.folder = folder
        command = [sys.executable, "-m", "gma_lib.perf.worker", str(folder)]
        (folder / "variant.json").write_text(json.dumps(asdict(variant)), encoding="utf-8")
        with open(folder / "errors.txt", "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                **tie_child(),
            )
        self._questions = cast(IO[str], self.process.stdin)
        self._answers = cast(IO[str], self.process.stdout)
        self.about = self._read_answer()

    def time_call(self) -> Record:
        """Time one call: ``seconds`` per pair, ``peak_rss_bytes`` and ``peak_device_bytes``;
        RuntimeError where the process has ended.
        """
        os.kill(self.process.pid, signal.SIGCONT)
        with suppress(BrokenPipeError):  # ended while it waited: the answer says how
            self._questions.write("go\n")
            self._questions.flush()
        return self._read_answer()

    def _read_answer(self) -> Record:
        line = self._answers.readline()
        if not line:
            self.process.wait()
            errors = (self.folder / "errors.txt").read_text(encoding="utf-8")
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the process ended with {self.process.returncode}: {last}")
        os.kill(self.process.pid, signal.SIGSTOP)
        return cast(Record, json.loads(line))

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):  # a question that was never read
            self._questions.close()
        self._answers.close()


# --- inside the process ---------------------------------------------------------------------------


def serve(folder: Path) -> None:
    """Load the model, warm up, write the first flow, then time one call for every line of stdin."""
    variant = Variant(**json.loads((folder / "variant.json").read_text(encoding="utf-8")))
    with np.load(folder.parent / "frames.npz") as file:
        frames = [file[name] for name in file.files]
    start = time.perf_counter()
    with load_backend(variant.backend, folder, precision=variant.precision) as backend:
        parts = PARTS if variant.sequence else ()
        backend.prepare(*parts)
        loaded = time.perf_counter()
        call = (
            _walk_sequence(cast(SplitBackend, backend), frames)
            if variant.sequence
            else _repeat_pair(backend, frames, variant.batch_size)
        )
        np.save(folder / "flow.npy", call())
        first = time.perf_counter()
        _answer(
            loaded_parts=parts,
            load_s=loaded - start,
            first_call_s=first - loaded,
            precision_read_back=backend.precision,
        )
        for _ in sys.stdin:
            before = time.perf_counter()
            call()
            _answer(
                seconds=(time.perf_counter() - before) / variant.batch_size,
                peak_rss_bytes=measure_peak_rss(),
                peak_device_bytes=backend.device_bytes(),
            )


def _answer(**values: float | str | Sequence[str] | None) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _repeat_pair(
    backend: Backend, frames: Sequence[np.ndarray], batch_size: int
) -> Callable[[], np.ndarray]:
    """Return a function that computes the flow of the first two frames, in every place of the
    batch.
    """
    image1, image2 = (
        np.ascontiguousarray(np.repeat(frame, batch_size, axis=0)) for frame in frames[:2]
    )
    return lambda: backend.predict(image1, image2)[:1]


def _walk_sequence(backend: SplitBackend, frames: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
    """Return a function that computes the flow from one frame to the next, to and fro without end;
    its first call gives that of the first two frames.
    """
    there_and_back = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    pairs = itertools.pairwise(itertools.cycle(there_and_back))
    sequence = AlongSequence(backend)

    def call() -> np.ndarray:
        now, after = next(pairs)
        return sequence.flow(now, frames[now], after, frames[after])[0]

    return call


if __name__ == "__main__":
    end_with_parent(os.getppid())
    serve(Path(sys.argv[1]))
