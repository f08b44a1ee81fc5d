"""Flow of any frames: ``load(checkpoint)(frame1, frame2)``.

A runtime's model holds for one frame size. The first call at a new size builds it in a cache folder
(``cache_folder``); later calls, also of other processes, load it in about a second.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import platformdirs

import gma_lib
from gma_lib import convert, export, network
from gma_lib.backends import AlongSequence, Backend, SplitBackend, find_backend, load_backend
from gma_lib.backends.base import PARTS
from gma_lib.flow.refine import check_refinable, check_refinement, refine_flow
from gma_lib.flow.warm_start import carry_forward
from gma_lib.infer.frames import as_frames, describe_size, match_type
from gma_lib.infer.views import View
from gma_lib.network.sizes import SEEDED, STRIDE
from gma_lib.runs.files import PACKAGE, RESOURCES, hash_file, hash_value
from gma_lib.runs.machine import find_versions, identify_processor, is_bfloat16_fast
from gma_lib.runs.records import Record
from gma_lib.runs.sealed import open_sealed

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# At 1280x720, a first call, which exports with PyTorch, was measured to stay below 4 GB.
MOST_COMPUTED_PIXELS = 1280 * 720
MEMORY_BYTES = 4e9

Frame = TypeVar("Frame", np.ndarray, "torch.Tensor")


def cache_folder() -> Path:
    """Where prepared models lie, and may be deleted: ``$GMA_CACHE``, else ``gma`` in the system's
    folder for caches.
    """
    if given := os.environ.get("GMA_CACHE"):
        return Path(given).expanduser()
    return platformdirs.user_cache_path("gma", appauthor=False)


def affordable_pixels(backend: str, precision: str) -> int:
    """The largest frame, in pixels, that is predicted to need less than 4 GB, and no more than
    ``MOST_COMPUTED_PIXELS``.
    """
    side = math.isqrt(MOST_COMPUTED_PIXELS)
    while (network.predict_memory(backend, precision, 1, side, side) or 0) > MEMORY_BYTES:
        side -= STRIDE
    return MOST_COMPUTED_PIXELS if side == math.isqrt(MOST_COMPUTED_PIXELS) else side**2


class Estimator:
    """Estimate the flow between two frames of any size.

    The first call and the first sequence at a frame size build and cache a model (about a minute,
    int8 several). One model is held at a time: alternating sizes reload it at each change.
    Several threads may share an Estimator: calls run one after the other.

    Parameters
    ----------
    checkpoint
        Name of bundled weights, or a ``.pth`` or ``.safetensors`` file, relative to the working
        directory. The attention is always ``content`` (see ``GMAConfig``).
    backend
        Runtime: ``openvino``, ``onnxruntime``, ``torch`` or ``cuda``.
    precision
        ``float32``; ``bfloat16`` (openvino, torch, cuda); ``float16`` (cuda); ``int8`` (openvino,
        on a processor with bfloat16; needs ``nncf``).
    num_updates
        Updates (refinement iterations), 1 to 1000: the authors evaluate with 12, the guide uses 6.
    max_pixels
        Downscale frames that have more pixels once padded, and scale their flow back; ``say``
        reports the factor. At least 16,384. None: what needs less than 4 GB of memory, at most
        1280 * 720 (``affordable_pixels``).
    refine
        ``variational``: refine the flow to sub-pixel precision at the frames' own size
        (``refine_flow``); for 8-bit frames of at least 16 px a side. None: the network's flow.
    say
        Callback for user-facing messages (downscaling, building a model). The default logs them
        as warnings.

    Attributes
    ----------
    trained
        False for seeded weights, whose flow is noise.
    threads
        Processor threads; None: all cores. Set it before the first call.
    last_seconds
        Seconds that the last call, or the last pair of ``along``, computed, without building or
        loading the model.
    last_flow_low
        Flow of the last pair of ``along``, (1, 2, H/8, W/8) of the padded frame, in cells of 8 px.

    Raises
    ------
    ValueError
        For an unknown backend or value, or a precision that this machine lacks.
    BadFile
        For weights that are missing or damaged. Those of another network, or for another attention,
        may fail at the first call only.
    """

    def __init__(
        self,
        checkpoint: str | Path = "gma-procedural",
        *,
        backend: str = "openvino",
        precision: str = "float32",
        num_updates: int = 12,
        max_pixels: int | None = None,
        refine: str | None = None,
        say: Callable[[str], None] = logger.warning,
    ):
        check_refinement(refine)
        max_pixels = affordable_pixels(backend, precision) if max_pixels is None else max_pixels
        network.check_updates(num_updates)
        if not isinstance(max_pixels, (int, np.integer)) or max_pixels < 128 * 128:
            raise ValueError(
                f"max_pixels: a whole number from {128 * 128} (the smallest frame that the network "
                f"takes) up, not {max_pixels!r}"
            )
        find_backend(backend).options(precision=precision).require()  # before a model is built
        if backend in ("openvino", "torch") and precision == "bfloat16" and not is_bfloat16_fast():
            say("this processor computes bfloat16 more slowly than float32")
        file = Path(checkpoint).expanduser()
        is_name = str(checkpoint) == SEEDED or network.find_bundled(checkpoint)
        # what is no name is never looked for elsewhere than here
        self.checkpoint = str(checkpoint if is_name and not file.is_file() else file.absolute())
        self.backend, self.precision = backend, precision
        self.num_updates, self.max_pixels = num_updates, max_pixels
        self.refine, self.say = refine, say
        self.threads: int | None = None  # of the processor; None: all cores
        # noise is what weights give that were not trained
        self._weights_sha256, self.trained = _identify_weights(self.checkpoint)
        self._loaded: tuple[tuple[int, int, bool], Backend] | None = None
        self._lock = threading.RLock()  # held while the model is loaded, computes or is closed
        self._reported: set[tuple[int, int]] = set()
        # of the last call, once its model was loaded; cuda's first of a size also records kernels
        self.last_seconds = 0.0
        self.last_flow_low: np.ndarray | None = None  # by which the last ``along`` can go on

    def __call__(self, frame1: Frame, frame2: Frame) -> Frame:
        """Estimate the motion from ``frame1`` to ``frame2``.

        Parameters
        ----------
        frame1, frame2
            RGB, 0..255: Pillow images, or arrays or tensors (H, W, 3), (3, H, W), a batch
            (N, 3, H, W), or grey (H, W). OpenCV decodes BGR: reverse its channels first. An image
            from ``Image.open`` is rotated by its orientation tag; one made from it is not.

        Returns
        -------
        numpy.ndarray or torch.Tensor
            Flow in pixels, float32, (2, H, W), or (N, 2, H, W) for a batch, x before y; a tensor,
            on their device, for tensors.

        Raises
        ------
        ValueError
            For frames of different sizes, of fewer than 8 px a side, or with values outside 0..255
            or apparently 0..1; with ``refine``, also of fewer than 16 px a side or with fractional
            values. For weights replaced since ``load``, or flow that is not finite.
        MemoryError
            If the model is predicted to need more than 90 % of this machine's memory.
        """
        images = self._take(frame1, "frame1"), self._take(frame2, "frame2")
        if images[0].shape != images[1].shape:
            raise ValueError(
                f"the two frames differ in size: {describe_size(images[0])} and "
                f"{describe_size(images[1])}; flow needs one size"
            )
        view = self._view(*images[0].shape[-2:])
        pairs = zip(view.shrink(images[0]), view.shrink(images[1]), strict=True)
        with self._lock:
            model = self._load(view, parts=False)
            model.prepare()
            started = time.monotonic()
            computed = np.concatenate(
                [model.predict(image1[None], image2[None]) for image1, image2 in pairs]
            )
        flow = self._finish(view, *images, computed)
        self.last_seconds = time.monotonic() - started
        return cast(Frame, match_type(flow if np.ndim(frame1) == 4 else flow[0], frame1))

    def along(
        self,
        frames: Iterable["np.ndarray | torch.Tensor"],
        *,
        warm: bool = False,
        flow_low: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the flow from each frame to the next: float32 arrays (2, H, W), in pixels.

        Each frame is encoded once. Tensors give arrays, too. Between two pairs, this object may be
        called, or compute another sequence; a call then adds the whole network to memory.

        Parameters
        ----------
        frames
            Single frames of one size, as ``__call__`` takes them; no batches.
        warm
            Start each pair from the previous pair's flow, carried forward, as the authors do for
            the Sintel benchmark.
        flow_low
            With ``warm``, to resume a sequence: ``last_flow_low`` after its last pair.

        Raises
        ------
        ValueError
            While iterating: as ``__call__``, for a batch, or for frames of different sizes.
        """
        before: np.ndarray | None = None
        sequence: AlongSequence | None = None
        for number, frame in enumerate(frames, start=1):
            image = self._take(frame, f"frame {number}")
            if len(image) != 1:
                raise ValueError(
                    f"frame {number} is a batch, {describe_size(image)}; a sequence takes frames "
                    "one by one"
                )
            if before is None:
                size, earlier = image.shape[-2:], image
                view = self._view(*size)
            elif image.shape[-2:] != size:
                raise ValueError(
                    f"frame {number} has {describe_size(image)} where the frames before have "
                    f"{size[1]}x{size[0]} px"
                )
            shrunk = view.shrink(image)
            if before is not None:
                start = carry_forward(flow_low[0])[None] if warm and flow_low is not None else None
                with self._lock:
                    model = self._load_split(view)
                    started = time.monotonic()
                    if sequence is None or sequence.backend is not model:  # another was loaded
                        sequence = AlongSequence(model)
                    flow, flow_low = sequence.flow(number - 1, before, number, shrunk, start)
                    self.last_flow_low = flow_low
                flow = self._finish(view, earlier, image, flow)
                self.last_seconds = time.monotonic() - started
                yield flow[0]
            before = shrunk
            # a copy: whoever gives the frames may write the next into the same memory
            earlier = image if self.refine is None else image.copy()

    @property
    def device(self) -> str | None:
        """Name of the device that the loaded model computes on; None while no model is loaded."""
        loaded = self._loaded  # once: another thread may close it
        return loaded[1].device if loaded else None

    def __getstate__(self) -> Record:
        """Settings, for a worker, which loads the model itself."""
        return vars(self) | {"_loaded": None, "_lock": None}

    def __setstate__(self, state: Record) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def __repr__(self) -> str:
        return (
            f"Estimator({Path(self.checkpoint).name!r}, backend={self.backend!r}, "
            f"precision={self.precision!r}, num_updates={self.num_updates}, refine={self.refine!r})"
        )

    def to_record(self) -> Record:
        """Return what the flow depends on, settings and the weights' SHA-256, for a JSON file."""
        return {
            "weights_sha256": self._weights_sha256,
            "trained": self.trained,
            "backend": self.backend,
            "precision": self.precision,
            "num_updates": self.num_updates,
            "max_pixels": self.max_pixels,
            "refine": self.refine,
        }

    def close(self) -> None:
        """Free the runtime's memory; the next call loads the model again."""
        with self._lock:
            if self._loaded:
                self._loaded[1].close()
            self._loaded = None

    def _take(self, frame: "np.ndarray | torch.Tensor", name: str) -> np.ndarray:
        image = as_frames(frame, name)
        if self.refine is not None:
            check_refinable(image, name)
        return image

    def _finish(
        self, view: View, images1: np.ndarray, images2: np.ndarray, flow: np.ndarray
    ) -> np.ndarray:
        """Flow (N, 2, H, W) of the frames' own size, refined where that was asked for."""
        flow = view.enlarge(flow)
        if not np.isfinite(flow).all():
            raise ValueError(f"{self.checkpoint}: the network computes values that are not finite")
        if self.refine is None:
            return flow
        return np.stack([refine_flow(*pair) for pair in zip(images1, images2, flow, strict=True)])

    def _view(self, height: int, width: int) -> View:
        view = View.fit(height, width, self.max_pixels)
        if view.is_scaled and (height, width) not in self._reported:
            self._reported.add((height, width))
            factor = math.sqrt(view.height * view.width / (height * width))
            self.say(
                f"{width}x{height} px, padded, are more than {self.max_pixels} pixels: computed at "
                f"{view.width}x{view.height} px, {factor:.3f} of the size, and the flow scaled "
                "back; --max-pixels (max_pixels) changes that, for more memory"
            )
        return view

    def _load(self, view: View, *, parts: bool) -> Backend:
        """The model for this size, from the cache; only the last one stays loaded.

        One in parts holds the whole network, too.
        """
        rows, columns = view.padded
        wanted = (rows, columns, parts)
        if self._loaded is None or self._loaded[0] not in (wanted, (rows, columns, True)):
            self.close()
            try:
                network.require_memory(self.backend, self.precision, 1, rows, columns)
            except MemoryError as error:
                raise MemoryError(
                    f"{columns}x{rows} px: {error}; lower --max-pixels (max_pixels)"
                ) from error
            folder = self._prepare(rows, columns, parts)
            model = load_backend(
                self.backend, folder, precision=self.precision, threads=self.threads
            )
            self._loaded = wanted, model
        return self._loaded[1]

    def _load_split(self, view: View) -> SplitBackend:
        model = self._load(view, parts=True)
        if not isinstance(model, SplitBackend):
            raise ValueError(
                f"backend {self.backend} does not run in parts, which a sequence needs; openvino, "
                "onnxruntime, torch and cuda do"
            )
        model.prepare(*PARTS)
        return model

    def build(self, height: int, width: int) -> None:
        """Build and cache what ``along`` loads for frames of this size: workers that all wait for
        one of them to build it would pass for hanging.
        """
        self._prepare(*self._view(height, width).padded, parts=True)

    def _prepare(self, rows: int, columns: int, parts: bool) -> Path:
        """Folder with the model for frames of this padded size, built once, whole or not at all."""
        made_from = {
            "package": str(PACKAGE),  # each installation has its own: their code may differ
            "versions": {"gma_lib": gma_lib.__version__} | find_versions(),
            "weights": self._weights_sha256,
            "backend": self.backend,
            # a floating-point format is chosen when the model is loaded
            "precision": self.precision if self.precision == "int8" else "floating point",
            "num_updates": self.num_updates,
            "padded": [rows, columns],
            "parts": parts,
        }
        if self.precision == "int8":  # calibrated here, on scenes that this file describes
            scenes = hash_file(RESOURCES / "params" / "train.yaml")
            made_from |= {"scenes": scenes, "processor": identify_processor()}
        return open_sealed(
            cache_folder() / hash_value(made_from)[:32],
            made_from,
            lambda folder: self._build(folder, rows, columns, parts),
            with_code=True,
            first=f"first call at {columns}x{rows} px: building the model for {self.backend} "
            f"(about a minute), cached in {cache_folder()}",
            say=self.say,
        )

    def _build(self, folder: Path, rows: int, columns: int, parts: bool) -> None:
        """Build the model, keeping only what its backend loads; ValueError if the weights are no
        longer those that this object was made with.
        """
        spec = convert.ModelSpec(
            self.checkpoint,
            height=rows,
            width=columns,
            backend=self.backend,
            precision=self.precision,
            num_updates=self.num_updates,
            parts=parts,
        )
        conversion = convert.prepare_model(spec, folder)
        made_of = export.read_description(folder / "gma.onnx")["weights_sha256"]
        if made_of != self._weights_sha256:  # which the cache and the records name
            raise ValueError(f"{self.checkpoint} has been replaced since load(): call load() again")
        for file in set(folder.glob("*.onnx")) - set(conversion.files):
            file.unlink()


load = Estimator  # the name that ``gma_lib`` offers


def _identify_weights(checkpoint: str) -> tuple[str, bool]:
    """Hash of the weights, and whether they were trained; bundled ones are not decoded."""
    if bundled := network.find_bundled(checkpoint):
        network.require_bundled(bundled, digest := hash_file(bundled))
        return digest, True
    if known := network.identify_safetensors(Path(checkpoint)):
        return known
    loaded = network.load_checkpoint(checkpoint)
    return loaded.sha256, loaded.trained
