"""The memory that a batch needs, predicted before anything is loaded, and refused if too much."""

from gma_lib.network.sizes import STRIDE
from gma_lib.runs import DoesNotFit, find_memory

# Bytes that a runtime takes per byte that the arithmetic needs, and what it takes before the first
# pair: the peaks measured by 06_perf at batch sizes 1 and 4 and 440x1024, and a tenth more. They
# decide only what is not started.
MEMORY = {
    ("openvino", "float32"): (1.2, 0.25e9),
    ("openvino", "bfloat16"): (0.65, 0.25e9),
    ("openvino", "int8"): (0.65, 0.25e9),
    ("onnxruntime", "float32"): (3.6, 0.25e9),
    ("torch", "float32"): (1.5, 0.5e9),
    ("torch", "bfloat16"): (1.5, 0.5e9),
}
SHARE_OF_MEMORY = 0.9  # of the machine's; what is predicted to need more is not loaded


def predict_memory(
    backend: str,
    precision: str,
    batch_size: int,
    height: int,
    width: int,
    at_once: int | None = None,
) -> int | None:
    """Predict the peak memory in bytes; None for a backend that was never measured.

    Counts, for each pair that is computed together with others (``at_once``; None: the whole
    batch), the correlation pyramid and the attention matrix, which grow with the square of the
    area, and the encoders' widest layers; for each pair of the batch, its frames and its flow.
    """
    if (backend, precision) not in MEMORY:
        return None
    factor, base = MEMORY[backend, precision]
    rows, columns = height // STRIDE, width // STRIDE
    cells = rows * columns
    pyramid = cells * sum((rows >> level) * (columns >> level) for level in range(4))
    widest_layers = 3 * 64 * (height // 2) * (width // 2)
    frames_and_flow = (2 * 3 + 2 * 2) * height * width  # the flow twice, while its parts are joined
    return int(
        base
        + factor * (at_once or batch_size) * 4 * (pyramid + cells**2 + widest_layers)
        + batch_size * 4 * frames_and_flow
    )


def require_memory(
    backend: str,
    precision: str,
    batch_size: int,
    height: int,
    width: int,
    at_once: int | None = None,
    *,
    available_bytes: int | None = None,
) -> int | None:
    """Return the predicted peak memory, or raise ``DoesNotFit`` where it is more than nine tenths
    of ``available_bytes``; None: what this process can use (``gma_lib.runs.find_memory``).
    """
    predicted = predict_memory(backend, precision, batch_size, height, width, at_once)
    available = available_bytes or find_memory()
    if predicted is not None and predicted > SHARE_OF_MEMORY * available:
        raise DoesNotFit(
            f"batch size {batch_size} on {backend} in {precision} needs about "
            f"{predicted / 1e9:.1f} GB of memory; this machine has {available / 1e9:.1f} GB"
        )
    return predicted
