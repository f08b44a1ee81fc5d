"""Time and memory of a converted model, with the machine it was measured on.

A measurement runs in a process of its own: its memory is the model's, and when the system kills it,
the batch size gets a row that says so while everything else goes on.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gma_lib.ascend.chip import Card
from gma_lib.backends import find_backend
from gma_lib.evaluate.published import GUIDE_PAIRS_PER_SECOND
from gma_lib.network.memory import predict_memory, require_memory
from gma_lib.runs.files import shorten_path
from gma_lib.runs.machine import count_cores, exclusive_machine
from gma_lib.runs.progress import show_messages
from gma_lib.runs.run import DoesNotFit

FEWEST_ROUNDS = 3
ROUNDS_THAT_MEAN_SOMETHING = 10
UNSTABLE_SPREAD = 0.05


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes
    ----------
    backend, model_folder, precision
        As for ``gma_lib.backends.load_backend``.
    batch_size, height, width
        Of the model's input; height and width padded.
    at_once
        Pairs that the model computes together inside a batch
        (``gma_lib.convert.conversion.convert``); None: the whole batch.
    budget_s
        Time for the counted rounds; three are made in any case.
    gmac_per_pair
        Multiply-accumulates, 1e9, from ``gma_lib.export.trace.count_work``.
    """

    backend: str
    model_folder: str
    precision: str
    batch_size: int
    height: int
    width: int
    at_once: int | None
    budget_s: float
    gmac_per_pair: float


def measure(
    task: Task, *, lock_file: Path, available_bytes: int | None = None, card: Card | None = None
) -> dict[str, Any]:
    """Measure a model alone on the machine.

    Parameters
    ----------
    lock_file
        Held exclusively, so that nothing of this package that honours it runs beside the
        measurement.
    available_bytes
        Memory to plan with; the machine's when None.
    card
        The Ascend card, for models of one.

    Returns
    -------
    dict
        ``status`` is ``ok``, ``out_of_memory`` (predicted, or the process was killed) or
        ``failed``, ``reason`` says why; then ``median_s``, ``p90_s``, ``spread`` (interquartile
        range by median) and ``samples_s`` of one call, ``rounds``, ``pairs_per_second``,
        ``load_s``, ``first_call_s``, ``peak_rss_bytes``, ``peak_device_bytes`` (null where the
        model has no memory but this machine's), ``predicted_bytes``; ``matrix_product_peak`` in
        operations a second, and ``share_of_peak``, the model's share of it (null where this
        precision's peak was not measured).
    """
    shape = (task.backend, task.precision, task.batch_size, task.height, task.width, task.at_once)
    result = asdict(task) | {
        "model_folder": shorten_path(Path(task.model_folder)),
        "simulated": False,
    }
    result["predicted_bytes"] = predict_memory(*shape)
    try:
        require_memory(*shape, available_bytes=available_bytes)
    except DoesNotFit as error:
        return result | {"status": "out_of_memory", "reason": f"not started: {error}"}
    if (
        task.backend == "ascend"
    ):  # its own tool measures it, on the card and in a process of its own already
        from gma_lib.perf.on_device import measure_on_card

        with exclusive_machine(lock_file):
            measured = measure_on_card(
                Path(task.model_folder), task.precision, task.batch_size, card or Card()
            )
        seconds = measured.pop("seconds", [])
        return result | (summary(seconds, task.batch_size) if seconds else {}) | measured
    with exclusive_machine(lock_file), tempfile.TemporaryDirectory() as folder:
        computes_on = find_backend(task.backend).computes_on
        peak_before = matrix_product_peak(task.precision, computes_on)
        answer = Path(folder) / "answer.json"
        limit = 600 + 30 * task.budget_s
        command = [
            sys.executable,
            "-m",
            "gma_lib.perf.timing",
            json.dumps(asdict(task)),
            str(answer),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return result | {"status": "failed", "reason": f"no answer after {limit:.0f} s"}
        if answer.is_file():
            measured = json.loads(answer.read_text(encoding="utf-8"))
            share = _share_of_peak(
                task,
                measured["pairs_per_second"],
                peak_before,
                matrix_product_peak(task.precision, computes_on),
            )
            return result | {"status": "ok", "reason": ""} | measured | share
        if done.returncode == -9:
            return result | {
                "status": "out_of_memory",
                "reason": "the system killed the measurement, most likely for its memory",
            }
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        out_of_memory = "bad allocation" in done.stderr or "MemoryError" in done.stderr
        return result | {
            "status": "out_of_memory" if out_of_memory else "failed",
            "reason": last_line,
        }


def _share_of_peak(
    task: Task, pairs_per_second: float, *peaks: float | None
) -> dict[str, float | None]:
    """The model's rate as a share of the matrix product's, measured before and after; the better of
    the two counts.
    """
    measured = [peak for peak in peaks if peak is not None]
    if len(measured) < len(peaks):
        return {"matrix_product_peak": None, "share_of_peak": None}
    return {
        "matrix_product_peak": max(measured),
        "share_of_peak": 2e9 * task.gmac_per_pair * pairs_per_second / max(measured),
    }


def summary_table(perf: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (what, this run, the guide's card) of one measurement."""
    guide = GUIDE_PAIRS_PER_SECOND.get(perf["batch_size"], "not published")
    rows = [("status", perf["status"], "out of memory" if guide is None else "ok")]
    if perf["status"] == "ok":
        share = perf["share_of_peak"]
        rows += [
            (
                "pairs per second, network alone",
                f"{perf['pairs_per_second']:.3f}",
                "" if guide is None else str(guide),
            ),
            ("seconds per call, median", f"{perf['median_s']:.3f}", ""),
            ("seconds per call, 90th percentile", f"{perf['p90_s']:.3f}", ""),
            ("middle half of the rounds, share of the median", f"{perf['spread']:.1%}", ""),
            ("rounds", str(perf["rounds"]), "100"),
            (
                "pairs computed at once",
                str(perf["at_once"] or perf["batch_size"]),
                str(perf["batch_size"]),
            ),
            ("precision, read back", perf["precision_read_back"], "float16, InstanceNorm float32"),
            *_memory_and_start(perf),
            (
                "share of the matrix-product peak",
                "not measured" if share is None else f"{share:.0%}",
                "",
            ),
        ]
    if perf["predicted_bytes"] is not None:
        rows.append(("predicted memory, GB", f"{perf['predicted_bytes'] / 1e9:.2f}", ""))
    return rows


def _memory_and_start(perf: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of a measurement in this machine's memory, or of one on a card, which counts the way
    there apart.
    """
    if "peak_rss_bytes" in perf:
        on_device = perf.get("peak_device_bytes")
        return [
            *([("peak memory of the GPU, GB", f"{on_device / 1e9:.2f}", "")] if on_device else []),
            ("peak memory, GB", f"{perf['peak_rss_bytes'] / 1e9:.2f}", ""),
            ("loading the model, s", f"{perf['load_s']:.2f}", ""),
            ("first call, s", f"{perf['first_call_s']:.2f}", ""),
        ]
    return [
        (
            "pairs per second with transfers to and from the card",
            f"{perf['pairs_per_second_with_transfers']:.3f}",
            "not published",
        ),
        (
            "to the card / back, ms per call",
            f"{perf['h2d_ms']:.2f} / {perf['d2h_ms']:.2f}",
            "not published",
        ),
    ]


def summary(samples_s: list[float], batch_size: int) -> dict[str, Any]:
    """Median, 90th percentile, spread and throughput of the times of single calls."""
    quarter, median, three_quarters, p90 = np.percentile(samples_s, [25, 50, 75, 90])
    spread = (three_quarters - quarter) / median
    return {
        "median_s": float(median),
        "p90_s": float(p90),
        "spread": float(spread),
        "rounds": len(samples_s),
        "samples_s": [round(sample, 6) for sample in samples_s],
        "pairs_per_second": batch_size / float(median),
        "caution": _caution(len(samples_s), spread),
    }


def _caution(rounds: int, spread: float) -> str:
    parts = []
    if rounds < ROUNDS_THAT_MEAN_SOMETHING:
        parts.append(f"only {rounds} rounds: p90 means little; raise budget_s")
    if spread > UNSTABLE_SPREAD:
        parts.append(
            f"unstable: the middle half of the rounds spreads over {spread:.0%} of the median"
        )
    return "; ".join(parts)


def _measure_here(task: Task) -> dict[str, Any]:
    """The body of the measuring process."""
    from gma_lib.backends import load_backend

    rng = np.random.default_rng(0)
    # Frames that resemble each other, so that the lookup reads what it would read for real flow.
    image1 = rng.integers(0, 256, (task.batch_size, 3, task.height, task.width)).astype(np.float32)
    image2 = np.roll(image1, 3, axis=-1)
    start = time.perf_counter()
    with load_backend(task.backend, Path(task.model_folder), precision=task.precision) as backend:
        loaded = time.perf_counter()
        backend.predict(image1, image2)
        first = time.perf_counter()
        samples: list[float] = []
        while len(samples) < FEWEST_ROUNDS or sum(samples) < task.budget_s:
            before = time.perf_counter()
            backend.predict(image1, image2)
            samples.append(time.perf_counter() - before)
        peak = peak_rss_bytes()  # before the profile, which loads the model once more
        return summary(samples, task.batch_size) | {
            "parts_s": _time_by_part(task, backend, image1, image2),
            "load_s": loaded - start,
            "first_call_s": first - loaded,
            "device": backend.device,
            "precision_read_back": backend.precision,
            "peak_rss_bytes": peak,
            "peak_device_bytes": backend.device_bytes(),
        }


def _time_by_part(
    task: Task, backend, image1: np.ndarray, image2: np.ndarray
) -> dict[str, float] | None:
    """Seconds per pair that each part of the network takes, where the runtime tells; None where it
    does not.
    """
    if not hasattr(backend, "profile"):
        return None
    from gma_lib.export.operators import REST, map_nodes_to_parts

    parts = map_nodes_to_parts(Path(task.model_folder) / "gma.onnx")
    at_once = backend.at_once or task.batch_size
    times: Counter[str] = Counter()
    for name, seconds in backend.profile(image1[:at_once], image2[:at_once]).items():
        # OpenVINO keeps the names of the file, with an addition where it has split an operation.
        times[parts.get(name.removesuffix("/WithoutBiases"), REST)] += seconds / at_once
    return dict(times)


def peak_memory_bytes(perf: Mapping[str, Any]) -> int | None:
    """Peak of the memory that limits the batch size: the GPU's where one computes; None where no
    tool says it.
    """
    return perf.get("peak_device_bytes") or perf.get("peak_rss_bytes")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process.

    Linux's VmHWM belongs to this program alone; ``ru_maxrss`` would still remember the process that
    started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def matrix_product_peak(
    precision: str, computes_on: str = "cpu", *, size: int | None = None, rounds: int = 10
) -> float | None:
    """Floating-point operations a second that this machine, or its GPU, reaches in a large matrix
    product.

    None where no library has the precision.
    """
    measure_peak = peak_measurement(precision, computes_on, size=size)
    return measure_peak(rounds) if measure_peak else None


def peak_measurement(
    precision: str, computes_on: str = "cpu", *, size: int | None = None
) -> Callable[[int], float] | None:
    """Make the products of ``matrix_product_peak`` ready; what is returned takes a number of
    rounds, and may be called again and again.

    The best round of the best library at hand (NumPy, OpenVINO, PyTorch) counts: none of them is
    best on every processor, and a weak one would make a model look better than the machine.
    """
    rng = np.random.default_rng(0)
    side = size or LARGE[computes_on]
    a, b = rng.standard_normal((2, side, side), dtype=np.float32)
    products = [
        product for make in PRODUCTS[computes_on] if (product := make(a, b, precision)) is not None
    ]
    if not products:
        return None

    def measure_peak(rounds: int) -> float:
        best = float("inf")
        # One library after the other: the threads of one keep spinning for a while, and would slow
        # the next if they took turns.
        for product in products:
            for _ in range(rounds):
                start = time.perf_counter()
                product()
                best = min(best, time.perf_counter() - start)
        return 2 * side**3 / best

    return measure_peak


def _numpy_product(a: np.ndarray, b: np.ndarray, precision: str) -> Callable[[], Any] | None:
    return (lambda: a @ b) if precision == "float32" else None


def _openvino_product(a: np.ndarray, b: np.ndarray, precision: str) -> Callable[[], Any] | None:
    hint = {"float32": "f32", "bfloat16": "bf16"}.get(precision)
    try:
        import openvino
        from openvino import opset13
    except ImportError:
        return None
    core = openvino.Core()
    if hint is None or (
        hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    ):
        return None
    left = opset13.parameter(list(a.shape), np.float32)
    model = openvino.Model([opset13.matmul(left, opset13.constant(b), False, False)], [left])
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": count_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    return lambda: compiled([a], share_inputs=True, share_outputs=True)


def _torch_product(a: np.ndarray, b: np.ndarray, precision: str) -> Callable[[], Any] | None:
    if precision != "bfloat16":
        return None  # NumPy and OpenVINO have float32, and importing PyTorch takes seconds
    try:
        import torch
    except ImportError:
        return None
    left, right = torch.from_numpy(a).bfloat16(), torch.from_numpy(b).bfloat16()
    return lambda: left @ right


def _cuda_product(a: np.ndarray, b: np.ndarray, precision: str) -> Callable[[], Any] | None:
    import torch

    if precision not in ("float32", "bfloat16", "float16") or not torch.cuda.is_available():
        return None
    left, right = (
        torch.from_numpy(matrix).to("cuda", getattr(torch, precision)) for matrix in (a, b)
    )

    def product() -> None:
        left @ right
        torch.cuda.synchronize()

    product()  # the first chooses an algorithm
    return product


PRODUCTS = {"cpu": (_numpy_product, _openvino_product, _torch_product), "cuda": (_cuda_product,)}
LARGE = {"cpu": 2048, "cuda": 8192}  # rows and columns of a product that fills it


# --- the machine, shared or alone -----------------------------------------------------------------


if __name__ == "__main__":
    show_messages()
    Path(sys.argv[2]).write_text(
        json.dumps(_measure_here(Task(**json.loads(sys.argv[1])))), encoding="utf-8"
    )
