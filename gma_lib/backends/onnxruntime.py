"""ONNX Runtime: runs the exported file as it is, on the CPU, with CUDA or with CANN."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from gma_lib.backends.base import FileBackend, open_compiled
from gma_lib.runs import PRECISION_NAMES, count_cores, identify_processor, refuse_precision

CPU, CUDA, CANN = "CPUExecutionProvider", "CUDAExecutionProvider", "CANNExecutionProvider"


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """How to run.

    Attributes
    ----------
    precision
        float32, as the file is; float16 too with CANN, which rounds the model when it is loaded.
    provider
        ``CPUExecutionProvider``, ``CUDAExecutionProvider`` or ``CANNExecutionProvider``, whose
        precision is known how to set; never replaced by another one.
    threads
        None takes every core.
    """

    precision: str = "float32"
    provider: str = CPU
    threads: int | None = None

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""
        refuse_precision(
            "onnxruntime",
            self.precision,
            tuple(PRECISION_NAMES["cann"]) if self.provider == CANN else ("float32",),
            "the exported file is float32",
        )
        if self.provider not in (CPU, CUDA, CANN):
            raise ValueError(
                f"provider is {CPU}, {CUDA} or {CANN}, not {self.provider}: which precision "
                "others compute in is not known"
            )
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise ValueError(
                f"this onnxruntime has no {self.provider}; it has {', '.join(available)}"
            )


class OnnxRuntimeBackend(FileBackend[onnxruntime.InferenceSession]):
    """Runs an ONNX file and its parts."""

    def __init__(self, path: Path, options: OnnxRuntimeOptions | None = None):
        self.options = options or OnnxRuntimeOptions()
        self.options.require()
        super().__init__(path)
        self.precision = self.options.precision
        whole = self._find("")
        self.shape = tuple(whole.get_inputs()[0].shape)
        self.at_once = self.shape[0]
        self.device = whole.get_providers()[0]

    def _load(self, path: Path) -> onnxruntime.InferenceSession:
        """Load on the provider that was asked for, and on no other."""
        provider = self.options.provider
        session = self._load_optimised(path) if provider == CPU else self._open(path)
        if session.get_providers()[0] != provider:
            raise RuntimeError(
                f"{provider} was asked for, and {session.get_providers()[0]} would run"
            )
        told = session.get_provider_options().get(provider, {})
        for name, asked in self._provider_options().items():
            if told.get(name, asked) != asked:
                raise RuntimeError(
                    f"{provider} was told {name}={asked}, and computes with {told[name]}"
                )
        return session

    def _open(self, path: Path, **changes: object) -> onnxruntime.InferenceSession:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.options.threads or count_cores()
        settings.log_severity_level = 3
        for name, value in changes.items():
            setattr(settings, name, value)
        provider = self.options.provider
        if provider != CPU:  # else the CPU would silently run the operators that the device lacks
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return onnxruntime.InferenceSession(
            str(path), settings, providers=[(provider, self._provider_options())]
        )

    def _provider_options(self) -> dict[str, str | None]:
        """What the provider is told of the precision: left alone, CANN computes in float16 and CUDA
        in TF32.
        """
        if self.options.provider == CUDA:
            return {"use_tf32": "0"}
        if self.options.provider != CANN:
            return {}
        return {"precision_mode": PRECISION_NAMES["cann"][self.options.precision]}

    def _load_optimised(self, path: Path) -> onnxruntime.InferenceSession:
        """Load the model as this version optimised it for this processor, on its first start, and
        kept it next to the model.
        """
        made_from = {"runtime": onnxruntime.__version__, "processor": identify_processor()}
        folder = open_compiled(
            path,
            made_from,
            lambda making: self._open(path, optimized_model_filepath=str(making / path.name)),
        )
        return self._open(
            folder / path.name,
            graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        )

    def _run(
        self, loaded: onnxruntime.InferenceSession, *arrays: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        names = [port.name for port in loaded.get_inputs()]
        return tuple(loaded.run(None, dict(zip(names, arrays, strict=True))))
