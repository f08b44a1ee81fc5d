"""Flow for anybody's frames, in three lines.

>>> from gma_lib import load
>>> flow = load("gma-procedural")(frame1, frame2)
>>> flow.shape
(2, 436, 1024)

A runtime's model holds for one frame size, so the first call at a new size makes one and keeps it
in a cache folder (``cache_folder``); later calls, also of other processes, load it in about a
second, without PyTorch.
"""

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import gma_lib
from gma_lib.backends import AlongSequence, Backend, SplitBackend, find_backend, load_backend
from gma_lib.data.padding import MULTIPLE, Padding
from gma_lib.flow.warm_start import carry_forward
from gma_lib.network.memory import predict_memory, require_memory
from gma_lib.runs.files import PROJECT, hash_file, hash_value
from gma_lib.runs.machine import find_versions

# Peak memory grows with the square of the area. At 1280x720, a first call, which exports with
# PyTorch, was measured to stay below 4 GB.
MAX_PIXELS = 1280 * 720
MEMORY_BYTES = 4e9
SMALLEST_SIDE = MULTIPLE  # below, a frame is not even one of the network's cells
# What of this package decides a prepared model's content
_DECISIVE = (
    "network/model.py",
    "network/checkpoints.py",
    "network/deploy.py",
    "export/trace.py",
    "convert/conversion.py",
    "convert/int8.py",
    "backends/__init__.py",
)


def load(checkpoint: str | Path = "gma-procedural", **options: Any) -> "Estimator":
    """Return something that turns two frames into flow; see ``Estimator`` for the options."""
    return Estimator(checkpoint, **options)


def cache_folder() -> Path:
    """Where prepared models lie: ``$GMA_CACHE``, else ``gma`` in the user's cache folder. It may be
    deleted at any time.
    """
    if "GMA_CACHE" in os.environ:
        return Path(os.environ["GMA_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gma"


def affordable_pixels(backend: str, precision: str) -> int:
    """The largest frame, in pixels, that is predicted to need less than 4 GB, and no more than
    ``MAX_PIXELS``.
    """
    side = math.isqrt(MAX_PIXELS)
    while (predict_memory(backend, precision, 1, side, side) or 0) > MEMORY_BYTES:
        side -= MULTIPLE
    return MAX_PIXELS if side == math.isqrt(MAX_PIXELS) else side**2


def to_stderr(sentence: str) -> None:
    """Say something beside the results."""
    print(f"gma: {sentence}", file=sys.stderr, flush=True)


class Estimator:
    """Two frames of any size in, their flow out.

    Parameters
    ----------
    checkpoint
        A shipped name, or a ``.pth`` or ``.safetensors`` file, relative to the working directory.
    backend, precision
        What computes, and in which number format.
    num_updates
        Refinement iterations: 12 as the authors evaluate, 6 as the deployment guide.
    max_pixels
        Frames with more are computed smaller; it is said, with the factor, and the flow is scaled
        back. None: what stays below 4 GB of memory (``affordable_pixels``).
    say
        Takes sentences about what was done that somebody should know: scaling, a model being made.
    """

    def __init__(
        self,
        checkpoint: str | Path = "gma-procedural",
        *,
        backend: str = "openvino",
        precision: str = "float32",
        num_updates: int = 12,
        max_pixels: int | None = None,
        say: Callable[[str], None] = to_stderr,
    ):
        max_pixels = affordable_pixels(backend, precision) if max_pixels is None else max_pixels
        if max_pixels < 128 * 128:
            raise ValueError(
                f"max_pixels is at least {128 * 128}, the smallest frame the network takes, not {max_pixels}"
            )
        find_backend(backend).options(
            precision=precision
        ).require()  # before a model is made for it
        file = Path(checkpoint).expanduser()
        self.checkpoint = str(file.absolute() if file.is_file() else checkpoint)
        self.backend, self.precision = backend, precision
        self.num_updates = num_updates
        self.max_pixels = max_pixels
        self.say = say
        self._weights_sha256 = _weights_sha256(self.checkpoint)
        self._loaded: tuple[tuple, Backend] | None = None
        self._said: set[str] = set()

    def __call__(self, frame1: Any, frame2: Any) -> Any:
        """Estimate the motion from ``frame1`` to ``frame2``.

        Parameters
        ----------
        frame1, frame2
            Arrays or tensors, RGB, 0..255: (H, W, 3) as image libraries decode them, (3, H, W), or
            a batch (N, 3, H, W). Grey frames are (H, W).

        Returns
        -------
        numpy.ndarray or torch.Tensor
            Flow in pixels, float32, (2, H, W), or (N, 2, H, W) for a batch, x before y; a tensor,
            on their device, for tensors.

        Raises
        ------
        ValueError
            For frames of different sizes, of fewer than 8 px a side, or that are not 0..255.
        """
        images = as_frames(frame1, "frame1"), as_frames(frame2, "frame2")
        if images[0].shape != images[1].shape:
            raise ValueError(
                f"the two frames differ in size: {_described(images[0])} and {_described(images[1])}; flow needs one size"
            )
        view = self._view(*images[0].shape[-2:])
        network = self._network(view, split=False)
        pairs = zip(view.shrunk(images[0]), view.shrunk(images[1]), strict=True)
        flow = view.enlarged(
            np.concatenate(
                [network.predict(image1[None], image2[None]) for image1, image2 in pairs]
            )
        )
        return _like(frame1, flow if np.ndim(frame1) == 4 else flow[0])

    def along(self, frames: Iterable[Any], *, warm: bool = False) -> Iterator[np.ndarray]:
        """Yield the flow (2, H, W) from each frame to the next; the features of every frame are
        computed once.

        Parameters
        ----------
        frames
            Frames of one size, as ``__call__`` takes them, one by one.
        warm
            Start each pair from the flow before it, carried on along itself, as the authors do for
            the Sintel benchmark.
        """
        before: np.ndarray | None = None
        flow_low: np.ndarray | None = None
        for number, frame in enumerate(frames, start=1):
            image = as_frames(frame, f"frame {number}")
            if before is None:
                size = image.shape[-2:]
                view = self._view(*size)
                sequence = AlongSequence(self._split_network(view))
            elif image.shape[-2:] != size:
                raise ValueError(
                    f"frame {number} has {_described(image)} where the frames before have {size[1]}x{size[0]} px"
                )
            shrunk = view.shrunk(image)
            if before is not None:
                start = carry_forward(flow_low[0])[None] if warm and flow_low is not None else None
                flow, flow_low = sequence.flow(number - 1, before, number, shrunk, start)
                yield view.enlarged(flow)[0]
            before = shrunk

    def described(self) -> dict[str, Any]:
        """What the flow depends on besides the frames."""
        return {
            "weights_sha256": self._weights_sha256,
            "backend": self.backend,
            "precision": self.precision,
            "num_updates": self.num_updates,
            "max_pixels": self.max_pixels,
        }

    def close(self) -> None:
        """Free the runtime's memory; the next call loads again."""
        if self._loaded:
            self._loaded[1].close()
        self._loaded = None

    def _view(self, height: int, width: int) -> "_View":
        view = _View.within(height, width, self.max_pixels)
        if (view.height, view.width) != (height, width):
            factor = math.sqrt(view.height * view.width / (height * width))
            self._say_once(
                f"{width}x{height} px are more than {self.max_pixels} pixels: computed at {view.width}x{view.height} px, "
                f"{factor:.3f} of the size, and the flow scaled back; --max-pixels (max_pixels) changes that, for more memory"
            )
        return view

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(sentence)

    def _network(self, view: "_View", *, split: bool) -> Backend:
        """The model for this size, from the cache; only the last one stays loaded."""
        rows, columns = view.padded
        wanted = (rows, columns, split)
        if self._loaded is None or self._loaded[0] != wanted:
            self.close()
            try:
                require_memory(self.backend, self.precision, 1, rows, columns)
            except MemoryError as error:
                raise MemoryError(
                    f"{columns}x{rows} px: {error}; lower --max-pixels (max_pixels)"
                ) from error
            folder = self._prepared(rows, columns, split)
            self._loaded = wanted, load_backend(self.backend, folder, precision=self.precision)
        return self._loaded[1]

    def _split_network(self, view: "_View") -> SplitBackend:
        network = self._network(view, split=True)
        if not isinstance(network, SplitBackend):
            raise ValueError(
                f"backend {self.backend} does not run in parts, which a sequence needs; openvino, onnxruntime, torch and cuda do"
            )
        return network

    def _prepared(self, rows: int, columns: int, split: bool) -> Path:
        """Folder with the model for frames of this padded size; made once, whole or not at all."""
        sources = [hash_file(Path(__file__).parents[1] / name) for name in _DECISIVE]
        made_in = (
            self.precision if self.precision == "int8" else "floating point"
        )  # which one is chosen when the model is loaded
        decisive = [
            gma_lib.__version__,
            sources,
            find_versions(),
            self._weights_sha256,
            self.backend,
            made_in,
            self.num_updates,
        ]
        folder = cache_folder() / hash_value([*decisive, rows, columns, split])[:32]
        if folder.is_dir():
            return folder
        self.say(
            f"first call at {columns}x{rows} px: making the model for {self.backend}, kept in {folder.parent}"
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            _make_model(
                making,
                self.backend,
                self.precision,
                self.checkpoint,
                self.num_updates,
                rows,
                columns,
                split,
            )
            try:
                making.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return folder


def as_frames(frame: Any, name: str) -> np.ndarray:
    """An array or tensor as float32 (N, 3, H, W), RGB, 0..255, checked; ``name`` is what errors
    call it.
    """
    array = frame.detach().cpu().numpy() if hasattr(frame, "detach") else np.asarray(frame)
    if array.dtype == np.uint16 or array.dtype == bool or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name} is {array.dtype}; frames are uint8 or floating point, 0..255")
    fractional = np.issubdtype(array.dtype, np.floating)
    if array.ndim == 2:
        array = np.stack([array] * 3)
    elif array.ndim == 3 and array.shape[2] == 3 and array.shape[0] != 3:
        array = array.transpose(2, 0, 1)
    if array.ndim not in (3, 4) or array.shape[-3] != 3:
        raise ValueError(
            f"{name} has shape {array.shape}; frames are (H, W, 3), (3, H, W), (N, 3, H, W), or (H, W) when grey"
        )
    if min(array.shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"{name} has {array.shape[-1]}x{array.shape[-2]} px; the network sees cells of {SMALLEST_SIDE} px, so no less a side"
        )
    array = np.ascontiguousarray(array, dtype=np.float32)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255 + 1e-3:
        raise ValueError(f"{name} holds values from {low:g} to {high:g}; frames are 0..255")
    if fractional and 0 < high <= 1:
        raise ValueError(
            f"{name} holds values up to {high:g}; frames are 0..255, so multiply what is 0..1 by 255"
        )
    return array if array.ndim == 4 else array[None]


def _described(frames: np.ndarray) -> str:
    count = f"{len(frames)} of " if len(frames) > 1 else ""
    return f"{count}{frames.shape[-1]}x{frames.shape[-2]} px"


def _like(frame: Any, flow: np.ndarray) -> Any:
    """Flow as a tensor on the frame's device where the frame is one."""
    if not hasattr(frame, "detach"):
        return flow
    import torch

    return torch.from_numpy(np.ascontiguousarray(flow)).to(frame.device)


class _View:
    """How frames of one size are given to the network: made smaller where they have to be, then
    padded; and the way back.
    """

    def __init__(self, full: tuple[int, int], height: int, width: int):
        self.full = full
        self.height, self.width = height, width
        self.padding = Padding.for_size(height, width)
        self.padded = self.padding.padded_size(height, width)

    @classmethod
    def within(cls, height: int, width: int, max_pixels: int) -> "_View":
        """The largest size of the same shape whose padded frame has at most ``max_pixels``; the
        frame's own where that fits.
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

    def shrunk(self, frames: np.ndarray) -> np.ndarray:
        """Frames (N, 3, H, W) at the computed size, padded."""
        if self.full != (self.height, self.width):
            frames = _resized(frames, self.height, self.width, cv2.INTER_AREA)
        return self.padding.pad(frames)

    def enlarged(self, flow: np.ndarray) -> np.ndarray:
        """Flow (N, 2, H, W) of a padded frame -> flow of the full frame, in its pixels."""
        flow = self.padding.unpad(flow)
        if self.full != (self.height, self.width):
            factors = np.array([self.full[1] / self.width, self.full[0] / self.height], np.float32)
            flow = _resized(flow, *self.full, cv2.INTER_LINEAR) * factors[:, None, None]
        return np.ascontiguousarray(flow)


def _resized(arrays: np.ndarray, height: int, width: int, method: int) -> np.ndarray:
    pictures = [
        cv2.resize(
            np.ascontiguousarray(array.transpose(1, 2, 0)), (width, height), interpolation=method
        )
        for array in arrays
    ]
    return np.stack([picture.transpose(2, 0, 1) for picture in pictures])


def _weights_sha256(checkpoint: str) -> str:
    """Hash of the weights, without reading them into PyTorch; a wrong name gets the list of those
    there are.
    """
    from_file = PROJECT / Path(checkpoint).expanduser()
    for path in (PROJECT / "weights" / f"{checkpoint}.safetensors", from_file):
        if path.is_file():
            return hash_file(path)
    from gma_lib.network.checkpoints import load_checkpoint

    return load_checkpoint(checkpoint).sha256


def _make_model(
    folder: Path,
    backend: str,
    precision: str,
    checkpoint: str,
    num_updates: int,
    rows: int,
    columns: int,
    split: bool,
) -> None:
    """Export the network for one frame size and convert it for the backend."""
    from gma_lib.convert.conversion import convert
    from gma_lib.export.trace import export_split, export_whole
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.deploy import to_deploy_form
    from gma_lib.network.model import GMAConfig

    model, weights = load_model(
        checkpoint, GMAConfig(num_updates=num_updates, lookup=find_backend(backend).lookup)
    )
    size = {"height": rows, "width": columns, "batch_size": 1}
    exported = to_deploy_form(model)
    export_whole(exported, folder / "gma.onnx", **size, checkpoint=weights)
    if split:
        export_split(exported, folder, **size, checkpoint=weights)
    attention = model.config.attention
    conversion = convert(
        backend,
        folder,
        checkpoint=checkpoint,
        num_updates=num_updates,
        attention=attention,
        precision=precision,
    )
    for file in set(folder.glob("*.onnx")) - set(conversion.files):
        file.unlink()
