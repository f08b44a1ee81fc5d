"""Figures of a pair (frames, masks, true and computed flow, errors) and of the network's inside.

One look, fixed scales, and an alternative text with every figure.
"""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from gma_lib.flow import choose_radius, endpoint_error, flow_to_rgb, to_picture
from gma_lib.runs import Record, write_atomically
from gma_lib.runs.choosing import choose_evenly

Picture = tuple[Figure, str]  # a figure and its alternative text

ERROR_RANGE = 5.0  # px; the same in every error map, so that pictures can be compared
ERROR_TITLE = f"endpoint error, 0 to {ERROR_RANGE:.0f} px and more"
WIDTH = 12.0  # inches; at 100 dpi as wide as a notebook's column
PHONE_WIDTH = 4.2  # inches; a phone's screen is about as wide in points
DPI = 100
# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"


# --- panels ---------------------------------------------------------------------------------------


def make_sheet(
    rows: int, columns: int, shape: tuple[int, ...], title: str, *, width: float = WIDTH
) -> tuple[Figure, np.ndarray]:
    """Return a figure of a width in inches and its panels, each of a frame's shape (..., H, W) with
    room for a title.
    """
    panel_height = width / columns * shape[-2] / shape[-1] + 0.38
    figure = Figure(figsize=(width, rows * panel_height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


def add_image(
    axes: Axes, image: np.ndarray, title: str, *, cmap: str = "cividis", lowest: float = 0.0
) -> AxesImage:
    """Fill a panel with an RGB image (H, W, 3), or with values (H, W) from ``lowest`` to
    ``ERROR_RANGE`` in the colours of ``cmap``.
    """
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes.imshow(image, cmap=cmap, vmin=lowest, vmax=ERROR_RANGE, interpolation="antialiased")


def add_frame(axes: Axes, frame: np.ndarray, title: str) -> None:
    """Fill a panel with a frame (3, H, W)."""
    add_image(axes, to_picture(frame), title)


def add_flow(axes: Axes, flow: np.ndarray, radius: float, title: str, palette: str) -> None:
    """Fill a panel with the colours of a flow field (2, H, W)."""
    add_image(axes, flow_to_rgb(flow, radius, palette), title)


def add_scale(
    axes: Axes, shown: AxesImage, extend: Literal["neither", "both"] = "neither"
) -> Colorbar:
    """Add a colour bar to the right of a panel, and return it."""
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.021, pad=0.01, extend=extend)
    bar.ax.tick_params(labelsize=8)
    return bar


def add_wheel(axes: Axes, radius: float, palette: str) -> None:
    """Add the colour wheel with its radius to the lower left corner of a panel."""
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    colours = flow_to_rgb(np.stack([x, y]) * radius, radius, palette)
    colours = np.dstack([colours, np.where(np.hypot(x, y) <= 1, 255, 0)]).astype(np.uint8)
    inset = axes.inset_axes((0.01, 0.02, 0.12, 0.30))
    inset.imshow(colours)
    inset.set_anchor("SW")  # a square in a box of the panel's shape: keep it in the corner
    inset.set_axis_off()
    inset.text(
        1.06,
        0.0,
        f"at least {radius:.3g} px",
        transform=inset.transAxes,
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5},
    )


def _add_arrows(axes: Axes, flow: np.ndarray, radius: float) -> None:
    """Sparse arrows: direction and speed once more, without colour."""
    _, height, width = flow.shape
    step = max(16, width // 24)
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    u, v = flow[:, y, x] * (0.9 * step / radius)
    axes.quiver(
        x, y, u, v, angles="xy", scale_units="xy", scale=1, width=0.0018, color="black", alpha=0.7
    )


def tint(frame: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return a frame (3, H, W) in grey with a mask over it in orange, uint8 (H, W, 3)."""
    grey = np.clip(np.repeat(frame.mean(axis=0)[..., None], 3, axis=-1) * 0.6 + 90, 0, 255)
    shown = grey if mask is None else np.where(mask[..., None], np.array([230, 120, 0]), grey)
    return shown.astype(np.uint8)


# --- figures --------------------------------------------------------------------------------------


def draw_pair(
    frame1: np.ndarray,
    frame2: np.ndarray,
    flow: np.ndarray | None,
    occluded: np.ndarray | None,
    *,
    title: str,
    palette: str = "middlebury",
) -> Picture:
    """Draw two frames, their true flow, and what becomes occluded."""
    figure, axes = make_sheet(2, 2, frame1.shape, title)
    add_frame(axes[0, 0], frame1, "frame t")
    add_frame(axes[0, 1], frame2, "frame t + 1")
    if flow is None:
        for panel in axes[1]:
            panel.set_axis_off()
        return figure, f"{title}: two consecutive frames; there is no ground truth."
    radius = choose_radius(flow)
    add_flow(axes[1, 0], flow, radius, "true flow", palette)
    add_wheel(axes[1, 0], radius, palette)
    _add_arrows(axes[1, 0], flow, radius)
    if occluded is None:
        axes[1, 1].set_axis_off()
        covered = "there is no occlusion mask"
    else:
        share = f"{occluded.mean():.1%}"
        add_image(axes[1, 1], tint(frame1, occluded), f"occluded in frame t + 1: {share}")
        covered = f"{share} of the pixels are occluded"
    speed = float(np.hypot(flow[0], flow[1]).mean())
    return figure, (
        f"{title}: two frames and their true flow with a mean speed of {speed:.1f} px; {covered}."
    )


def draw_flow(
    frame: np.ndarray, flow: np.ndarray, *, title: str, palette: str = "middlebury"
) -> Picture:
    """Draw a frame and the flow computed for it."""
    figure, axes = make_sheet(1, 2, frame.shape, title)
    radius = choose_radius(flow)
    add_frame(axes[0, 0], frame, "frame t")
    add_flow(axes[0, 1], flow, radius, "computed flow", palette)
    add_wheel(axes[0, 1], radius, palette)
    _add_arrows(axes[0, 1], flow, radius)
    speed = np.hypot(flow[0], flow[1]).mean()
    return figure, f"{title}: a frame and its computed flow, mean speed {speed:.1f} px."


def draw_errors(
    frame1: np.ndarray,
    frame2: np.ndarray,
    flow: np.ndarray,
    truth: np.ndarray,
    *,
    occluded: np.ndarray | None,
    invalid: np.ndarray | None,
    title: str,
    palette: str = "middlebury",
) -> Picture:
    """Draw a scored pair: frames, masks, true flow, computed flow, error.

    True and computed flow share the truth's radius; the error's range is fixed.
    """
    error = endpoint_error(flow, truth)
    numbers = f"EPE {error.mean():.2f} px, 1px {(error < 1).mean():.1%}"
    groups = {} if occluded is None else {"occluded": occluded, "not occluded": ~occluded}
    for name, group in groups.items():
        if group.any() and not group.all():
            numbers += f"; {name} {error[group].mean():.2f} px"
    figure, axes = make_sheet(2, 3, frame1.shape, f"{title}\n{numbers}")
    radius = choose_radius(truth)
    add_frame(axes[0, 0], frame1, "frame t")
    add_frame(axes[0, 1], frame2, "frame t + 1")
    masked = tint(frame1, occluded)
    if invalid is not None:
        masked[invalid] = (0, 0, 0)
    add_image(axes[0, 2], masked, "occluded (orange), invalid (black)")
    for panel, field, label in (
        (axes[1, 0], truth, "true flow"),
        (axes[1, 1], flow, "computed flow"),
    ):
        add_flow(panel, field, radius, label, palette)
        _add_arrows(panel, field, radius)
    add_wheel(axes[1, 0], radius, palette)
    add_scale(axes[1, 2], add_image(axes[1, 2], error, ERROR_TITLE))
    return figure, f"{title}: frames, masks, true and computed flow and the error map; {numbers}."


def draw_overview(
    examples: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    palette: str = "middlebury",
    columns: Literal[1, 4] = 4,
) -> Picture:
    """Draw four panels per example: frame, true flow, computed flow, error.

    Parameters
    ----------
    examples
        Label -> frame (3, H, W), true flow (2, H, W), computed flow (2, H, W).
    columns
        Panels side by side: 4 for a row per example, 1 for a phone.
    """
    shape = next(iter(examples.values()))[0].shape
    rows = len(examples) * 4 // columns
    figure, axes = make_sheet(rows, columns, shape, "", width=min(WIDTH, columns * PHONE_WIDTH))
    told = []
    sets = zip(axes.reshape(-1, 4), examples.items(), strict=True)
    for panels, (label, (frame, truth, flow)) in sets:
        error, radius = endpoint_error(flow, truth), choose_radius(truth)
        add_frame(panels[0], frame, label)
        add_flow(panels[1], truth, radius, "true flow", palette)
        add_wheel(panels[1], radius, palette)
        add_flow(panels[2], flow, radius, f"computed flow, EPE {error.mean():.2f} px", palette)
        add_scale(panels[3], add_image(panels[3], error, ERROR_TITLE))
        told.append(f"{label}, EPE {error.mean():.2f} px")
    return figure, f"Frame, true flow, computed flow and error of {'; '.join(told)}."


# --- the network's inside -------------------------------------------------------------------------


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
        Attention (H, W); the picture shows it as multiples of ``even``, diverging from 1.
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
    add_image(axes[0, 1], tint(frame, None), "attention, times an even spread (red: more)")
    shown = axes[0, 1].imshow(
        np.log2(np.maximum(weights / even, 1e-3)),
        cmap="RdBu_r",
        vmin=-2,
        vmax=2,
        alpha=0.75,
        interpolation="antialiased",
    )
    ticks = {-2: "1/4", -1: "1/2", 0: "1", 1: "2", 2: "4"}
    add_scale(axes[0, 1], shown, extend="both").set_ticks([*ticks], labels=[*ticks.values()])
    for panel in axes[0]:
        panel.plot(*point, "*", color="#D55E00", markeredgecolor="white", markersize=16)
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    y, x = np.unravel_index(int(weights.argmax()), weights.shape)
    return figure, (
        f"{title}: attention of {place}; "
        f"at most {float(weights.max() / even):.1f} times an even spread, at ({x}, {y})."
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
    chosen = choose_evenly(range(1, len(flows) + 1), most)
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
        curves.items(), cycle(COLOURS), cycle("osD^v"), strict=False
    ):
        axis.plot(range(1, len(errors) + 1), errors, color=colour, marker=marker, label=label)
    axis.set(
        xlabel="update",
        ylabel="EPE, px",
        ylim=(0, 1.1 * max(max(errors) for errors in curves.values())),
    )
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
    add_scale(
        axes[1, 1],
        add_image(axes[1, 1], gain, label, lowest=-ERROR_RANGE, cmap="RdBu"),
        extend="both",
    )
    return figure, f"{title}: true flow, flow with and without aggregation, and the gain."


# --- out of Python --------------------------------------------------------------------------------


def encode_figure(figure: Figure, *, photo: bool = False) -> tuple[str, str]:
    """Return a figure as (media type, base64): JPEG for photographs, which are large as PNG, and
    PNG for everything else.
    """
    buffer = io.BytesIO()
    if photo:
        _save(figure, buffer, {"format": "jpeg", "pil_kwargs": {"quality": 88}})
    else:
        _save(figure, buffer, {"format": "png", "metadata": {"Software": None}})
    return ("image/jpeg" if photo else "image/png"), base64.b64encode(buffer.getvalue()).decode()


def save_figure(picture: Picture, path: Path) -> None:
    """Write a figure atomically in the format that the path's suffix names."""
    with write_atomically(Path(path)) as partial:
        _save(picture[0], partial)


def _save(figure: Figure, target: Path | io.BytesIO, options: Record | None = None) -> None:
    """Save a figure with its texts as they are: a scene's name may hold ``$``, which begins a
    formula to matplotlib, or characters that its font lacks.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(target, **(options or {}))
