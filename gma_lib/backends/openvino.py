"""OpenVINO: the default on x86."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from gma_lib.backends.base import (
    SplitBackend,
    checked_frames,
    in_parts,
    starting_flow,
)
from gma_lib.runs.files import hash_value
from gma_lib.runs.machine import count_cores, find_processor
from gma_lib.runs.precisions import PRECISION_NAMES, refuse_precision

WHAT_INT8_NEEDS = "int8 needs a processor with bfloat16 for what lies between the convolutions; without, float32 would run there"


def possible_precisions(core, device: str) -> tuple[str, ...]:
    """The precisions that this device computes in itself."""
    found = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    able = {"FP32": "float32", "BF16": "bfloat16", "FP16": "float16"}
    return tuple(name for key, name in able.items() if key in found) + (
        ("int8",) if {"BF16", "INT8"} <= set(found) else ()
    )


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
    cache
        Keep compiled models in a folder beside the model, where the next start finds them.
    """

    precision: str = "float32"
    device: str = "CPU"
    threads: int | None = None
    cache: bool = True

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""
        why = WHAT_INT8_NEEDS if self.precision == "int8" else f"the {self.device} has no other"
        refuse_precision(
            "openvino", self.precision, possible_precisions(openvino.Core(), self.device), why
        )


class OpenVinoBackend(SplitBackend):
    """Runs ``gma.xml`` (or an ONNX file), and its parts ``gma_features``, ``gma_context`` and
    ``gma_refine`` beside it.
    """

    def __init__(self, path: Path, options: OpenVinoOptions | None = None):
        self.options = options or OpenVinoOptions()
        self.options.require()
        self._core = openvino.Core()
        self.path = Path(path)
        if self.path.is_file() and is_quantized(self.path) != (self.options.precision == "int8"):
            made = "8-bit integers" if is_quantized(self.path) else "floating point"
            raise ValueError(
                f"{self.path} computes in {made}, not in {self.options.precision}: run 03_convert again with that precision"
            )
        self._version = openvino.get_version()
        self._compiled: dict[Path, Any] = {}
        whole = self._model(self.path)
        self.at_once = whole.input("image1").shape[0]
        self.device = self._core.get_property(self.options.device, "FULL_DEVICE_NAME")
        running = whole.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = next(
            (name for name, short in PRECISION_NAMES["openvino"].items() if short == running),
            running,
        )
        if self.options.precision == "int8" and self.precision == "bfloat16":
            self.precision = "int8"
        if self.precision != self.options.precision:
            raise RuntimeError(
                f"{self.options.precision} was asked for, and openvino compiled for {self.precision}"
            )

    def _model(self, path: Path):
        """A compiled model; compiled once."""
        if path not in self._compiled:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such model; run 03_convert first")
            settings = self._settings()
            if self.options.cache:
                # OpenVINO looks at the model's content and the settings; the folder adds the
                # version and the processor.
                key = hash_value([self._version, find_processor(), self.options.device])[:16]
                settings["CACHE_DIR"] = str(path.parent / "compiled" / key)
            self._compiled[path] = self._core.compile_model(
                str(path), self.options.device, settings
            )
        return self._compiled[path]

    def _settings(self) -> dict:
        return {
            "INFERENCE_PRECISION_HINT": PRECISION_NAMES["openvino"][self.options.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.options.threads or count_cores(),
        }

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        whole = self._model(self.path)
        frames = checked_frames(image1, image2, tuple(whole.input("image1").shape))
        return in_parts(lambda *pair: self._run(whole, *pair), frames, self.at_once)[0]

    def features(self, image: np.ndarray) -> np.ndarray:
        return self._run_part("features", image)[0]

    def context(self, image: np.ndarray) -> np.ndarray:
        return self._run_part("context", image)[0]

    def refine(self, features1, features2, context, flow_init=None):
        return self._run_part(
            "refine", features1, features2, context, starting_flow(features1, flow_init)
        )

    def _run_part(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        part = self._model(self.path.with_name(f"{self.path.stem}_{name}{self.path.suffix}"))
        arrays = tuple(np.ascontiguousarray(array, np.float32) for array in arrays)
        return in_parts(lambda *some: self._run(part, *some), arrays, self.at_once)

    def profile(
        self, image1: np.ndarray, image2: np.ndarray, *, rounds: int = 3
    ) -> dict[str, float]:
        """Seconds of every operation that ran, by its name, median of some calls; pairs as many as
        are computed at once.
        """
        settings = self._settings() | {"PERF_COUNT": True}
        request = self._core.compile_model(
            str(self.path), self.options.device, settings
        ).create_infer_request()
        request.infer([image1, image2])
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            request.infer([image1, image2])
            for operation in request.profiling_info:
                times.setdefault(operation.node_name, []).append(
                    operation.real_time.total_seconds()
                )
        return {name: float(np.median(values)) for name, values in times.items()}

    @staticmethod
    def _run(compiled, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """All outputs, copied out of the runtime's own buffers, which the next call overwrites."""
        answer = compiled(list(inputs), share_inputs=True, share_outputs=True)
        return tuple(np.array(answer[port]) for port in compiled.outputs)

    def close(self) -> None:
        self._compiled.clear()


def is_quantized(path: Path) -> bool:
    """Whether an OpenVINO model file (``.xml``) computes in 8-bit integers."""
    return path.suffix == ".xml" and b'type="FakeQuantize"' in path.read_bytes()
