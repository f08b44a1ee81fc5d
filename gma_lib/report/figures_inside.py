"""Figures of the network's inside: where a point looks, the flow update by update, and what the
aggregation adds.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gma_lib.flow.colours import choose_radius
from gma_lib.flow.metrics import endpoint_error
from gma_lib.report.charts import BLUE, GREEN, ORANGE
from gma_lib.report.figures import (
    DPI,
    ERROR_RANGE,
    ERROR_TITLE,
    WIDTH,
    Picture,
    add_flow,
    add_image,
    add_scale,
    add_wheel,
    make_sheet,
    tint,
)


def draw_attention(
    frame: np.ndarray,
    occluded: np.ndarray | None,
    weights: np.ndarray,
    point: tuple[int, int],
    *,
    even: float,
    title: str,
) -> Picture:
    """Draw a frame, a point (x, y) in it, and the attention that the point's cell pays to every
    pixel's cell.

    Parameters
    ----------
    weights
        Attention (H, W); the picture shows it as multiples of ``even``.
    even
        The weight of a cell if attention were spread evenly.
    title
        The pair's name.
    """
    height, width = weights.shape
    what = "occluded" if occluded is not None and occluded[point[1], point[0]] else "visible"
    place = f"the {what} point ({point[0]}, {point[1]})"
    figure, axes = make_sheet(1, 2, weights.shape, f"{title}: where {place} looks")
    add_image(
        axes[0, 0], tint(frame, occluded), "frame t, occluded in orange; the point is the star"
    )
    add_image(axes[0, 1], tint(frame, None), "attention, times what an even spread would give")
    shown = axes[0, 1].imshow(
        weights / even, cmap="cividis", vmin=0, alpha=0.75, interpolation="antialiased"
    )
    add_scale(axes[0, 1], shown)
    for panel in axes[0]:
        panel.plot(*point, "*", color="#D55E00", markeredgecolor="white", markersize=16)
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    y, x = np.unravel_index(int(weights.argmax()), weights.shape)
    strongest = float(weights.max() / even)
    return figure, (
        f"{title}: attention of {place}; "
        f"at most {strongest:.1f} times an even spread, at ({x}, {y})."
    )


def draw_updates(
    flows: Sequence[np.ndarray],
    truth: np.ndarray,
    curves: Mapping[str, Sequence[float]],
    *,
    title: str,
    most: int = 4,
    palette: str = "middlebury",
) -> Picture:
    """Draw the flow after some updates next to the true flow, and the error after every update.

    Parameters
    ----------
    curves
        EPE in pixels after each update: name of the group of pixels -> errors.
    title
        The pair's name.
    most
        How many updates are shown as flow.
    """
    chosen = sorted({round(number) for number in np.linspace(1, len(flows), min(most, len(flows)))})
    height, width = truth.shape[1:]
    radius = choose_radius(truth)
    columns = len(chosen) + 1
    tall = WIDTH / columns * height / width
    figure = Figure(figsize=(WIDTH, tall + 3.6), dpi=DPI, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[tall + 0.5, 3.1])[:, 0]
    axes = above.subplots(1, columns, squeeze=False)[0]
    for axis, number in zip(axes, chosen, strict=False):
        error = float(endpoint_error(flows[number - 1], truth).mean())
        label = f"after update {number}: EPE {error:.2f} px"
        add_flow(axis, flows[number - 1], radius, label, palette)
    add_flow(axes[-1], truth, radius, "true flow", palette)
    add_wheel(axes[-1], radius, palette)
    axis = below.subplots()
    for (label, errors), colour, marker in zip(
        curves.items(), (BLUE, ORANGE, GREEN), "osD", strict=False
    ):
        axis.plot(range(1, len(errors) + 1), errors, color=colour, marker=marker, label=label)
    highest = max(max(errors) for errors in curves.values())
    axis.set(xlabel="update", ylabel="EPE, px", ylim=(0, 1.1 * highest))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(f"{title}: update by update", fontsize=11)
    numbers = "; ".join(
        f"{label} {errors[0]:.2f} px after the first update, {errors[-1]:.2f} after the last"
        for label, errors in curves.items()
    )
    return figure, f"{title}: flow and EPE after each of {len(flows)} updates; {numbers}."


def draw_update(
    flows: Sequence[np.ndarray],
    truth: np.ndarray,
    number: int,
    *,
    title: str,
    palette: str = "middlebury",
) -> Picture:
    """Draw the flow after one update (from 1), the true flow in the same colours, and the error."""
    flow, radius = flows[number - 1], choose_radius(truth)
    error = endpoint_error(flow, truth)
    epe = f"EPE {error.mean():.2f} px"
    figure, axes = make_sheet(1, 3, truth.shape, f"{title}: {epe}")
    add_flow(axes[0, 0], flow, radius, f"after update {number} of {len(flows)}", palette)
    add_flow(axes[0, 1], truth, radius, "true flow", palette)
    add_wheel(axes[0, 1], radius, palette)
    add_scale(axes[0, 2], add_image(axes[0, 2], error, ERROR_TITLE))
    return figure, f"{title}: flow after update {number}, {epe}."


def draw_aggregation(
    flow: np.ndarray,
    without: np.ndarray,
    truth: np.ndarray,
    occluded: np.ndarray | None,
    *,
    title: str,
    palette: str = "middlebury",
) -> Picture:
    """Draw the flow with and without the aggregation, and where the aggregation made the error
    smaller or larger.
    """
    radius = choose_radius(truth)
    what = "what the aggregation adds; occluded areas are outlined"
    figure, axes = make_sheet(2, 2, truth.shape, f"{title}: {what}")
    panels = (
        (axes[0, 0], truth, "true flow"),
        (axes[0, 1], flow, "with aggregation"),
        (axes[1, 0], without, "without (gamma = 0)"),
    )
    for axis, field, label in panels:
        add_flow(axis, field, radius, label, palette)
        if occluded is not None and occluded.any():
            axis.contour(occluded, [0.5], colors="black", linewidths=0.6)
    add_wheel(axes[0, 0], radius, palette)
    gain = endpoint_error(without, truth) - endpoint_error(flow, truth)
    label = "error without minus error with, px (blue: aggregation helps)"
    shown = add_image(axes[1, 1], gain, label, lowest=-ERROR_RANGE, cmap="RdBu")
    add_scale(axes[1, 1], shown, extend="both")
    return figure, f"{title}: true flow, flow with and without aggregation, and the gain."
