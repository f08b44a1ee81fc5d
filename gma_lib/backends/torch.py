"""PyTorch itself, on the CPU or on CUDA: no conversion, the reference of all others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from gma_lib.backends.base import Encoded, SplitBackend, compute_in_parts
from gma_lib.network import DEPLOY_STEPS, GMA, GMAConfig, load_model, to_deploy_form
from gma_lib.runs import count_cores, refuse_precision
from gma_lib.runs.precisions import require_strict_float32


@dataclass(frozen=True)
class TorchOptions:
    """How to run.

    Attributes
    ----------
    precision
        float32 (TF32 off), or bfloat16 / float16 by autocast with coordinates, correlation and flow
        in float32.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ...
    threads
        None takes every core; the setting is PyTorch's, for the whole process.
    """

    precision: str = "float32"
    device: str = "cpu"
    threads: int | None = None

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"device {self.device} was asked for, and PyTorch finds no CUDA device"
            )
        possible = (
            ("float32", "bfloat16") if self.device == "cpu" else ("float32", "bfloat16", "float16")
        )
        refuse_precision("torch", self.precision, possible, f"on {self.device}")


class TorchBackend(SplitBackend):
    """Runs ``gma.safetensors`` in the form that its metadata name: the exported one."""

    def __init__(self, path: Path, options: TorchOptions | None = None):
        self.options = options or TorchOptions()
        self.options.require()
        torch.set_num_threads(self.options.threads or count_cores())
        refuse_less_than_float32()
        model, steps, self.at_once = load_network(path)
        self._model: Any = to_deploy_form(model, steps).to(self.options.device)
        self.device = name_device(self.options.device)
        self.precision = self.options.precision

    def _compute(self, part: str, *given: Encoded) -> tuple[np.ndarray, ...]:
        function = getattr(self._model, part) if part else self._model

        def compute(*some: np.ndarray) -> tuple[np.ndarray, ...]:
            answer = function(*(torch.from_numpy(one).to(self.options.device) for one in some))
            tensors = answer if isinstance(answer, tuple) else (answer,)
            return tuple(np.asarray(tensor.float().cpu().numpy()) for tensor in tensors)

        kind, dtype = self.options.device.split(":")[0], getattr(torch, self.precision)
        reduced = torch.autocast(kind, dtype=dtype, enabled=self.precision != "float32")
        with torch.inference_mode(), reduced:
            return compute_in_parts(compute, given, self.at_once)

    def close(self) -> None:
        self._model = None


def refuse_less_than_float32() -> None:
    """Have this process compute products of float32 in float32, whatever it was told before."""
    require_strict_float32()
    torch.set_float32_matmul_precision("highest")  # oneDNN's too, which "medium" has in bfloat16
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def name_device(device: str) -> str:
    """Return what computes: a GPU's own name, else the kind of device, as CPU or MPS."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device.upper()


def load_network(path: Path) -> tuple[GMA, tuple[str, ...], int | None]:
    """Load the network that a ``gma.safetensors`` holds; return it, the steps of the deploy form
    that it was exported with, and how many pairs it was made to compute at once.
    """
    path = Path(path).absolute()  # a relative one is the project's to whoever loads weights
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model; run 03_convert first")
    with safe_open(path, framework="np") as file:
        about = file.metadata() or {}
    config = GMAConfig(
        num_updates=int(about.get("num_updates", GMAConfig.num_updates)),
        attention=about.get("attention", GMAConfig.attention),
        lookup=about.get("lookup", GMAConfig.lookup),
    )
    model, _ = load_model(path, config)
    steps = tuple(json.loads(about["steps"])) if "steps" in about else tuple(DEPLOY_STEPS)
    return model, steps, int(about["at_once"]) if about.get("at_once") else None
