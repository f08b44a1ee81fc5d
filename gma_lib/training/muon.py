"""Muon for convolutions. Loaded only where a configuration asks for it: PyTorch has Muon since 2.9,
and everything else here works with older ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

if not hasattr(torch.optim, "Muon"):
    raise ImportError(
        f"optimiser: muon needs PyTorch 2.9, and {torch.__version__} is installed: "
        "pip install 'gma-lib[training]', or set it to adamw"
    )


class KernelMuon(torch.optim.Muon):
    """Muon (https://kellerjordan.github.io/posts/muon/) for convolutions: a kernel is the matrix
    (output channels, all the rest).

    Every direction of a matrix moves by the same amount, not every number in it, so that a few
    strong directions of a small batch do not hide the others. Steps are as large as AdamW's (Liu et
    al., https://arxiv.org/abs/2502.16982).
    """

    def __init__(self, kernels: Sequence[Tensor], *, weight_decay: float):
        self.kernels = kernels
        self.matrices = [kernel.detach().flatten(1) for kernel in kernels]  # the same memory
        # the gradients' norm may lie far below the usual epsilon, see ``make_optimisers``
        super().__init__(
            self.matrices,
            lr=1e-9,
            weight_decay=weight_decay,
            eps=1e-30,
            adjust_lr_fn="match_rms_adamw",
        )

    def step(self) -> None:  # type: ignore[override]  # no closure: the losses need none
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step()  # type: ignore[no-untyped-call]  # PyTorch gives Muon.step no types
        for matrix in self.matrices:
            matrix.grad = None
