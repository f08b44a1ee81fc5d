"""Figures of a pair: frames, masks, true and computed flow, errors. One look, fixed scales, and an
alternative text with every figure.
"""

import base64
import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from gma_lib.flow.colours import choose_radius, flow_to_rgb
from gma_lib.flow.metrics import endpoint_error
from gma_lib.runs.files import write_atomically
from gma_lib.runs.records import Record

Picture = tuple[Figure, str]  # a figure and its alternative text

ERROR_RANGE = 5.0  # px; the same in every error map, so that pictures can be compared
ERROR_TITLE = f"endpoint error, 0 to {ERROR_RANGE:.0f} px and more"
WIDTH = 12.0  # inches; at 100 dpi as wide as a notebook's column
DPI = 100


# --- panels ---------------------------------------------------------------------------------------


def make_sheet(
    rows: int, columns: int, shape: tuple[int, ...], title: str
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels, each of a frame's shape (..., H, W) with room for a title."""
    height, width = shape[-2:]
    panel = WIDTH / columns
    figure = Figure(
        figsize=(WIDTH, rows * (panel * height / width + 0.38)), dpi=DPI, layout="constrained"
    )
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
    add_image(axes, np.clip(frame, 0, 255).astype(np.uint8).transpose(1, 2, 0), title)


def add_flow(axes: Axes, flow: np.ndarray, radius: float, title: str, palette: str) -> None:
    """Fill a panel with the colours of a flow field (2, H, W)."""
    add_image(axes, flow_to_rgb(flow, radius, palette), title)


def add_scale(axes: Axes, shown: AxesImage, extend: Literal["neither", "both"] = "neither") -> None:
    """Add a colour bar to the right of a panel."""
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.021, pad=0.01, extend=extend)
    bar.ax.tick_params(labelsize=8)


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
        f"at least {radius:.0f} px",
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
    share = 0.0 if occluded is None else float(occluded.mean())
    if occluded is None:
        axes[1, 1].set_axis_off()
    else:
        add_image(axes[1, 1], tint(frame1, occluded), f"occluded in frame t + 1: {share:.1%}")
    speed = float(np.hypot(flow[0], flow[1]).mean())
    return figure, (
        f"{title}: two frames, their true flow with a mean speed of {speed:.1f} px, "
        f"and {share:.1%} of the pixels occluded."
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
    if occluded is not None and occluded.any():
        numbers += (
            f"; occluded {error[occluded].mean():.2f} px, "
            f"not occluded {error[~occluded].mean():.2f} px"
        )
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
