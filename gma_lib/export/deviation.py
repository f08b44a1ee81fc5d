"""How far an exported graph's flow is from PyTorch's."""

from pathlib import Path

import numpy as np
import onnx
import torch

from gma_lib.backends.onnxruntime import OnnxRuntimeBackend
from gma_lib.backends.torch import refuse_less_than_float32
from gma_lib.export.trace import export_whole, set_batch_size
from gma_lib.flow.metrics import Deviation
from gma_lib.network import GMA, Checkpoint
from gma_lib.runs.leftovers import temporary_folder


def compute_reference(model: GMA, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
    """Compute the flow that everything is compared with: PyTorch's, in float32."""
    refuse_less_than_float32()
    with torch.inference_mode():
        flow: np.ndarray = model(torch.from_numpy(image1), torch.from_numpy(image2)).numpy()
    return flow


def measure_deviation(
    file: Path, reference: np.ndarray, image1: np.ndarray, image2: np.ndarray
) -> Deviation:
    """Run an exported file with ONNX Runtime on frames (N, 3, H, W), at their batch size, and
    compare its flow with ``reference``, from ``compute_reference``.
    """
    with temporary_folder() as folder:
        compared = folder / "compared.onnx"
        onnx.save(set_batch_size(onnx.load(file), len(image1)), compared)
        with OnnxRuntimeBackend(compared) as backend:
            return Deviation.between(backend.predict(image1, image2), reference)


def measure_deviation_in_batch(
    exported: GMA,
    model: GMA,
    batch_size: int,
    checkpoint: Checkpoint,
    *,
    opset: int | None = None,
) -> Deviation:
    """Compare the graph of ``exported``, at this batch size, with ``model`` in PyTorch on small
    random frames, each pair of the batch a different one.

    At full size the exported file computes one pair only. It differs in nothing but the batch;
    comparing that here is cheap even for sixteen pairs.
    """
    rng = np.random.default_rng(0)
    image1, image2 = rng.integers(0, 256, (2, batch_size, 3, 128, 160)).astype(np.float32)
    reference = compute_reference(model, image1, image2)
    size = {"height": 128, "width": 160, "batch_size": batch_size}
    with temporary_folder() as folder:
        file = folder / "small.onnx"
        export_whole(exported, file, **size, checkpoint=checkpoint, opset=opset)
        return measure_deviation(file, reference, image1, image2)
