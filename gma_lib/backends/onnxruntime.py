"""ONNX Runtime: runs the exported file as it is, with any provider that the installation has."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gma_lib.backends.base import SplitBackend, checked_frames, refuse_precision, starting_flow
from gma_lib.runs import cores

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """How to run.

    Attributes
    ----------
    precision
        float32 on the CPU; the file decides, and it is float32.
    provider
        ``CPUExecutionProvider``, ``CUDAExecutionProvider``, ``CANNExecutionProvider``, ...; never replaced by another one.
    threads
        None takes every core.
    """

    precision: str = "float32"
    provider: str = CPU
    threads: int | None = None


class OnnxRuntimeBackend(SplitBackend):
    """Runs ``gma.onnx``, and ``gma_encode.onnx`` with ``gma_refine.onnx`` beside it."""

    def __init__(self, path: Path, options: OnnxRuntimeOptions | None = None):
        import onnxruntime

        self.options = options or OnnxRuntimeOptions()
        refuse_precision("onnxruntime", self.options.precision, ("float32",), "the exported file is float32")
        available = onnxruntime.get_available_providers()
        if self.options.provider not in available:
            raise ValueError(f"this onnxruntime has no {self.options.provider}; it has {', '.join(available)}")
        self.path = Path(path)
        self.precision = "float32"
        self._runtime = onnxruntime
        self._sessions = {}
        self._whole = self._session(self.path)
        self.device = self._whole.get_providers()[0]

    def _session(self, path: Path):
        """A loaded model; loaded once, and only on the provider that was asked for."""
        if path not in self._sessions:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such model; run 02_export first")
            settings = self._runtime.SessionOptions()
            settings.intra_op_num_threads = self.options.threads or cores()
            settings.log_severity_level = 3
            provider = self.options.provider
            if provider != CPU:  # an operator that the device lacks would otherwise run on the CPU without a word
                settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # Left alone, CANN computes in float16.
            precise = {"precision_mode": "must_keep_origin_dtype"} if provider == "CANNExecutionProvider" else {}
            session = self._runtime.InferenceSession(str(path), settings, providers=[(provider, precise)])
            if session.get_providers()[0] != self.options.provider:
                raise RuntimeError(f"{self.options.provider} was asked for, and {session.get_providers()[0]} would run")
            self._sessions[path] = session
        return self._sessions[path]

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        image1, image2 = checked_frames(image1, image2, tuple(self._whole.get_inputs()[0].shape))
        return self._whole.run(None, {"image1": image1, "image2": image2})[0]

    def encode(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, context = self._part("encode").run(None, {"image": np.ascontiguousarray(image, np.float32)})
        return features, context

    def refine(self, features1, features2, context, flow_init=None):
        start = starting_flow(features1, flow_init)
        inputs = {"features1": features1, "features2": features2, "context": context, "flow_init": start}
        flow, flow_low = self._part("refine").run(None, inputs)
        return flow, flow_low

    def _part(self, name: str):
        return self._session(self.path.with_name(f"{self.path.stem}_{name}{self.path.suffix}"))

    def close(self) -> None:
        self._sessions.clear()
        self._whole = None
