"""The contract of a backend: a converted network that can be run, whole or in parts."""

from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Generic, Protocol, Self, TypeGuard, TypeVar

import numpy as np

from gma_lib.runs import Record, Track, hash_file, hash_value, open_sealed, pass_silently

Loaded = TypeVar("Loaded")  # what a runtime makes of a file
PARTS = ("features", "context", "refine")  # of the network, that a walk along a sequence calls


class Encoded(Protocol):
    """An array of the backend's own kind, on its device."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Options(Protocol):
    """How to run a backend; every backend has its own class."""

    @property
    def precision(self) -> str: ...

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""


class Backend:
    """From frames to flow.

    A subclass takes the model's path and its runtime's options in ``__init__``, imports its runtime
    there, and implements ``predict``. Use it as a context manager to free the device. One thread at
    a time may use it: runtimes keep a call's frames and flow in places that the next call uses.

    Attributes
    ----------
    device
        What computes, as the runtime names it.
    precision
        The number format the runtime says it computes in, read back, not merely asked for.
    at_once
        Pairs that are computed together; a larger batch is computed in parts of so many. None: the
        whole batch.
    simulated
        Whether a stand-in takes the place of the device; its results are marked SIMULATED.
    """

    device: str
    precision: str
    at_once: int | None = None
    simulated: bool = False

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        """Estimate the motion from ``image1`` to ``image2``.

        Parameters
        ----------
        image1, image2
            float32, shape (N, 3, H, W), RGB, 0..255, padded.

        Returns
        -------
        np.ndarray
            Flow in pixels, float32, shape (N, 2, H, W), x before y.
        """
        raise NotImplementedError

    def prepare(self, *parts: str) -> None:
        """Load now what the first call of ``predict``, or of the methods named like ``parts``, else
        loads, for whoever times both.
        """

    def to_record(self) -> Record:
        """What computes, and how, as a record."""
        names = ("device", "precision", "at_once", "simulated")
        return {name: getattr(self, name) for name in names}

    def device_bytes(self) -> int | None:
        """The most memory that the device has used so far; None where it computes in
        this machine's.
        """
        return None

    def close(self) -> None:
        """Release the device; does nothing unless a subclass needs it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class SplitBackend(Backend):
    """A backend that can also run in parts: the features of each frame of a sequence computed once,
    each pair started warm.

    Features and context are arrays of the backend's own kind, on its device where it has one, and
    meant for its ``refine``. A subclass implements ``_compute``, and sets ``shape`` where its model
    takes frames of one shape only.
    """

    shape: tuple[int, ...] | None = None

    def _compute(self, part: str, *given: Encoded) -> tuple[np.ndarray, ...]:
        """Run ``features``, ``context`` or ``refine``, or the whole network, the part without a
        name; where a subclass computes the others itself, only ``refine``.
        """
        raise NotImplementedError

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        return self._compute("", *check_frames(image1, image2, self.shape))[0]

    def features(self, image: np.ndarray) -> Encoded:
        """Compute what is compared between frames: (N, 3, H, W) -> (N, 256, H/8, W/8)."""
        return self._compute("features", image)[0]

    def context(self, image: np.ndarray) -> Encoded:
        """Compute what starts and guides the refinement of the pairs whose first frame this is:
        (N, 3, H, W) -> (N, 256, H/8, W/8).
        """
        return self._compute("context", image)[0]

    def refine(
        self,
        features1: Encoded,
        features2: Encoded,
        context: Encoded,
        flow_init: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute flow (N, 2, H, W) in pixels, and flow (N, 2, H/8, W/8) in cells.

        ``flow_init``, in cells, is where the refinement starts; zero when None.
        """
        start = make_starting_flow(features1, flow_init)
        flow, coarse = self._compute("refine", features1, features2, context, start)
        return flow, coarse


class FileBackend(SplitBackend, Generic[Loaded]):
    """A backend that loads a file for the whole network, and one in the same folder for each part:
    ``<name>_features``, ``<name>_context``, ``<name>_refine``.

    A subclass sets ``shape``, that of the model's frames, and ``at_once``.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._loaded: dict[str, Loaded] = {}

    def _load(self, path: Path) -> Loaded:
        raise NotImplementedError

    def _run(self, loaded: Loaded, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def _find(self, part: str) -> Loaded:
        """The loaded file of a part, loaded once; the whole network is the part without a name."""
        if part not in self._loaded:
            self._loaded[part] = self._load(self._locate(part))
        return self._loaded[part]

    def _locate(self, part: str) -> Path:
        name = f"{self.path.stem}_{part}" if part else self.path.stem
        path = self.path.with_name(name + self.path.suffix)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such model; run 03_convert first")
        return path

    def prepare(self, *parts: str) -> None:
        for part in parts or ("",):
            self._find(part)

    def _compute(self, part: str, *given: Encoded) -> tuple[np.ndarray, ...]:
        loaded = self._find(part)
        return compute_in_parts(lambda *some: self._run(loaded, *some), given, self.at_once)

    def close(self) -> None:
        self._loaded.clear()


def open_compiled(path: Path, made_from: Record, compile_into: Callable[[Path], object]) -> Path:
    """Return the folder that holds what a runtime made of a model's file, made now if need be, in
    ``compiled`` in the model's folder.

    ``made_from`` names the runtime, the processor and the settings; the model's content is added.
    """
    files = [file for file in (path, path.with_suffix(".bin")) if file.is_file()]
    made_from = made_from | {"model": {file.name: hash_file(file) for file in files}}
    folder = path.parent / "compiled" / f"{path.stem}-{hash_value(made_from)[:16]}"
    return open_sealed(folder, made_from, compile_into)


class AlongSequence:
    """Flow from frame to frame of a sequence: the features of the last second frame are kept,
    because it is the first of the next pair.
    """

    def __init__(self, backend: SplitBackend):
        self.backend = backend
        self._frame: Hashable = None
        self._features: Encoded | None = None

    def flow(
        self,
        frame1: Hashable,
        image1: np.ndarray,
        frame2: Hashable,
        image2: np.ndarray,
        flow_init: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``SplitBackend.refine``, of two images (N, 3, H, W); ``frame1`` and ``frame2`` are
        what tells frames from each other.
        """
        kept = self._features if self._frame == frame1 else None
        features1 = self.backend.features(image1) if kept is None else kept
        features2 = self.backend.features(image2)
        self._frame, self._features = frame2, features2
        return self.backend.refine(features1, features2, self.backend.context(image1), flow_init)


def is_for_sequences(backend: Backend) -> TypeGuard[SplitBackend]:
    """Whether flow is computed in parts, by an ``AlongSequence``: where a backend can, and computes
    a batch pair by pair.
    """
    return isinstance(backend, SplitBackend) and backend.at_once == 1


class FolderBackend(Backend):
    """A backend whose runtime reads files: it is given a whole pass at once, or with workers a
    whole shard, because starting it costs more than a pair does.
    """

    def predict_folders(
        self, image1: Path, image2: Path, *, track: Track = pass_silently
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Folders of ``<stem>.bin``, float32 (3, H, W) each -> (stem, flow (2, H, W)) of every
        sample; ``track`` shows progress.
        """
        raise NotImplementedError


def check_frames(
    image1: np.ndarray, image2: np.ndarray, wanted: tuple[int, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both batches contiguous, or raise: runtimes that take raw pointers would read anything
    else as garbage.

    ``wanted`` is the shape that the model takes; a batch may be several of them.
    """
    for label, image in (("image1", image1), ("image2", image2)):
        if image.ndim != 4 or image.shape[1] != 3 or not len(image) or image.dtype != np.float32:
            raise ValueError(
                f"{label} is float32 (N, 3, H, W), N at least 1, not {image.dtype} {image.shape}"
            )
        if wanted is not None and (image.shape[1:] != wanted[1:] or len(image) % wanted[0]):
            raise ValueError(f"{label} has shape {image.shape}; this model was made for {wanted}")
    if image1.shape != image2.shape:
        raise ValueError(f"the two frames differ in shape: {image1.shape} and {image2.shape}")
    return np.ascontiguousarray(image1), np.ascontiguousarray(image2)


def compute_in_parts(
    compute: Callable[..., tuple[np.ndarray, ...]],
    given: tuple[Encoded, ...],
    at_once: int | None,
) -> tuple[np.ndarray, ...]:
    """Call ``compute`` on ``at_once`` entries of the batch after another, contiguous float32, and
    join what it returns.

    On a CPU the cores are busy with one pair already: parts cost no time, and memory no longer
    grows with the batch.
    """
    arrays = [np.ascontiguousarray(array, np.float32) for array in given]
    size = at_once or len(arrays[0])
    answers = [
        compute(*(array[first : first + size] for array in arrays))
        for first in range(0, len(arrays[0]), size)
    ]
    return (
        answers[0]
        if len(answers) == 1
        else tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))
    )


def make_starting_flow(features: Encoded, flow_init: np.ndarray | None) -> np.ndarray:
    """Return the given start, or zero flow for these features."""
    if flow_init is not None:
        return np.ascontiguousarray(flow_init, dtype=np.float32)
    batch, _, height, width = features.shape
    return np.zeros((batch, 2, height, width), np.float32)
