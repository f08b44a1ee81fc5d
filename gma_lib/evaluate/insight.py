"""Look inside the network for one pair: where a point looks, the flow update by update, and what
the aggregation adds.

Uses the PyTorch model, whatever backend computed the flow, so it needs PyTorch.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from gma_lib import network
from gma_lib.data import FramePair, Padding
from gma_lib.flow.metrics import endpoint_error, leaves_frame
from gma_lib.network.sizes import STRIDE
from gma_lib.runs import Record
from gma_lib.runs.precisions import require_strict_float32

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
        return height // STRIDE, width // STRIDE

    def cell_of(self, point: tuple[int, int]) -> int:
        """Number of the cell that holds a pixel (x, y) of the frame."""
        x, y = point
        height, width = self.flows[0].shape[1:]
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"the point ({x}, {y}) lies outside the frame of {width}x{height} px")
        return (y + self.padding.top) // STRIDE * self.grid[1] + (x + self.padding.left) // STRIDE

    def attention_from(self, point: tuple[int, int]) -> np.ndarray:
        """Where the cell that holds a pixel (x, y) looks: weights for every pixel of the frame, (H,
        W), constant within a cell.
        """
        cells = self.attention[self.cell_of(point)].reshape(self.grid)
        return self.padding.unpad(cells.repeat(STRIDE, axis=0).repeat(STRIDE, axis=1))


def look_inside(model: "network.GMA", frame1: np.ndarray, frame2: np.ndarray) -> Inside:
    """Run the network on frames (3, H, W) and keep what is usually discarded.

    Takes two runs of the updates and the memory of one attention matrix (0.2 GB at Sintel's size).
    """
    import torch

    require_strict_float32()
    padding = Padding.for_size(*frame1.shape[1:])
    image1, image2 = (torch.from_numpy(padding.pad(frame)[None]) for frame in (frame1, frame2))
    silent = copy.deepcopy(model)
    with torch.inference_mode():
        silent.update_block.aggregator.gamma.zero_()
        encoded = model.features(image1), model.features(image2), model.context(image1)
        flows, flows_without = (
            [
                padding.unpad(flow.numpy())[0]
                for flow in each.flow_by_update(*encoded, model.config.num_updates)
            ]
            for each in (model, silent)
        )
        return Inside(
            flows=flows,
            flows_without=flows_without,
            attention=model.att(encoded[2][:, -network.CONTEXT :].relu())[0].numpy(),
            gamma=float(model.update_block.aggregator.gamma),
            padding=padding,
        )


# --- what it means --------------------------------------------------------------------------------


def find_hidden_point(truth: np.ndarray, occluded: np.ndarray | None) -> tuple[int, int]:
    """Return the pixel (x, y) deepest inside an occluded area that stays in the frame; the frame's
    middle where nothing is occluded.

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


class Looking(NamedTuple):
    """Share of attention (0 to 1) on cells whose true motion is within ``LIKE`` of the looking
    cell's, and the share of such cells: what attention would get there by chance.
    """

    weight: float
    chance: float


def measure_attention(
    inside: Inside, truth: np.ndarray, occluded: np.ndarray | None, point: tuple[int, int]
) -> tuple[Looking, Looking | None]:
    """Measure GMA's idea, that a hidden point looks at what moves like it, on the true motion.

    Returns
    -------
    at_point, hidden
        For one point, and the means over all occluded cells; None where none is occluded.
    """
    padding = inside.padding
    motion = _middles(padding.pad(truth))

    def look(cell: int) -> Looking:
        like = np.hypot(*(motion - motion[:, cell : cell + 1])) < LIKE
        return Looking(float(inside.attention[cell][like].sum()), float(like.mean()))

    at_point = look(inside.cell_of(point))
    if occluded is None:
        return at_point, None
    in_frame = _middles(padding.pad(np.ones(occluded.shape, bool), mode="constant"))
    cells = np.flatnonzero(_middles(padding.pad(occluded)) & in_frame).tolist()
    hidden = [look(cell) for cell in cells]
    means = [float(np.mean(values)) for values in zip(*hidden, strict=True)]
    return at_point, Looking(*means) if hidden else None


def _middles(padded: np.ndarray) -> np.ndarray:
    """Maps (..., H, W) of the padded frame at the middle of every cell, (..., P)."""
    middles = padded[..., STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    return middles.reshape(*padded.shape[:-2], -1)


# --- for the notebooks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Examined:
    """A pair with ground truth and what happened inside the network for it.

    Attributes
    ----------
    frame1
        The first frame, float32 (3, H, W).
    truth
        The true flow, float32 (2, H, W), in pixels.
    occluded
        bool (H, W), None where the pair has no mask.
    """

    pair: FramePair
    frame1: np.ndarray
    truth: np.ndarray
    occluded: np.ndarray | None
    inside: Inside

    def measure_curves(self) -> dict[str, list[float]]:
        """EPE in pixels after each update, over all, occluded and not occluded pixels."""
        masks = {"all pixels": np.ones(self.truth.shape[1:], bool)}
        if self.occluded is not None and self.occluded.any() and not self.occluded.all():
            masks |= {"occluded": self.occluded, "not occluded": ~self.occluded}
        errors = [endpoint_error(flow, self.truth) for flow in self.inside.flows]
        return {
            label: [float(error[mask].mean()) for error in errors] for label, mask in masks.items()
        }


def examine_most_hidden(
    pairs: list[FramePair], examine: Callable[[FramePair], Examined]
) -> tuple[Examined | None, str]:
    """Look inside for the scored pair with the largest share of occluded pixels (the first of
    equals); where that cannot be done, return None and the reason.
    """
    scored = [pair for pair in pairs if pair.flow is not None]
    if not scored:
        return None, "No pair has ground truth to compare the network's inside with."
    if find_spec("torch") is None:
        return None, "Looking inside the network needs PyTorch, which is not installed."
    masks = (pair.load_occluded() for pair in scored)
    hidden = [-1.0 if mask is None else float(mask.mean()) for mask in masks]
    return examine(scored[int(np.argmax(hidden))]), ""


def examine(
    pair: FramePair, checkpoint: str | Path, *, num_updates: int, attention: str = "content"
) -> Examined:
    """Load the weights into PyTorch and look inside for one pair."""
    model, _ = network.load_model(
        checkpoint, network.GMAConfig(num_updates=num_updates, attention=attention)
    )
    frames, truth, occluded = pair.load_frames(), pair.load_flow(), pair.load_occluded()
    return Examined(pair, frames[0], truth, occluded, look_inside(model, *frames))


def summarise_inside(examined: Examined | None, reason: str) -> Record:
    """What was found inside as a record; where nothing was, the reason.

    EPE in pixels after each update, with and, for the last, without the aggregation; shares of
    attention from 0 to 1.
    """
    if examined is None:
        return {"pair": None, "reason": reason}
    point = find_hidden_point(examined.truth, examined.occluded)
    looks = measure_attention(examined.inside, examined.truth, examined.occluded, point)
    without = endpoint_error(examined.inside.flows_without[-1], examined.truth)
    return {
        "pair": examined.pair.name,
        "epe_after_updates": examined.measure_curves(),
        "epe_without_aggregation": float(without.mean()),
        "gamma": examined.inside.gamma,
        "point": point,
        "attention": [look and look._asdict() for look in looks],
    }


def describe_attention(examined: Examined, point: tuple[int, int]) -> str:
    """Describe in numbers what the attention map shows, whether or not the paper hopes for it."""
    found, over_all = measure_attention(examined.inside, examined.truth, examined.occluded, point)
    hidden = examined.occluded is not None and examined.occluded[point[1], point[0]]
    text = (
        f"The {'occluded ' if hidden else ''}point puts {found.weight:.1%} of its attention on "
        f"cells whose true motion is within {LIKE:.0f} px of its own; "
        f"they are {found.chance:.1%} of the frame."
    )
    if over_all is not None:
        text += (
            f" Over all occluded cells it is {over_all.weight:.1%}, "
            f"where an even spread would give {over_all.chance:.1%}."
        )
    elif not hidden:
        return f"{text} This pair has no occluded cell: that says nothing about hidden points."
    weight, chance = over_all or found
    if weight > 1.2 * chance:
        return f"{text} So hidden points do look at what moves like them, which is GMA's idea."
    if weight > 0.8 * chance:
        return (
            f"{text} That is no more than an even spread: "
            "with these weights the attention has not learnt to look at what moves alike."
        )
    return (
        f"{text} That is less than an even spread: "
        "with these weights the attention looks elsewhere."
    )


def describe_updates(curves: Mapping[str, Sequence[float]]) -> str:
    """Describe in numbers what the updates do to the error.

    Parameters
    ----------
    curves
        Group of pixels -> EPE in pixels after each update.
    """
    parts = []
    for label, errors in curves.items():
        lowest, last = f"{min(errors):.2f}", f"{errors[-1]:.2f}"
        course = (
            f"{label}: {errors[0]:.2f} px after the first update, "
            f"{last} px after update {len(errors)}"
        )
        if lowest != last:
            course += f", lowest ({lowest} px) after update {int(np.argmin(errors)) + 1}"
        parts.append(course)
    return "; ".join(parts).capitalize() + "."


def describe_aggregation(examined: Examined) -> str:
    """Describe in numbers what the aggregation is worth for this pair, for or against it."""
    inside, hidden = examined.inside, examined.occluded
    with_it, without = (
        endpoint_error(flows[-1], examined.truth) for flows in (inside.flows, inside.flows_without)
    )
    text = (
        f"All pixels: EPE {with_it.mean():.2f} px with the aggregation, "
        f"{without.mean():.2f} px without"
    )
    if hidden is None or not hidden.any():
        return (
            f"{text}. This pair has no {'occlusion mask' if hidden is None else 'occluded pixel'}."
        )
    epe, epe_without = float(with_it[hidden].mean()), float(without[hidden].mean())
    gain = epe_without - epe
    if abs(gain) < 0.01 * epe_without:
        verdict = "with these weights it makes next to no difference there"
    elif gain > 0:
        verdict = "it helps there, as the paper says"
    else:
        verdict = "with these weights it does not help there"
    return (
        f"{text}. Occluded: {epe:.2f} px with, {epe_without:.2f} px without: {verdict} "
        f"({gain:+.2f} px). The learned gamma is {inside.gamma:.3f}."
    )
