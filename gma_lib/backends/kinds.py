"""The backends there are: one literal table, and how one is found and loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path

from gma_lib import backends
from gma_lib.backends.base import Backend, Options
from gma_lib.runs.devices import Devices
from gma_lib.runs.extras import name_extra


@dataclass(frozen=True)
class BackendKind:
    """A runtime, before it is imported.

    Attributes
    ----------
    import_classes
        Imports and returns the backend and its options.
    model_file
        The file in the run's model folder that it loads.
    lookup
        The form of the correlation lookup that suits it, a key of
        ``gma_lib.network.model.LOOKUPS``.
    any_lookup
        Whether it runs the other forms, too.
    computes_on
        Whose peak its speed is compared with: ``cpu``, or ``cuda`` for an NVIDIA GPU.
    devices
        From fields of its options to what worker processes share, one each; None: the processor.
    for_any_frames
        Whether ``gma flow`` and other commands offer it for the user's own frames.
    """

    import_classes: Callable[[], tuple[Callable[..., Backend], Callable[..., Options]]]
    model_file: str
    lookup: str = "matmul"
    any_lookup: bool = True
    computes_on: str = "cpu"
    devices: Callable[..., Devices | None] = lambda **options: None
    for_any_frames: bool = True

    def classes(self) -> tuple[Callable[..., Backend], Callable[..., Options]]:
        """Return the backend and its options; ModuleNotFoundError says what to install."""
        try:
            return self.import_classes()
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(name_extra(error), name=error.name) from error

    def options(self, **fields: object) -> Options:
        """Return its options, whose ``require()`` refuses what this machine cannot compute."""
        return self.classes()[1](**fields)


BACKENDS = {
    "openvino": BackendKind(
        lambda: (backends.OpenVinoBackend, backends.OpenVinoOptions),
        "gma.xml",
        lookup="rows",
    ),
    "onnxruntime": BackendKind(
        lambda: (backends.OnnxRuntimeBackend, backends.OnnxRuntimeOptions),
        "gma_onnxruntime.onnx",
    ),
    "torch": BackendKind(lambda: (backends.TorchBackend, backends.TorchOptions), "gma.safetensors"),
    "cuda": BackendKind(
        lambda: (backends.CudaBackend, backends.CudaOptions),
        "gma.safetensors",
        lookup="grid_sample",
        any_lookup=False,
        computes_on="cuda",
        devices=lambda **options: backends.GPUS,
    ),
    # as the authors run it, operation by operation: what the one above is measured against
    "eager_cuda": BackendKind(
        lambda: (
            backends.TorchBackend,
            partial(backends.TorchOptions, device="cuda"),
        ),
        "gma.safetensors",
        lookup="grid_sample",
        computes_on="cuda",
        devices=lambda **options: backends.GPUS,
        for_any_frames=False,
    ),
    "ascend": BackendKind(
        lambda: (backends.open_ascend, backends.AscendOptions),
        "gma.om",
        devices=lambda **options: backends.AscendOptions(**options).find_devices(),
        for_any_frames=False,
    ),
}


def find_backend(name: str) -> BackendKind:
    """Look a backend up by name; an unknown name lists those there are."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def load_backend(
    name: str,
    model_folder: Path,
    *,
    precision: str,
    threads: int | None = None,
    **options: object,
) -> Backend:
    """Load a run's model.

    Parameters
    ----------
    name
        A key of ``BACKENDS``.
    model_folder
        Where 03_convert left the model.
    precision
        Explicit, passed to the runtime and read back.
    threads
        Of the processor, for a backend that can be told; None: all cores.
    options
        Further fields of the backend's options.
    """
    kind = find_backend(name)
    make, make_options = kind.classes()
    if "threads" in signature(make_options).parameters:
        options["threads"] = threads
    return make(Path(model_folder) / kind.model_file, kind.options(precision=precision, **options))
