"""OpenVINO: the default on x86."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino

from gma_lib.backends.base import FileBackend, open_compiled
from gma_lib.runs import (
    PRECISION_NAMES,
    Record,
    count_cores,
    identify_processor,
    is_bfloat16_fast,
    refuse_precision,
)

DEVICE = "CPU"
WHAT_INT8_NEEDS = (
    "int8 needs a processor with bfloat16 for what lies between the convolutions; without, float32 "
    "would run there"
)


def list_precisions() -> tuple[str, ...]:
    """List the precisions that this processor computes in itself."""
    found = openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    names = PRECISION_NAMES["openvino_device"]
    return tuple(precision for precision, name in names.items() if name in found) + (
        ("int8",) if {"BF16", "INT8"} <= set(found) else ()
    )


@dataclass(frozen=True)
class OpenVinoOptions:
    """How to run.

    Attributes
    ----------
    precision
        Always passed on: left alone, OpenVINO computes in bfloat16 wherever the processor can.
    threads
        None takes every core.
    """

    precision: str = "float32"
    threads: int | None = None

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""
        why = WHAT_INT8_NEEDS if self.precision == "int8" else "the processor has no other"
        refuse_precision("openvino", self.precision, list_precisions(), why)


class OpenVinoBackend(FileBackend[openvino.CompiledModel]):
    """Runs ``gma.xml`` (or an ONNX file) and its parts."""

    def __init__(self, path: Path, options: OpenVinoOptions | None = None):
        self.options = options or OpenVinoOptions()
        self.options.require()
        super().__init__(path)
        self._core = openvino.Core()
        whole = self._locate("")
        if is_quantized(whole) != (self.options.precision == "int8"):
            made = "8-bit integers" if is_quantized(whole) else "floating point"
            raise ValueError(
                f"{self.path} computes in {made}, not in {self.options.precision}: run 03_convert "
                "again with that precision"
            )
        # Read, not compiled: along a sequence, only its parts compute
        self.shape = tuple(self._core.read_model(whole).input("image1").shape)
        self.at_once = self.shape[0]
        self.device = self._core.get_property(DEVICE, "FULL_DEVICE_NAME")
        self.precision = self.options.precision  # or nothing is loaded

    def _load(self, path: Path) -> openvino.CompiledModel:
        """Compile, and read back the precision."""
        compiled = self._compile(path)
        running = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if running != name_computed_precision(self.precision, path):
            raise RuntimeError(
                f"{self.precision} was asked for, and openvino compiled for {running}"
            )
        return compiled

    def _compile(self, path: Path) -> openvino.CompiledModel:
        """Compile for this processor, or load what an earlier start has kept next to the model."""
        settings = self._settings(path)

        def compile_into(folder: Path) -> None:
            compiled = self._core.compile_model(str(path), DEVICE, settings)
            (folder / "model.blob").write_bytes(compiled.export_model().getvalue())

        made_from = settings | {
            "runtime": openvino.get_version(),
            "processor": identify_processor(),
            "device": self.device,
        }
        blob = open_compiled(path, made_from, compile_into) / "model.blob"
        return self._core.import_model(blob.read_bytes(), DEVICE, settings)

    def _settings(self, path: Path) -> Record:
        return {
            "INFERENCE_PRECISION_HINT": name_computed_precision(self.options.precision, path),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.options.threads or count_cores(),
        }

    def profile(self, image1: np.ndarray, image2: np.ndarray) -> dict[str, float]:
        """Time every operation that runs, by its name: seconds, the median of three calls.

        The frames are those of as many pairs as are computed at once.
        """
        settings = self._settings(self.path) | {"PERF_COUNT": True}
        compiled = self._core.compile_model(str(self.path), DEVICE, settings)
        request = compiled.create_infer_request()
        request.infer([image1, image2])
        times: dict[str, list[float]] = {}
        for _ in range(3):
            request.infer([image1, image2])
            for operation in request.profiling_info:
                times.setdefault(operation.node_name, []).append(
                    operation.real_time.total_seconds()
                )
        return {name: float(np.median(values)) for name, values in times.items()}

    def _run(self, loaded: openvino.CompiledModel, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """All outputs, copied out of the runtime's own buffers, which the next call overwrites."""
        answer = loaded(list(arrays), share_inputs=True, share_outputs=True)
        return tuple(np.array(answer[port]) for port in loaded.outputs)


def name_computed_precision(precision: str, path: Path) -> str | None:
    """Return OpenVINO's name of what a model file computes in, apart from its 8-bit integers."""
    if precision == "int8" and not is_quantized(path) and not is_bfloat16_fast():
        precision = "float32"  # of the feature encoder
    return PRECISION_NAMES["openvino"][precision]


def is_quantized(path: Path) -> bool:
    """Whether an OpenVINO model file (``.xml``) computes in 8-bit integers."""
    return path.suffix == ".xml" and b'type="FakeQuantize"' in path.read_bytes()
