"""The peak rate of a machine, in matrix products: what the speed of a model is measured against."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from gma_lib.runs import PRECISION_NAMES, count_cores

Product = Callable[[], object]  # computes one matrix product
TORCH_PRECISIONS = {
    "cpu": ("bfloat16",),  # NumPy and OpenVINO have float32, and importing PyTorch takes seconds
    "cuda": ("float32", "bfloat16", "float16"),
}


def measure_peak(
    precision: str, computes_on: str = "cpu", *, size: int | None = None, rounds: int = 10
) -> float | None:
    """Measure the floating-point operations a second that this machine, or its GPU, reaches in a
    large matrix product; None where no library has the precision.
    """
    measure_rounds = prepare_peak(precision, computes_on, size=size)
    return measure_rounds(rounds) if measure_rounds else None


def prepare_peak(
    precision: str, computes_on: str = "cpu", *, size: int | None = None
) -> Callable[[int], float] | None:
    """Return a function that measures the peak in n rounds, to be called again and again.

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

    def measure_rounds(rounds: int) -> float:
        best = float("inf")
        # One library after the other: the threads of one keep spinning for a while, and would slow
        # the next if they took turns.
        for product in products:
            for _ in range(rounds):
                start = time.perf_counter()
                product()
                best = min(best, time.perf_counter() - start)
        return float(2 * side**3 / best)

    return measure_rounds


def _make_numpy_product(a: np.ndarray, b: np.ndarray, precision: str) -> Product | None:
    return (lambda: a @ b) if precision == "float32" else None


def _make_openvino_product(a: np.ndarray, b: np.ndarray, precision: str) -> Product | None:
    capability = PRECISION_NAMES["openvino_device"].get(precision)
    if capability is None:
        return None
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    if capability not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    opset = openvino.opset13
    left = opset.parameter(list(a.shape), np.float32)
    model = openvino.Model([opset.matmul(left, opset.constant(b), False, False)], [left])
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISION_NAMES["openvino"][precision],
        "INFERENCE_NUM_THREADS": count_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    return lambda: compiled([a], share_inputs=True, share_outputs=True)


def _make_torch_product(
    a: np.ndarray, b: np.ndarray, precision: str, device: str = "cpu"
) -> Product | None:
    if precision not in TORCH_PRECISIONS[device]:
        return None
    try:
        import torch
    except ImportError:
        return None
    if device == "cuda" and not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False  # as where the model runs, whatever was set
    left, right = (
        torch.from_numpy(matrix).to(device, getattr(torch, precision)) for matrix in (a, b)
    )

    def compute() -> None:
        torch.matmul(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    compute()  # the first chooses an algorithm
    return compute


PRODUCTS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, str], Product | None], ...]] = {
    "cpu": (_make_numpy_product, _make_openvino_product, _make_torch_product),
    "cuda": (partial(_make_torch_product, device="cuda"),),
}
LARGE = {"cpu": 2048, "cuda": 8192}  # rows and columns of a product that fills it
