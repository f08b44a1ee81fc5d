"""Optimisers: AdamW, and Muon for the kernels of convolutions."""

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from gma_lib.network.model import GMA
from gma_lib.training.config import TrainingConfig


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


def make_optimisers(model: GMA, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a configuration; each parameter belongs to one of them."""
    parameters: list[Tensor] = list(model.parameters())
    optimisers: list[torch.optim.Optimizer] = []
    if config.optimiser == "muon":
        # kernels with fewer than 16 rows or columns stay with AdamW
        large = [one.ndim == 4 and min(one.flatten(1).shape) >= 16 for one in parameters]
        kernels = list(compress(parameters, large))
        parameters = [
            one for one, is_kernel in zip(parameters, large, strict=True) if not is_kernel
        ]
        optimisers.append(KernelMuon(kernels, weight_decay=config.weight_decay))
    # Before the recurrent part reads the correlation, its clipped gradients are of the order of
    # AdamW's usual epsilon (1e-8), which would stop it from learning.
    return [
        *optimisers,
        torch.optim.AdamW(parameters, lr=1e-9, weight_decay=config.weight_decay, eps=1e-11),
    ]
