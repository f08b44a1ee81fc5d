"""What training minimises: the sequence loss of RAFT and the matching loss of the features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gma_lib.network import STRIDE, correlation_pyramid

LARGEST_FLOW = 400.0  # pixels; faster motion does not enter the loss, as in RAFT's training


def sequence_loss(
    flows: list[Tensor], truth: Tensor, learnt: Tensor, gamma: float, power: float
) -> Tensor:
    """Return the mean absolute error over the learnt pixels (N, H, W), the last update counting
    most (RAFT, equation 7).

    Each pixel's error is raised to ``power`` (see ``Phase.loss_power``); a hundredth of a pixel is
    added first, where the slope below 1 would be infinite.
    """
    weights = [gamma ** (len(flows) - 1 - number) for number in range(len(flows))]
    count = learnt.sum().clamp(min=1)

    def mean_error(flow: Tensor) -> Tensor:
        errors = (flow - truth).abs().sum(dim=1)
        return ((errors if power == 1 else (errors + 0.01) ** power) * learnt).sum() / count

    errors = [weight * mean_error(flow) for weight, flow in zip(weights, flows, strict=True)]
    return sum(errors[1:], start=errors[0])


def matching_loss(features1: Tensor, features2: Tensor, truth: Tensor, learnt: Tensor) -> Tensor:
    """Return the cross entropy between where each cell of frame 1 is in frame 2 and the softmax of
    its correlation.

    The sequence loss reaches the features only through the recurrent part, which at first cannot
    read them: neither learns for a thousand steps. This loss trains the features directly.

    Parameters
    ----------
    features1, features2
        (N, 256, h, w).
    truth, learnt
        Flow (N, 2, H, W) in pixels and pixels (N, H, W) that have a correspondence.
    """
    height, width = features1.shape[-2:]
    # Averages over a cell; the flow in cells, so that cell (i, j) is found at (i, j) + flow.
    flow = F.avg_pool2d(truth, STRIDE) / STRIDE
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=flow.device) for n in (height, width)),
        indexing="ij",
    )
    x, y = (x + flow[:, 0]).flatten(1), (y + flow[:, 1]).flatten(1)  # (N, P)
    known = (F.avg_pool2d(learnt[:, None].float(), STRIDE) > 0.9).flatten(1)
    known &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    logits = correlation_pyramid(features1, features2)[0].reshape(len(flow), height * width, -1)
    scores = logits.log_softmax(dim=-1).reshape(len(flow), height * width, height, width)
    # the four cells around the target share it, as in linear interpolation: (N, P, w), (N, P, h)
    share_x, share_y = (
        (1 - (place[..., None] - torch.arange(side, device=x.device)).abs()).clamp(min=0)
        for place, side in ((x, width), (y, height))
    )
    entropy = -(share_y[:, :, None] @ scores @ share_x[..., None])[:, :, 0, 0]  # (N, P)
    return (entropy * known).sum() / known.sum().clamp(min=1)
