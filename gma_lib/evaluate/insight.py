"""Inside the network, for one pair: where a point looks, the flow update by update, and what the
aggregation adds.

Asked of the PyTorch model, whatever backend computed the flow; without PyTorch installed there is
nothing to ask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from gma_lib.data.padding import MULTIPLE, Padding
from gma_lib.data.sintel import FramePair
from gma_lib.flow.files import read_frame, read_mask
from gma_lib.flow.metrics import endpoint_error, leaves_frame

if TYPE_CHECKING:
    from gma_lib.network.model import GMA

LIKE = 1.0  # px; cells whose true motion differs by less move alike


@dataclass(frozen=True)
class Inside:
    """What happened inside the network for one pair of frames.

    Attributes
    ----------
    flows, flows_without
        Flow (2, H, W) after each update, and the same with the aggregation switched off (gamma =
        0), everything else unchanged.
    attention
        (P, P) for the P cells of the padded frame, row by row: row i says where cell i looks and
        sums to one.
    gamma
        The learned weight of the aggregation; 0 would be RAFT.
    padding
        What was added around the frame.
    """

    flows: list[np.ndarray]
    flows_without: list[np.ndarray]
    attention: np.ndarray
    gamma: float
    padding: Padding

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        height, width = self.padding.padded_size(*self.flows[0].shape[1:])
        return height // MULTIPLE, width // MULTIPLE

    def cell_of(self, point: tuple[int, int]) -> int:
        """Number of the cell that holds a pixel (x, y) of the frame."""
        x, y = point
        height, width = self.flows[0].shape[1:]
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"the point ({x}, {y}) lies outside the frame of {width}x{height} px")
        return (y + self.padding.top) // MULTIPLE * self.grid[1] + (
            x + self.padding.left
        ) // MULTIPLE

    def attention_from(self, point: tuple[int, int]) -> np.ndarray:
        """Where the cell that holds a pixel (x, y) looks: weights for every pixel of the frame, (H,
        W), constant within a cell.
        """
        cells = self.attention[self.cell_of(point)].reshape(self.grid)
        return self.padding.unpad(cells.repeat(MULTIPLE, axis=0).repeat(MULTIPLE, axis=1))


def look_inside(model: "GMA", frame1: np.ndarray, frame2: np.ndarray) -> Inside:
    """Run the network on frames (3, H, W) and keep what is usually thrown away.

    Takes two runs of the updates and the memory of one attention matrix (0.2 GB at Sintel's size).
    """
    import copy

    import torch

    padding = Padding.for_size(*frame1.shape[1:])
    image1, image2 = (torch.from_numpy(padding.pad(frame)[None]) for frame in (frame1, frame2))
    silent = copy.deepcopy(model)
    with torch.inference_mode():
        silent.update_block.aggregator.gamma.zero_()
        encoded = model.features(image1), model.features(image2), model.context(image1)
        return Inside(
            flows=_flow_by_update(model, encoded, padding),
            flows_without=_flow_by_update(silent, encoded, padding),
            attention=_attention(model, encoded[2]),
            gamma=float(model.update_block.aggregator.gamma),
            padding=padding,
        )


def _flow_by_update(model: "GMA", encoded: tuple, padding: Padding) -> list[np.ndarray]:
    from gma_lib.network.model import upsample_flow

    features1, features2, context = encoded
    steps = model.updates(features1, features2, context, None, model.config.num_updates)
    flows = [
        upsample_flow(flow, model.update_block.upsampling_weights(hidden)) for hidden, flow in steps
    ]
    return [padding.unpad(flow.numpy())[0] for flow in flows]


def _attention(model: "GMA", context) -> np.ndarray:
    from torch.nn import functional as F

    from gma_lib.network.model import CONTEXT

    return model.att(F.relu(context[:, -CONTEXT:]))[0].numpy()


# --- what it means --------------------------------------------------------------------------------


def hidden_point(truth: np.ndarray, occluded: np.ndarray | None) -> tuple[int, int]:
    """The pixel (x, y) deepest inside an occluded area that stays in the frame; the frame's middle
    where nothing is occluded.

    Chosen by this rule and not by hand: no window around the point can match it.
    """
    _, height, width = truth.shape
    hidden = (
        np.zeros((height, width), bool) if occluded is None else occluded & ~leaves_frame(truth)
    )
    if not hidden.any():
        return width // 2, height // 2
    depth = cv2.distanceTransform(np.pad(hidden, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


@dataclass(frozen=True)
class Looking:
    """How much attention goes to cells that truly move alike, and how much would by chance; shares
    from 0 to 1.

    Attributes
    ----------
    point, point_chance
        For one point: the weight on cells whose true motion is within ``LIKE`` of its own, and the
        share of such cells.
    hidden, hidden_chance
        Means of both over all occluded cells; None where none is occluded.
    """

    point: float
    point_chance: float
    hidden: float | None
    hidden_chance: float | None


def attention_on_like_motion(
    inside: Inside, truth: np.ndarray, occluded: np.ndarray | None, point: tuple[int, int]
) -> Looking:
    """Measure GMA's idea, that a hidden point looks at what moves like it, against the true motion."""
    inside_frame = _cells(np.ones(truth.shape[1:], np.float32), inside, mode="constant")
    weights, chances = [], []
    motion = np.stack([_cells(component, inside) for component in truth])
    at_point = inside.cell_of(point)
    hidden = np.zeros(0, int)
    if occluded is not None:
        hidden = np.flatnonzero(
            (_cells(occluded.astype(np.float32), inside) > 0.5) & (inside_frame > 0)
        )
    for cell in [at_point, *hidden]:
        like = np.hypot(*(motion - motion[:, cell : cell + 1])) < LIKE
        weights.append(float(inside.attention[cell][like].sum()))
        chances.append(float(like.mean()))
    mean = (
        (float(np.mean(weights[1:])), float(np.mean(chances[1:]))) if len(hidden) else (None, None)
    )
    return Looking(weights[0], chances[0], *mean)


def _cells(
    values: np.ndarray, inside: Inside, mode: Literal["constant", "edge"] = "edge"
) -> np.ndarray:
    """A map (H, W) of the frame at the middle of every cell, (P,)."""
    around = (
        (inside.padding.top, inside.padding.bottom),
        (inside.padding.left, inside.padding.right),
    )
    padded = np.pad(values, around, mode=mode)
    return padded[MULTIPLE // 2 :: MULTIPLE, MULTIPLE // 2 :: MULTIPLE].ravel()


def errors_by_update(
    flows: list[np.ndarray], truth: np.ndarray, mask: np.ndarray | None = None
) -> list[float]:
    """Mean endpoint error after each update, in pixels, over the mask's pixels or all."""
    chosen = np.ones(truth.shape[1:], bool) if mask is None else mask
    return [float(endpoint_error(flow, truth)[chosen].mean()) for flow in flows]


# --- for the notebooks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Examined:
    """A pair with ground truth and what happened inside the network for it."""

    pair: FramePair
    frame1: np.ndarray
    frame2: np.ndarray
    truth: np.ndarray
    occluded: np.ndarray | None
    inside: Inside


def most_hidden(pairs: list[FramePair]) -> FramePair | None:
    """The scored pair with the largest share of occluded pixels (the first of equals); without
    masks the first scored pair.
    """
    scored = [pair for pair in pairs if pair.flow is not None]
    hidden = [
        -1.0 if pair.occlusion is None else float(read_mask(pair.occlusion).mean())
        for pair in scored
    ]
    return scored[int(np.argmax(hidden))] if scored else None


def examine_most_hidden(
    pairs: list[FramePair], examine: Callable[[FramePair], Examined]
) -> tuple[Examined | None, str]:
    """Look inside for the pair with the most occlusion; where that cannot be done, None and the
    reason.
    """
    pair = most_hidden(pairs)
    if pair is None:
        return (
            None,
            "No pair has ground truth, so there is nothing to compare the network's inside with.",
        )
    if find_spec("torch") is None:
        return None, "PyTorch, which has to be asked, is not installed here."
    return examine(pair), ""


def examine(
    pair: FramePair, checkpoint: str | Path, *, num_updates: int, attention: str = "content"
) -> Examined:
    """Load the weights into PyTorch and look inside for one pair."""
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.model import GMAConfig

    model, _ = load_model(checkpoint, GMAConfig(num_updates=num_updates, attention=attention))
    frame1, frame2 = read_frame(pair.image1), read_frame(pair.image2)
    occluded = None if pair.occlusion is None else read_mask(pair.occlusion)
    return Examined(
        pair, frame1, frame2, pair.load_flow(), occluded, look_inside(model, frame1, frame2)
    )
