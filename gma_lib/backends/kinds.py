"""The backends there are, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gma_lib import backends
from gma_lib.backends.base import Backend, Options


@dataclass(frozen=True)
class BackendKind:
    """A runtime, before it is imported.

    Attributes
    ----------
    classes
        Imports and returns the backend and its options.
    model_file
        The file in the run's model folder that it loads.
    package
        What to install when its import fails.
    lookup
        The form of the correlation lookup that suits it, a key of
        ``gma_lib.network.model.LOOKUPS``.
    computes_on
        Whose peak its speed is compared with: ``cpu``, or ``cuda`` for an NVIDIA GPU.
    """

    classes: Callable[[], tuple[Callable[..., Backend], Callable[..., Options]]]
    model_file: str
    package: str
    lookup: str = "matmul"
    computes_on: str = "cpu"

    def options(self, **fields: object) -> Options:
        """Return its options, whose ``require()`` refuses what this machine cannot compute."""
        return self.classes()[1](**fields)


BACKENDS = {
    "openvino": BackendKind(
        lambda: (backends.OpenVinoBackend, backends.OpenVinoOptions),
        "gma.xml",
        "openvino",
        lookup="rows",
    ),
    "onnxruntime": BackendKind(
        lambda: (backends.OnnxRuntimeBackend, backends.OnnxRuntimeOptions),
        "gma_onnxruntime.onnx",
        "onnxruntime",
    ),
    "torch": BackendKind(
        lambda: (backends.TorchBackend, backends.TorchOptions), "gma.safetensors", "torch"
    ),
    "cuda": BackendKind(
        lambda: (backends.CudaBackend, backends.CudaOptions),
        "gma.safetensors",
        "torch",
        computes_on="cuda",
    ),
    # as the authors run it, operation by operation: what the one above is measured against
    "eager_cuda": BackendKind(
        lambda: (
            backends.TorchBackend,
            partial(backends.TorchOptions, device="cuda", lookup="grid_sample"),
        ),
        "gma.safetensors",
        "torch",
        computes_on="cuda",
    ),
    "ascend": BackendKind(
        lambda: (backends.AscendBackend, backends.AscendOptions), "gma.om", "ais_bench"
    ),
}


def find_backend(name: str) -> BackendKind:
    """Look a backend up by name; an unknown name lists those there are."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def load_backend(name: str, model_folder: Path, *, precision: str, **options: object) -> Backend:
    """Load a run's model.

    Parameters
    ----------
    name
        A key of ``BACKENDS``.
    model_folder
        Where 03_convert left the model.
    precision
        Explicit, passed to the runtime and read back.
    options
        Further fields of the backend's options.
    """
    kind = find_backend(name)
    try:
        make, _ = kind.classes()
        return make(
            Path(model_folder) / kind.model_file, kind.options(precision=precision, **options)
        )
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == kind.package:
            raise ModuleNotFoundError(
                f"backend '{name}' needs a package: pip install {kind.package}"
            ) from error
        raise
