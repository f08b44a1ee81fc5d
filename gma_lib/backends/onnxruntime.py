"""ONNX Runtime: runs the exported file as it is, with any provider that the installation has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gma_lib.backends.base import (
    SplitBackend,
    checked_frames,
    in_parts,
    starting_flow,
)
from gma_lib.runs.files import hash_file, hash_value, write_atomically
from gma_lib.runs.machine import count_cores, find_processor
from gma_lib.runs.precisions import PRECISION_NAMES, refuse_precision

CPU, CANN = "CPUExecutionProvider", "CANNExecutionProvider"
# What CANN is told for each precision; left alone, it computes in float16.


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """How to run.

    Attributes
    ----------
    precision
        float32, as the file is; float16 too with CANN, which rounds the model when it is loaded.
    provider
        ``CPUExecutionProvider``, ``CUDAExecutionProvider``, ``CANNExecutionProvider``, ...; never
        replaced by another one.
    threads
        None takes every core.
    cache
        Keep optimised models in a folder beside the model, where the next start finds them; on the
        CPU only.
    """

    precision: str = "float32"
    provider: str = CPU
    threads: int | None = None
    cache: bool = True

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""
        refuse_precision(
            "onnxruntime",
            self.precision,
            tuple(PRECISION_NAMES["cann"]) if self.provider == CANN else ("float32",),
            "the exported file is float32",
        )
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise ValueError(
                f"this onnxruntime has no {self.provider}; it has {', '.join(available)}"
            )


class OnnxRuntimeBackend(SplitBackend):
    """Runs an ONNX file, and its parts ``<name>_features``, ``<name>_context`` and
    ``<name>_refine`` beside it.
    """

    def __init__(self, path: Path, options: OnnxRuntimeOptions | None = None):
        self.options = options or OnnxRuntimeOptions()
        self.options.require()
        self.path = Path(path)
        self.precision = self.options.precision
        self._sessions: dict[Path, Any] = {}
        self._whole = self._session(self.path)
        self.at_once = self._whole.get_inputs()[0].shape[0]
        self.device = self._whole.get_providers()[0]

    def _session(self, path: Path):
        """A loaded model; loaded once, and only on the provider that was asked for."""
        if path not in self._sessions:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such model; run 03_convert first")
            session = (
                self._optimised(path)
                if self.options.cache and self.options.provider == CPU
                else self._load(path)
            )
            if session.get_providers()[0] != self.options.provider:
                raise RuntimeError(
                    f"{self.options.provider} was asked for, and {session.get_providers()[0]} would run"
                )
            asked, told = (
                self._provider_options().get("precision_mode"),
                session.get_provider_options().get(self.options.provider, {}),
            )
            if asked and told.get("precision_mode", asked) != asked:
                raise RuntimeError(
                    f"{self.options.provider} was told {asked}, and computes in {told['precision_mode']}"
                )
            self._sessions[path] = session
        return self._sessions[path]

    def _load(self, path: Path, **changes):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.options.threads or count_cores()
        settings.log_severity_level = 3
        for name, value in changes.items():
            setattr(settings, name, value)
        provider = self.options.provider
        if (
            provider != CPU
        ):  # an operator that the device lacks would otherwise run on the CPU without a word
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return onnxruntime.InferenceSession(
            str(path), settings, providers=[(provider, self._provider_options())]
        )

    def _provider_options(self) -> dict[str, str]:
        return (
            {"precision_mode": PRECISION_NAMES["cann"][self.options.precision]}
            if self.options.provider == CANN
            else {}
        )

    def _optimised(self, path: Path):
        """The model as this version optimised it for this processor, from an earlier start if there
        was one.
        """
        key = hash_value([hash_file(path), onnxruntime.__version__, find_processor()])[:16]
        stored = path.parent / "compiled" / f"{path.stem}-{key}.onnx"
        if stored.is_file():
            return self._load(
                stored,
                graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
            )
        with write_atomically(stored) as partial:
            return self._load(path, optimized_model_filepath=str(partial))

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        frames = checked_frames(image1, image2, tuple(self._whole.get_inputs()[0].shape))
        return in_parts(lambda *pair: self._run(self._whole, *pair), frames, self.at_once)[0]

    def features(self, image: np.ndarray) -> np.ndarray:
        return self._run_part("features", image)[0]

    def context(self, image: np.ndarray) -> np.ndarray:
        return self._run_part("context", image)[0]

    def refine(self, features1, features2, context, flow_init=None):
        return self._run_part(
            "refine", features1, features2, context, starting_flow(features1, flow_init)
        )

    def _run_part(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        part = self._session(self.path.with_name(f"{self.path.stem}_{name}{self.path.suffix}"))
        arrays = tuple(np.ascontiguousarray(array, np.float32) for array in arrays)
        return in_parts(lambda *some: self._run(part, *some), arrays, self.at_once)

    @staticmethod
    def _run(session, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(
            session.run(
                None,
                {
                    port.name: array
                    for port, array in zip(session.get_inputs(), inputs, strict=True)
                },
            )
        )

    def close(self) -> None:
        self._sessions.clear()
        self._whole = None
