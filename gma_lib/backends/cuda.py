"""PyTorch on an NVIDIA GPU; what it does there is in ``gma_lib.backends.gpu``, which is imported
only then.
"""

from dataclasses import dataclass
from pathlib import Path

from gma_lib.backends.base import SplitBackend, refuse_precision


@dataclass(frozen=True)
class CudaOptions:
    """How to run.

    Attributes
    ----------
    precision
        float32 (TF32 off), or bfloat16 / float16 with coordinates, flow, correlation and softmax
        sums in float32.
    device
        ``cuda``, ``cuda:1``, ...
    """

    precision: str = "float32"
    device: str = "cuda"

    def require(self) -> None:
        """Raise ValueError where this machine cannot compute so; needs no model."""
        import torch

        refuse_precision(
            "cuda", self.precision, ("float32", "bfloat16", "float16"), "on an NVIDIA GPU"
        )
        if not torch.cuda.is_available():
            raise ValueError(
                f"backend cuda needs an NVIDIA GPU that PyTorch can use; PyTorch {torch.__version__} finds none. nvidia-smi says whether "
                "the driver sees one; a version that ends in +cpu has no CUDA (delete .venv and run make without TORCH_INDEX)"
            )


def cuda_backend(path: Path, options: CudaOptions | None = None) -> SplitBackend:
    """Load ``gma.safetensors`` onto the GPU (``gma_lib.backends.gpu.CudaBackend``)."""
    from gma_lib.backends.gpu import CudaBackend

    return CudaBackend(path, options)
