"""OpenVINO: the default on x86."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gma_lib.backends.base import SplitBackend, checked_frames, refuse_precision, starting_flow
from gma_lib.runs import cores

_TO_RUNTIME = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True)
class OpenVinoOptions:
    """How to run.

    Attributes
    ----------
    precision
        Always passed on: left alone, OpenVINO computes in bfloat16 wherever the processor can.
    device
        ``CPU``, ``GPU``, ...
    threads
        None takes every core.
    """

    precision: str = "float32"
    device: str = "CPU"
    threads: int | None = None


class OpenVinoBackend(SplitBackend):
    """Runs ``gma.xml`` (or an ONNX file), and ``gma_encode`` with ``gma_refine`` beside it."""

    def __init__(self, path: Path, options: OpenVinoOptions | None = None):
        import openvino

        self.options = options or OpenVinoOptions()
        self._core = openvino.Core()
        able = {"FP32": "float32", "BF16": "bfloat16", "FP16": "float16"}
        found = self._core.get_property(self.options.device, "OPTIMIZATION_CAPABILITIES")
        possible = tuple(name for key, name in able.items() if key in found)
        refuse_precision("openvino", self.options.precision, possible, f"the {self.options.device} has no other")
        self.path = Path(path)
        self._compiled = {}
        whole = self._model(self.path)
        self.device = self._core.get_property(self.options.device, "FULL_DEVICE_NAME")
        running = whole.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = next((name for name, short in _TO_RUNTIME.items() if short == running), running)
        if self.precision != self.options.precision:
            raise RuntimeError(f"{self.options.precision} was asked for, and openvino compiled for {self.precision}")

    def _model(self, path: Path):
        """A compiled model; compiled once."""
        if path not in self._compiled:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such model; run 03_convert first")
            settings = {
                "INFERENCE_PRECISION_HINT": _TO_RUNTIME[self.options.precision],
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self.options.threads or cores(),
            }
            self._compiled[path] = self._core.compile_model(str(path), self.options.device, settings)
        return self._compiled[path]

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        whole = self._model(self.path)
        image1, image2 = checked_frames(image1, image2, tuple(whole.input("image1").shape))
        return self._run(whole, {"image1": image1, "image2": image2})["out1"]

    def encode(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answer = self._run(self._part("encode"), {"image": np.ascontiguousarray(image, np.float32)})
        return answer["features"], answer["context"]

    def refine(self, features1, features2, context, flow_init=None):
        start = starting_flow(features1, flow_init)
        inputs = {"features1": features1, "features2": features2, "context": context, "flow_init": start}
        answer = self._run(self._part("refine"), inputs)
        return answer["flow"], answer["flow_low"]

    @staticmethod
    def _run(compiled, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, copied out of the runtime's own buffers, which the next call overwrites."""
        answer = compiled(inputs, share_inputs=True, share_outputs=True)
        return {port.get_any_name(): np.array(answer[port]) for port in compiled.outputs}

    def _part(self, name: str):
        return self._model(self.path.with_name(f"{self.path.stem}_{name}{self.path.suffix}"))

    def close(self) -> None:
        self._compiled.clear()
