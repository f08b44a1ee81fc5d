"""PyTorch itself, on the CPU or on CUDA: no conversion, the reference of all others."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gma_lib.backends.base import SplitBackend, checked_frames, refuse_precision, starting_flow
from gma_lib.runs import cores


@dataclass(frozen=True)
class TorchOptions:
    """How to run.

    Attributes
    ----------
    precision
        float32 (TF32 off), or bfloat16 / float16 by autocast with coordinates, correlation and flow in float32.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ...
    threads
        None takes every core; the setting is PyTorch's, for the whole process.
    """

    precision: str = "float32"
    device: str = "cpu"
    threads: int | None = None


class TorchBackend(SplitBackend):
    """Runs ``gma.safetensors``, whose metadata hold the configuration."""

    def __init__(self, path: Path, options: TorchOptions | None = None):
        import torch
        from safetensors import safe_open

        from gma_lib.checkpoints import load_model
        from gma_lib.model import GMAConfig

        self.options = options or TorchOptions()
        if self.options.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {self.options.device} was asked for, and PyTorch finds no CUDA device")
        possible = ("float32", "bfloat16") if self.options.device == "cpu" else ("float32", "bfloat16", "float16")
        refuse_precision("torch", self.options.precision, possible, f"on {self.options.device}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such model; run 03_convert first")
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
        config = GMAConfig(
            num_updates=int(about.get("num_updates", GMAConfig.num_updates)),
            attention=about.get("attention", GMAConfig.attention),
        )
        torch.set_num_threads(self.options.threads or cores())
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        model, _ = load_model(path, config)
        self._torch = torch
        self._model = model.to(self.options.device)
        self.device = torch.cuda.get_device_name() if self.options.device.startswith("cuda") else "CPU"
        self.precision = self.options.precision

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        image1, image2 = checked_frames(image1, image2)
        with self._context():
            return self._array(self._model(self._tensor(image1), self._tensor(image2)))

    def encode(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._context():
            features, context = self._model.encode(self._tensor(image))
            return self._array(features), self._array(context)

    def refine(self, features1, features2, context, flow_init=None):
        arrays = (features1, features2, context, starting_flow(features1, flow_init))
        with self._context():
            flow, flow_low = self._model.refine(*(self._tensor(array) for array in arrays))
            return self._array(flow), self._array(flow_low)

    def _context(self):
        """Inference mode, with autocast where a reduced precision was asked for."""
        stack = self._torch.inference_mode()
        if self.precision == "float32":
            return stack
        from contextlib import ExitStack

        both = ExitStack()
        both.enter_context(stack)
        dtype = getattr(self._torch, self.precision)
        both.enter_context(self._torch.autocast(self.options.device.split(":")[0], dtype=dtype))
        return both

    def _tensor(self, array: np.ndarray):
        return self._torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.options.device)

    def _array(self, tensor) -> np.ndarray:
        return tensor.float().cpu().numpy()

    def close(self) -> None:
        self._model = None
