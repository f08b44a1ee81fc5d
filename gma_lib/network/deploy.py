"""The deploy form: the same flow from less work, by convolutions that are computed once or merged.

Every step takes a network and returns another that computes the same flow, up to rounding, from
fewer multiplications or fewer passes over memory. The state dict changes its names, so the deploy
form is made after the weights are loaded, before the network is exported or run.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gma_lib.network.model import CONTEXT, GMA, HIDDEN, SeparableGRU, attend

MOTION = 2 * 128  # motion features and what was aggregated of them


class HoistedGRU(nn.Module):
    """``SeparableGRU`` whose convolutions are split by what they read.

    The context stays the same in all updates, so its quarter of every convolution is computed once,
    bias included (as RAFT-Stereo does, https://github.com/princeton-vl/RAFT-Stereo): exact, because
    a convolution is linear, also at its zero padding. The two gates z and r read the same input and
    become one convolution.
    """

    def __init__(self, gru: SeparableGRU):
        super().__init__()
        self.context1, self.gates1, self.candidate1 = _split(gru.convz1, gru.convr1, gru.convq1)
        self.context2, self.gates2, self.candidate2 = _split(gru.convz2, gru.convr2, gru.convq2)

    def prepare(self, context: Tensor) -> list[Tensor]:
        """Context (N, 128, h, w) -> for each pass its share of z and r (N, 256, h, w) and of q (N,
        128, h, w).
        """
        return [
            part
            for convolve in (self.context1, self.context2)
            for part in torch.split(convolve(context), [2 * HIDDEN, HIDDEN], dim=1)
        ]

    def forward(self, hidden: Tensor, prepared: list[Tensor], motion: Tensor) -> Tensor:
        shares1, shares2 = prepared[:2], prepared[2:]
        hidden = _hoisted_pass(hidden, motion, shares1, self.gates1, self.candidate1)
        return _hoisted_pass(hidden, motion, shares2, self.gates2, self.candidate2)


def _split(*convolutions: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    """Convolutions z, r and q of a pass -> those of the context, of both gates, and of q."""
    weights = torch.cat([convolution.weight for convolution in convolutions])
    biases = torch.cat([one.bias for one in convolutions if one.bias is not None])
    hidden, context, motion = torch.split(weights, [HIDDEN, CONTEXT, MOTION], dim=1)
    changing = torch.cat([hidden, motion], dim=1)
    return (
        _convolution(context, biases),
        _convolution(changing[: 2 * HIDDEN]),
        _convolution(changing[2 * HIDDEN :]),
    )


def _convolution(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A convolution with these weights, which keeps height and width."""
    outputs, inputs, rows, columns = weight.shape
    kernel, padding = (rows, columns), (rows // 2, columns // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=bias is not None)
    convolution.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach().clone())
    return convolution


def _hoisted_pass(
    hidden: Tensor, motion: Tensor, shares: list[Tensor], gates: nn.Module, candidate: nn.Module
) -> Tensor:
    both = torch.sigmoid(gates(torch.cat([hidden, motion], dim=1)) + shares[0])
    z, r = torch.split(both, HIDDEN, dim=1)
    q = torch.tanh(candidate(torch.cat([r * hidden, motion], dim=1)) + shares[1])
    return hidden + z * (q - hidden)


class BareAggregate(nn.Module):
    """Attention times motion; projection, scale and sum have moved into the GRU's weights."""

    def forward(self, attention: Tensor, motion: Tensor) -> Tensor:
        return attend(attention, motion)


def hoist_context(model: GMA) -> GMA:
    """Compute the context's share of the GRU once, and both gates in one convolution."""
    model.update_block.register_module("gru", HoistedGRU(model.update_block.gru))
    return model


def fold_aggregator(model: GMA) -> GMA:
    """Move the aggregator's projection, scale and sum into the weights that read its result.

    The GRU reads motion m and m + gamma A (V m), where A is attention and V a 1x1 projection. With
    u = A m and the GRU's weights W_m and W_g for the two, W_m m + W_g (m + gamma V u) = (W_m + W_g)
    m + (gamma W_g V) u.
    """
    gru, aggregator = model.update_block.gru, model.update_block.aggregator
    projection = aggregator.to_v.weight[:, :, 0, 0]
    for convolution in (module for module in gru.modules() if isinstance(module, nn.Conv2d)):
        weight = convolution.weight
        sizes = [weight.shape[1] - MOTION, 128, 128]
        rest, of_motion, of_aggregated = torch.split(weight, sizes, dim=1)
        folded = aggregator.gamma * torch.einsum("ogyx,gm->omyx", of_aggregated, projection)
        convolution.weight = nn.Parameter(
            torch.cat([rest, of_motion + of_aggregated, folded], dim=1).detach()
        )
    model.update_block.register_module("aggregator", BareAggregate())
    return model


DEPLOY_STEPS: dict[str, Callable[[GMA], GMA]] = {
    "aggregator folded": fold_aggregator,
    "context hoisted": hoist_context,
}


@torch.no_grad()
def to_deploy_form(model: GMA, steps: tuple[str, ...] = tuple(DEPLOY_STEPS)) -> GMA:
    """Return a copy of the network that computes the same flow from less work.

    Parameters
    ----------
    model
        With its weights loaded.
    steps
        Keys of ``DEPLOY_STEPS``, applied in the order given there.
    """
    if unknown := sorted(set(steps) - set(DEPLOY_STEPS)):
        raise ValueError(f"no step {unknown[0]!r}; there are: {', '.join(DEPLOY_STEPS)}")
    result = copy.deepcopy(model).eval()
    for name, step in DEPLOY_STEPS.items():
        if name in steps:
            result = step(result)
            result.steps += (name,)
    return result
