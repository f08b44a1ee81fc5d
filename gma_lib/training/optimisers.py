"""Optimisers of training."""

import torch
from torch import Tensor

from gma_lib.network.model import (
    GMA,
)
from gma_lib.training.config import TrainingConfig


class KernelMuon(torch.optim.Muon):
    """Muon (https://kellerjordan.github.io/posts/muon/) for convolutions: a kernel is the matrix
    (output channels, all the rest).

    Every direction of a matrix moves by the same amount, not every number in it, so that what a
    batch of one says about a few directions does not drown the others. Steps are as large as
    AdamW's (Liu et al., https://arxiv.org/abs/2502.16982).
    """

    def __init__(self, kernels: list[Tensor], *, weight_decay: float):
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

    def step(self) -> None:  # type: ignore[override]
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step()
        for matrix in self.matrices:
            matrix.grad = None


def make_optimisers(model: GMA, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """What moves the parameters, each of them once."""
    parameters, optimisers = list(model.parameters()), []
    if config.optimiser == "muon":
        # a few rows or columns are no matrix to speak of
        kernels = [
            values
            for values in parameters
            if values.ndim == 4 and min(values.flatten(1).shape) >= 16
        ]
        parameters = [
            values for values in parameters if not any(values is kernel for kernel in kernels)
        ]
        optimisers.append(KernelMuon(kernels, weight_decay=config.weight_decay))
    # Before the recurrent part reads the correlation, its clipped gradients are of the order of
    # AdamW's usual epsilon (1e-8), which would stop it from learning.
    return [
        *optimisers,
        torch.optim.AdamW(parameters, lr=1e-9, weight_decay=config.weight_decay, eps=1e-11),
    ]
