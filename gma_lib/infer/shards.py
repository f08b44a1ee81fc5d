"""Shards: pairs that one worker computes one after the other, and the model that it loads."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

from gma_lib.backends.base import Backend
from gma_lib.backends.kinds import find_backend, load_backend
from gma_lib.data.pair import FramePair
from gma_lib.runs.digests import require_files
from gma_lib.runs.parcels import Sent, place_files
from gma_lib.runs.records import Record

SHARD_PAIRS = 16  # at most, unless the batch size is larger


class Shard(NamedTuple):
    """Pairs for one worker, and the files that it reads: path -> SHA-256."""

    pairs: list[FramePair]
    files: Mapping[Path, str]


def list_frames(pairs: Sequence[FramePair]) -> list[Path]:
    """The frames of pairs, in order, each once."""
    return list(dict.fromkeys(path for pair in pairs for path in (pair.image1, pair.image2)))


def cut_shards(pairs: Sequence[FramePair], batch_size: int = 1) -> list[list[FramePair]]:
    """Cut pairs into shards, in order: a scene of a pass, cut further after 16 pairs or the last
    full batch before.

    The pairs and the batch size alone decide, not who computes: every batch of a run that is not
    resumed holds the same pairs, and a frame is encoded once within a shard.
    """
    most = max(1, SHARD_PAIRS // batch_size) * batch_size
    scenes = groupby(pairs, key=lambda pair: (pair.pass_name, pair.scene))
    lists = [list(scene) for _, scene in scenes]
    return [one[first : first + most] for one in lists for first in range(0, len(one), most)]


@dataclass(frozen=True)
class StoredModel:
    """A model in a run's folder, which every worker process loads for itself, once, from there or
    from what it is sent.

    Attributes
    ----------
    backend, folder, precision
        As for ``gma_lib.backends.load_backend``.
    files
        Name -> SHA-256, as 03_convert recorded them; other files are refused.
    device
        What 03_convert computed on, as the runtime names it; another is refused.
    threads
        Of the worker, on a CPU; None: as many as it has cores.
    options
        Further fields of the backend's options.
    """

    backend: str
    folder: Path
    precision: str
    files: Mapping[str, str]
    device: str
    threads: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of_record(
        cls, folder: Path, converted: Record, threads: int, options: Mapping[str, object]
    ) -> Self:
        """Describe the model of ``convert.json``."""
        names = ("backend", "precision", "files", "device")
        known = {name: converted[name] for name in names}
        return cls(folder=folder, threads=threads, options=options, **known)

    def __post_init__(self) -> None:
        # Its modules decide the flow: the record of whoever gives the work names them, too
        find_backend(self.backend).classes()

    def load(self) -> Backend:
        """Load it after checking its files; FileNotFoundError or ValueError names what to run, the
        latter also where another device than 03_convert's computes.
        """
        require_files(self.folder, dict(self.files), made_by="03_convert")
        backend = load_backend(
            self.backend,
            self.folder,
            precision=self.precision,
            threads=self.threads,
            **self.options,
        )
        if backend.device != self.device:
            backend.close()
            raise ValueError(
                f"{self.backend} computes on {backend.device}, and computed on {self.device} in "
                "03_convert: use a device like that one, also in all workers, or run 03_convert "
                "again"
            )
        return backend


_in_turn = threading.Lock()  # a Dask worker may have several threads, and one model
_kept: list[tuple[StoredModel, Backend, ExitStack]] = []


@contextmanager
def borrow_backend(model: StoredModel, sent: Sent) -> Iterator[Backend]:
    """In a worker: the model of the shard before, where it is the same, or else loaded now.

    Raises
    ------
    Lacking
        This worker neither has the model's files nor was sent them.
    ValueError
        Its device, or its copy of a file, is another than 03_convert's.
    """
    with _in_turn:
        if not _kept or _kept[0][0] != model:
            while _kept:
                _kept.pop()[2].close()
            with ExitStack() as stack:
                files = {model.folder / name: digest for name, digest in model.files.items()}
                locate = stack.enter_context(place_files(files, sent))
                backend = stack.enter_context(replace(model, folder=locate(model.folder)).load())
                _kept.append((model, backend, stack.pop_all()))
        yield _kept[0][1]
