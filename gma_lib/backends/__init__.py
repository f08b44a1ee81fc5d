"""Runtimes that compute flow: one file each, one literal dict.

A runtime is imported when its backend is made, so this package imports where none of them is
installed. To add one, write a file with a ``Backend`` subclass and its options, and a line below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gma_lib.backends.ascend import AscendBackend, AscendOptions
from gma_lib.backends.base import AlongSequence, Backend, FolderBackend, SplitBackend
from gma_lib.backends.cuda import CudaOptions, cuda_backend
from gma_lib.backends.fake import FakeBackend
from gma_lib.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeOptions
from gma_lib.backends.openvino import OpenVinoBackend, OpenVinoOptions
from gma_lib.backends.torch import TorchBackend, TorchOptions

__all__ = [
    "BACKENDS",
    "AlongSequence",
    "Backend",
    "BackendKind",
    "FakeBackend",
    "FolderBackend",
    "SplitBackend",
    "backend_kind",
    "load_backend",
]


@dataclass(frozen=True)
class BackendKind:
    """What the notebooks need to know of a runtime.

    Attributes
    ----------
    make, options
        The backend class and the class of its options, whose ``require()`` refuses what this
        machine cannot compute.
    model_file
        The file in the run's model folder that it loads.
    package
        What to install when its import fails.
    lookup
        The form of the correlation lookup that suits it, a key of
        ``gma_lib.network.model.LOOKUPS``.
    computes_on
        Whose matrix products its speed is held against: ``cpu``, or ``cuda`` for an NVIDIA GPU.
    """

    make: Callable[..., Backend]
    options: Callable[..., Any]
    model_file: str
    package: str
    lookup: str = "matmul"
    computes_on: str = "cpu"


BACKENDS = {
    "openvino": BackendKind(OpenVinoBackend, OpenVinoOptions, "gma.xml", "openvino", lookup="rows"),
    "onnxruntime": BackendKind(
        OnnxRuntimeBackend, OnnxRuntimeOptions, "gma_onnxruntime.onnx", "onnxruntime"
    ),
    "torch": BackendKind(TorchBackend, TorchOptions, "gma.safetensors", "torch"),
    "cuda": BackendKind(cuda_backend, CudaOptions, "gma.safetensors", "torch", computes_on="cuda"),
    # as the authors run it, operation by operation: what the one above is measured against
    "eager_cuda": BackendKind(
        TorchBackend,
        partial(TorchOptions, device="cuda", lookup="grid_sample"),
        "gma.safetensors",
        "torch",
        computes_on="cuda",
    ),
    "ascend": BackendKind(AscendBackend, AscendOptions, "gma.om", "ais_bench"),
}


def backend_kind(name: str) -> BackendKind:
    """Look a backend up by name; an unknown name lists those there are."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def load_backend(name: str, model_folder: Path, *, precision: str, **options: Any) -> Backend:
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
    kind = backend_kind(name)
    try:
        return kind.make(
            Path(model_folder) / kind.model_file, kind.options(precision=precision, **options)
        )
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == kind.package:
            raise ModuleNotFoundError(
                f"backend '{name}' needs a package: pip install {kind.package}"
            ) from error
        raise
