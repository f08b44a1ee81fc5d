"""Flow as colours, and the figures that the notebooks share: one look, fixed scales, a text for who
cannot see them.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import flow_vis
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gma_lib.data.sintel import FramePair
from gma_lib.evaluate.insight import (
    LIKE,
    Examined,
    attention_on_like_motion,
    errors_by_update,
    hidden_point,
)
from gma_lib.evaluate.published import GUIDE_PAIRS_PER_SECOND
from gma_lib.flow.files import UNKNOWN_FLOW, read_flow, read_frame, read_mask
from gma_lib.flow.metrics import endpoint_error
from gma_lib.infer.inference import flow_path
from gma_lib.perf.timing import peak_memory_bytes
from gma_lib.runs.files import write_atomically

ERROR_RANGE = 5.0  # px; the same in every error map, so that pictures can be compared
WIDTH = 12.0  # inches; at 100 dpi as wide as a notebook's column
DPI = 100
# Okabe and Ito's colours, told apart by colour-blind readers too
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


def flow_radius(*flows: np.ndarray) -> float:
    """The speed, in pixels, that gets full colour: the 99.5th percentile over all given fields, and
    at least one pixel.
    """
    speeds = np.concatenate([np.hypot(flow[0], flow[1]).ravel() for flow in flows])
    return max(1.0, float(np.percentile(speeds[speeds < UNKNOWN_FLOW], 99.5)))


def flow_to_rgb(flow: np.ndarray, radius: float, palette: str = "middlebury") -> np.ndarray:
    """Flow (2, H, W) as colours, uint8 (H, W, 3).

    Hue is the direction, saturation the speed up to ``radius``; faster pixels are darkened. Pixels
    without finite flow are black. The radius is given, never taken from the field, or a prediction
    and its truth could not be compared.

    Parameters
    ----------
    palette
        ``middlebury``, the wheel that everybody publishes, or ``twilight``, whose directions
        colour-blind readers tell apart better.
    """
    if palette not in PALETTES:
        raise ValueError(f"palette is one of {', '.join(PALETTES)}, not {palette!r}")
    known = np.isfinite(flow).all(axis=0) & (np.abs(flow).max(axis=0) < UNKNOWN_FLOW)
    u, v = np.where(known, flow, 0) / radius
    return np.where(known[..., None], PALETTES[palette](u, v), 0).astype(np.uint8)


def _twilight(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Matplotlib's cyclic twilight over the direction, faded to grey towards no motion; beyond a
    speed of 1 darker, as Middlebury's.

    Grey, because one of its directions is almost white and another almost black.
    """
    speed = np.hypot(u, v)[..., None]
    colours = matplotlib.colormaps["twilight_shifted"](np.arctan2(v, u) / (2 * np.pi) + 0.5)[
        ..., :3
    ]
    return 255 * np.where(speed <= 1, 0.5 + speed * (colours - 0.5), 0.75 * colours)


PALETTES = {"middlebury": flow_vis.flow_uv_to_colors, "twilight": _twilight}


def _picture(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _sheet(rows: int, columns: int, height: int, width: int) -> tuple[Figure, np.ndarray]:
    """Panels of the frame's shape, with room for a title each."""
    panel = WIDTH / columns
    figure = Figure(
        figsize=(WIDTH, rows * (panel * height / width + 0.38)), dpi=DPI, layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _panel(axes, image: np.ndarray, title: str, **options):
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes.imshow(image, interpolation="antialiased", **options)


def _add_wheel(axes, radius: float, palette: str) -> None:
    """The colour wheel with its radius, in the lower left corner of a panel."""
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    colours = flow_to_rgb(np.stack([x, y]) * radius, radius, palette)
    colours = np.dstack([colours, np.where(np.hypot(x, y) <= 1, 255, 0)]).astype(np.uint8)
    inset = axes.inset_axes([0.01, 0.02, 0.12, 0.30])
    inset.imshow(colours)
    inset.set_axis_off()
    axes.text(
        0.135,
        0.04,
        f"{radius:.0f} px",
        transform=axes.transAxes,
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5},
    )


def _add_arrows(axes, flow: np.ndarray, radius: float) -> None:
    """Sparse arrows: direction and speed once more, without colour."""
    _, height, width = flow.shape
    step = max(16, width // 24)
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    u, v = flow[:, y, x] * (0.9 * step / radius)
    axes.quiver(
        x, y, u, v, angles="xy", scale_units="xy", scale=1, width=0.0018, color="black", alpha=0.7
    )


def data_figure(
    frame1: np.ndarray,
    frame2: np.ndarray,
    flow: np.ndarray | None,
    occluded: np.ndarray | None,
    *,
    title: str,
    palette: str = "middlebury",
) -> tuple[Figure, str]:
    """Two frames, their true flow, and what becomes occluded. Returns the figure and its
    alternative text.
    """
    height, width = frame1.shape[1:]
    figure, axes = _sheet(2, 2, height, width)
    figure.suptitle(title, fontsize=11)
    _panel(axes[0, 0], _picture(frame1), "frame t")
    _panel(axes[0, 1], _picture(frame2), "frame t + 1")
    if flow is None:
        for panel in axes[1]:
            panel.set_axis_off()
        return figure, f"{title}: two consecutive frames; there is no ground truth."
    radius = flow_radius(flow)
    _panel(axes[1, 0], flow_to_rgb(flow, radius, palette), "true flow")
    _add_wheel(axes[1, 0], radius, palette)
    _add_arrows(axes[1, 0], flow, radius)
    share = 0.0 if occluded is None else float(occluded.mean())
    if occluded is None:
        axes[1, 1].set_axis_off()
    else:
        _panel(axes[1, 1], _tinted(frame1, occluded), f"occluded in frame t + 1: {share:.1%}")
    speed = float(np.hypot(flow[0], flow[1]).mean())
    return (
        figure,
        f"{title}: two frames, their true flow with a mean speed of {speed:.1f} px, and {share:.1%} of the pixels occluded.",
    )


def _tinted(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame in grey with a mask over it in orange."""
    grey = np.repeat(frame.mean(axis=0)[..., None], 3, axis=-1) * 0.6 + 90
    return np.where(mask[..., None], np.array([230, 120, 0]), np.clip(grey, 0, 255)).astype(
        np.uint8
    )


def flow_figure(
    frame: np.ndarray, flow: np.ndarray, *, title: str, palette: str = "middlebury"
) -> tuple[Figure, str]:
    """A frame and the flow computed for it."""
    height, width = frame.shape[1:]
    figure, axes = _sheet(1, 2, height, width)
    figure.suptitle(title, fontsize=11)
    radius = flow_radius(flow)
    _panel(axes[0, 0], _picture(frame), "frame t")
    _panel(axes[0, 1], flow_to_rgb(flow, radius, palette), "computed flow")
    _add_wheel(axes[0, 1], radius, palette)
    _add_arrows(axes[0, 1], flow, radius)
    return (
        figure,
        f"{title}: a frame and its computed flow, mean speed {np.hypot(flow[0], flow[1]).mean():.1f} px.",
    )


def error_figure(
    frame1: np.ndarray,
    frame2: np.ndarray,
    flow: np.ndarray,
    truth: np.ndarray,
    *,
    occluded: np.ndarray | None,
    invalid: np.ndarray | None,
    title: str,
    palette: str = "middlebury",
) -> tuple[Figure, str]:
    """The sheet of one scored pair: frames, masks, true flow, computed flow, error.

    True and computed flow share the truth's radius; the error's range is fixed.
    """
    height, width = frame1.shape[1:]
    figure, axes = _sheet(2, 3, height, width)
    error = endpoint_error(flow, truth)
    radius = flow_radius(truth)
    mask = np.zeros(error.shape, bool) if occluded is None else occluded
    _panel(axes[0, 0], _picture(frame1), "frame t")
    _panel(axes[0, 1], _picture(frame2), "frame t + 1")
    masked = _tinted(frame1, mask)
    if invalid is not None:
        masked[invalid] = (0, 0, 0)
    _panel(axes[0, 2], masked, "occluded (orange), invalid (black)")
    for panel, field, label in (
        (axes[1, 0], truth, "true flow"),
        (axes[1, 1], flow, "computed flow"),
    ):
        _panel(panel, flow_to_rgb(field, radius, palette), label)
        _add_arrows(panel, field, radius)
    _add_wheel(axes[1, 0], radius, palette)
    shown = _panel(
        axes[1, 2],
        error,
        f"endpoint error, 0 to {ERROR_RANGE:.0f} px and more",
        cmap="cividis",
        vmin=0,
        vmax=ERROR_RANGE,
    )
    figure.colorbar(shown, ax=axes[1, 2], fraction=0.021, pad=0.01).ax.tick_params(labelsize=8)
    numbers = f"EPE {error.mean():.2f} px, 1px {(error < 1).mean():.1%}"
    if mask.any():
        numbers += (
            f"; occluded {error[mask].mean():.2f} px, not occluded {error[~mask].mean():.2f} px"
        )
    figure.suptitle(f"{title}\n{numbers}", fontsize=11)
    return figure, f"{title}: frames, masks, true and computed flow and the error map; {numbers}."


def attention_figure(examined: Examined, point: tuple[int, int]) -> tuple[Figure, str]:
    """Where a point of the first frame looks: the frame, the point, and the attention its cell pays
    to every other cell.
    """
    weights = examined.inside.attention_from(point)
    height, width = weights.shape
    hidden = examined.occluded is not None and bool(examined.occluded[point[1], point[0]])
    figure, axes = _sheet(1, 2, height, width)
    what = "occluded" if hidden else "visible"
    figure.suptitle(
        f"{examined.pair.name}: where the {what} point ({point[0]}, {point[1]}) looks", fontsize=11
    )
    mask = np.zeros((height, width), bool) if examined.occluded is None else examined.occluded
    _panel(
        axes[0, 0],
        _tinted(examined.frame1, mask),
        "frame t, occluded in orange; the point is the star",
    )
    uniform = 1 / examined.inside.attention.shape[1]
    _panel(
        axes[0, 1],
        _tinted(examined.frame1, np.zeros((height, width), bool)),
        "attention, times what an even spread would give",
    )
    shown = axes[0, 1].imshow(
        weights / uniform, cmap="cividis", vmin=0, alpha=0.75, interpolation="antialiased"
    )
    figure.colorbar(shown, ax=axes[0, 1], fraction=0.021, pad=0.01).ax.tick_params(labelsize=8)
    for panel in axes[0]:
        panel.plot(*point, "*", color="#D55E00", markeredgecolor="white", markersize=16)
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    y, x = np.unravel_index(int(weights.argmax()), weights.shape)
    strongest = float(weights.max() / uniform)
    looks = f"attention of the {what} point ({point[0]}, {point[1]}); at most {strongest:.1f} times an even spread, at ({x}, {y})"
    return figure, f"{examined.pair.name}: {looks}."


def looking_sentence(examined: Examined, point: tuple[int, int]) -> str:
    """What the attention map shows, in numbers, whether or not it is what the paper hopes for."""
    found = attention_on_like_motion(examined.inside, examined.truth, examined.occluded, point)
    what = (
        "The occluded point"
        if examined.occluded is not None and examined.occluded[point[1], point[0]]
        else "The point"
    )
    text = (
        f"{what} puts {found.point:.1%} of its attention on cells whose true motion is within {LIKE:.0f} px of its own; "
        f"they are {found.point_chance:.1%} of the frame."
    )
    weight, chance = found.point, found.point_chance
    if found.hidden is not None and found.hidden_chance is not None:
        text += f" Over all occluded cells it is {found.hidden:.1%}, where an even spread would give {found.hidden_chance:.1%}."
        weight, chance = found.hidden, found.hidden_chance
    if weight > 1.2 * chance:
        return text + " So hidden points do look at what moves like them, which is GMA's idea."
    if weight > 0.8 * chance:
        return (
            text
            + " That is no more than an even spread: with these weights the attention has not learnt to look at what moves alike."
        )
    return (
        text
        + " That is less than an even spread: with these weights the attention looks elsewhere."
    )


def updates_figure(
    examined: Examined, *, most: int = 4, palette: str = "middlebury"
) -> tuple[Figure, str]:
    """The flow after some updates, the truth beside it, and the error after every update."""
    flows, truth = examined.inside.flows, examined.truth
    chosen = sorted({round(number) for number in np.linspace(1, len(flows), min(most, len(flows)))})
    height, width = truth.shape[1:]
    radius = flow_radius(truth)
    columns = len(chosen) + 1
    panel = WIDTH / columns
    figure = Figure(figsize=(WIDTH, panel * height / width + 3.6), dpi=DPI, layout="constrained")
    above, below = figure.subfigures(
        2, 1, squeeze=False, height_ratios=[panel * height / width + 0.5, 3.1]
    )[:, 0]
    axes = above.subplots(1, columns, squeeze=False)[0]
    for axis, number in zip(axes, chosen, strict=False):
        error = float(endpoint_error(flows[number - 1], truth).mean())
        _panel(
            axis,
            flow_to_rgb(flows[number - 1], radius, palette),
            f"after update {number}: EPE {error:.2f} px",
        )
    _panel(axes[-1], flow_to_rgb(truth, radius, palette), "true flow")
    _add_wheel(axes[-1], radius, palette)
    curves = _error_curves_by_update(examined)
    axis = below.subplots()
    for (label, errors), colour, marker in zip(
        curves.items(), (BLUE, ORANGE, GREEN), "osD", strict=False
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
    figure.suptitle(f"{examined.pair.name}: update by update", fontsize=11)
    numbers = "; ".join(
        f"{label} {errors[0]:.2f} px after the first update, {errors[-1]:.2f} after the last"
        for label, errors in curves.items()
    )
    return (
        figure,
        f"{examined.pair.name}: flow and EPE after each of {len(flows)} updates; {numbers}.",
    )


def update_figure(
    examined: Examined, number: int, *, palette: str = "middlebury"
) -> tuple[Figure, str]:
    """The flow after one update (from 1), the truth with the same colours, and the error."""
    flow, truth = examined.inside.flows[number - 1], examined.truth
    height, width = truth.shape[1:]
    radius, error = flow_radius(truth), endpoint_error(flow, truth)
    figure, axes = _sheet(1, 3, height, width)
    _panel(
        axes[0, 0],
        flow_to_rgb(flow, radius, palette),
        f"after update {number} of {len(examined.inside.flows)}",
    )
    _panel(axes[0, 1], flow_to_rgb(truth, radius, palette), "true flow")
    _add_wheel(axes[0, 1], radius, palette)
    title = f"endpoint error, 0 to {ERROR_RANGE:.0f} px and more"
    shown = _panel(axes[0, 2], error, title, cmap="cividis", vmin=0, vmax=ERROR_RANGE)
    figure.colorbar(shown, ax=axes[0, 2], fraction=0.021, pad=0.01).ax.tick_params(labelsize=8)
    figure.suptitle(f"{examined.pair.name}: EPE {error.mean():.2f} px", fontsize=11)
    return figure, f"{examined.pair.name}: flow after update {number}, EPE {error.mean():.2f} px."


def _error_curves_by_update(examined: Examined) -> dict[str, list[float]]:
    flows, truth, occluded = examined.inside.flows, examined.truth, examined.occluded
    curves = {"all pixels": errors_by_update(flows, truth)}
    if occluded is not None and occluded.any() and not occluded.all():
        curves |= {
            "occluded": errors_by_update(flows, truth, occluded),
            "not occluded": errors_by_update(flows, truth, ~occluded),
        }
    return curves


def updates_sentence(examined: Examined) -> str:
    """What the updates do to the error, in numbers."""
    parts = []
    for label, errors in _error_curves_by_update(examined).items():
        lowest, last = f"{min(errors):.2f}", f"{errors[-1]:.2f}"
        course = f"{label}: {errors[0]:.2f} px after the first update, {last} px after update {len(errors)}"
        parts.append(
            course
            if lowest == last
            else f"{course}, lowest ({lowest} px) after update {int(np.argmin(errors)) + 1}"
        )
    return "; ".join(parts).capitalize() + "."


def aggregation_figure(examined: Examined, *, palette: str = "middlebury") -> tuple[Figure, str]:
    """Flow with and without the aggregation, and where it made the error smaller or larger."""
    truth, radius = examined.truth, flow_radius(examined.truth)
    height, width = truth.shape[1:]
    with_it, without = examined.inside.flows[-1], examined.inside.flows_without[-1]
    figure, axes = _sheet(2, 2, height, width)
    panels = (
        (axes[0, 0], truth, "true flow"),
        (axes[0, 1], with_it, "with aggregation"),
        (axes[1, 0], without, "without (gamma = 0)"),
    )
    for axis, field, label in panels:
        _panel(axis, flow_to_rgb(field, radius, palette), label)
        if examined.occluded is not None and examined.occluded.any():
            axis.contour(examined.occluded, [0.5], colors="black", linewidths=0.6)
    _add_wheel(axes[0, 0], radius, palette)
    gain = endpoint_error(without, truth) - endpoint_error(with_it, truth)
    title = "error without minus error with, px (blue: aggregation helps)"
    shown = _panel(axes[1, 1], gain, title, cmap="RdBu", vmin=-ERROR_RANGE, vmax=ERROR_RANGE)
    figure.colorbar(shown, ax=axes[1, 1], fraction=0.021, pad=0.01, extend="both").ax.tick_params(
        labelsize=8
    )
    figure.suptitle(
        f"{examined.pair.name}: what the aggregation adds; occluded areas are outlined", fontsize=11
    )
    return (
        figure,
        f"{examined.pair.name}: true flow, flow with and without aggregation, and the gain. {aggregation_sentence(examined)}",
    )


def aggregation_sentence(examined: Examined) -> str:
    """What the aggregation is worth for this pair, in numbers, for or against it."""
    truth = examined.truth
    with_it, without = (
        endpoint_error(flows[-1], truth)
        for flows in (examined.inside.flows, examined.inside.flows_without)
    )
    text = f"All pixels: EPE {with_it.mean():.2f} px with the aggregation, {without.mean():.2f} px without"
    hidden = examined.occluded
    if hidden is None or not hidden.any():
        return f"{text}. This pair has no occlusion mask to look closer."
    gain = float(without[hidden].mean() - with_it[hidden].mean())
    if abs(gain) < 0.01 * float(without[hidden].mean()):
        verdict = "with these weights it makes next to no difference there"
    else:
        verdict = (
            "it helps there, as the paper says"
            if gain > 0
            else "with these weights it does not help there"
        )
    return (
        f"{text}. Occluded: {with_it[hidden].mean():.2f} px with, {without[hidden].mean():.2f} px without: {verdict} "
        f"({gain:+.2f} px). The learned gamma is {examined.inside.gamma:.3f}."
    )


def scenes_figure(scores: Mapping[str, Mapping]) -> tuple[Figure, str]:
    """EPE of every scene, a bar per pass, the worst scene on top: ``metrics.json``'s passes with
    their ``scenes``.
    """
    scored = {name: score["scenes"] for name, score in scores.items() if score["scenes"]}
    scenes = list(dict.fromkeys(scene for scenes in scored.values() for scene in scenes))
    epe = {
        name: [scenes_of[scene]["all"]["epe"] if scene in scenes_of else np.nan for scene in scenes]
        for name, scenes_of in scored.items()
    }
    order = sorted(
        range(len(scenes)),
        key=lambda number: np.nanmean([values[number] for values in epe.values()]),
    )
    figure = Figure(figsize=(9, 1.5 + 0.42 * len(scenes)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    thickness = 0.8 / max(1, len(scored))
    for number, ((name, values), colour, hatch) in enumerate(
        zip(epe.items(), (BLUE, ORANGE), ("", "//"), strict=False)
    ):
        place = np.arange(len(scenes)) + (number - (len(scored) - 1) / 2) * thickness
        bars = axes.barh(
            place,
            [values[k] for k in order],
            thickness,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=name,
        )
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
    axes.set_yticks(range(len(scenes)), [scenes[k] for k in order])
    axes.set(xlabel="EPE over all pixels, px")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if scored:
        axes.legend(loc="lower right")
    else:
        axes.text(0.5, 0.5, "no pair has ground truth", transform=axes.transAxes, ha="center")
    worst = f"; largest in {scenes[order[-1]]}" if scenes else ""
    return figure, f"EPE by scene and pass, {len(scenes)} scenes{worst}."


def error_curve(
    curves: Mapping[str, Sequence[float]], thresholds: Sequence[float]
) -> tuple[Figure, str]:
    """Share of pixels within an error, per pass: label -> shares at ``thresholds`` (pixels)."""
    figure = Figure(figsize=(7, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (label, shares), colour, style in zip(
        curves.items(), (BLUE, ORANGE, GREEN), ("-", "--", ":"), strict=False
    ):
        axes.plot(thresholds, 100 * np.asarray(shares), style, color=colour, label=label)
    axes.set(
        xlabel="endpoint error, px",
        ylabel="pixels within it, %",
        ylim=(0, 101),
        xlim=(0, max(thresholds)),
    )
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "no pair has ground truth", transform=axes.transAxes, ha="center")
    middle = int(np.argmin(np.abs(np.asarray(thresholds) - 1)))
    within = ", ".join(f"{label} {100 * shares[middle]:.1f} %" for label, shares in curves.items())
    return (
        figure,
        f"Share of pixels by endpoint error; within {thresholds[middle]:.2f} px: {within}.",
    )


def work_figure(work: Mapping[str, float]) -> tuple[Figure, str]:
    """Multiply-accumulates by part of the network, in units of 1e9."""
    parts = sorted(work, key=work.__getitem__)
    figure = Figure(figsize=(8, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(parts, [work[part] for part in parts], color=BLUE)
    total = sum(work.values())
    axes.bar_label(
        bars,
        [f"{work[part]:.1f}  ({work[part] / total:.0%})" for part in parts],
        padding=3,
        fontsize=9,
    )
    axes.set(xlabel="multiply-accumulates per pair, 1e9", xlim=(0, 1.2 * max(work.values())))
    axes.spines[["top", "right"]].set_visible(False)
    return (
        figure,
        f"Work per pair by part, {total:.0f} GMAC in all; most in {parts[-1]} ({work[parts[-1]]:.0f} GMAC).",
    )


def parts_figure(
    measured_s: Mapping[str, float], work: Mapping[str, float], peak: float | None
) -> tuple[Figure, str]:
    """Where the time goes, against what the arithmetic says it should take, if that is known.

    Parameters
    ----------
    measured_s
        Seconds per pair by part (``perf.json``, ``parts_s``).
    work
        Multiply-accumulates per pair, 1e9, by part.
    peak
        Operations a second of the machine's matrix product in this precision; None where no library
        at hand has one (8-bit integers).
    """
    parts = sorted(measured_s, key=measured_s.__getitem__)
    figure = Figure(figsize=(8, 4.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(parts))
    bars = axes.barh(
        places + 0.2, [1000 * measured_s[part] for part in parts], 0.4, color=BLUE, label="measured"
    )
    total, least = f"{1000 * sum(measured_s.values()):.0f} ms in all", ""
    if peak:
        expected = [2e9 * work.get(part, 0) / peak for part in parts]
        axes.barh(
            places - 0.2,
            [1000 * seconds for seconds in expected],
            0.4,
            color=ORANGE,
            label="at the matrix product's rate",
        )
        least = f" where the arithmetic alone takes {1000 * sum(expected):.0f} ms"
    axes.bar_label(
        bars, [f"{1000 * measured_s[part]:.0f}" for part in parts], padding=3, fontsize=9
    )
    axes.set(
        xlabel="milliseconds per pair",
        yticks=places,
        yticklabels=parts,
        xlim=(0, 1150 * max(measured_s.values())),
    )
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return (
        figure,
        f"Time per pair by part, {total}{least}; most in {parts[-1]} ({1000 * measured_s[parts[-1]]:.0f} ms).",
    )


def rounds_figure(samples_s: Sequence[float], batch_size: int) -> tuple[Figure, str]:
    """Time of every counted call, with the median, so that drift and outliers can be seen."""
    figure = Figure(figsize=(8, 3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    median = float(np.median(samples_s))
    axes.plot(range(1, len(samples_s) + 1), samples_s, "o", color=BLUE, label="one call", zorder=3)
    axes.axhline(median, color=ORANGE, ls="--", label=f"median {median:.2f} s")
    axes.set(
        xlabel="round", ylabel=f"seconds per call of {batch_size}", ylim=(0, 1.25 * max(samples_s))
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return (
        figure,
        f"Time of {len(samples_s)} calls at batch size {batch_size}: median {median:.2f} s.",
    )


def throughput_figure(runs: Mapping[str, Mapping[int, Mapping]]) -> tuple[Figure, str]:
    """Throughput and memory over batch size, a line per run, the guide's points beside them.

    Parameters
    ----------
    runs
        Run name -> batch size -> ``perf.json``; entries whose status is not ``ok`` leave a gap.
    """
    figure = Figure(figsize=(WIDTH * 0.8, 3.6), dpi=DPI, layout="constrained")
    speed, memory = figure.subplots(1, 2)
    texts = []
    for (run, rows), colour, marker in zip(
        runs.items(), cycle((BLUE, ORANGE, GREEN, "#CC79A7")), cycle("osD^v"), strict=False
    ):
        sizes = sorted(size for size, row in rows.items() if row["status"] == "ok")
        if not sizes:
            continue
        speed.plot(
            sizes,
            [rows[size]["pairs_per_second"] for size in sizes],
            marker=marker,
            color=colour,
            label=run,
        )
        peaks = {size: peak / 1e9 for size in sizes if (peak := peak_memory_bytes(rows[size]))}
        memory.plot(list(peaks), list(peaks.values()), marker=marker, color=colour, label=run)
        texts.append(
            run
            + " "
            + ", ".join(f"bs{size}: {rows[size]['pairs_per_second']:.2f}" for size in sizes)
        )
    guide = {size: rate for size, rate in GUIDE_PAIRS_PER_SECOND.items() if rate}
    speed.plot(
        list(guide), list(guide.values()), "x:", color="black", label="guide, Ascend 310P3 float16"
    )
    speed.set(xlabel="batch size", ylabel="pairs per second")
    memory.set(xlabel="batch size", ylabel="peak memory, GB")
    sizes = sorted({*guide, *(size for rows in runs.values() for size in rows)})
    for axes in (speed, memory):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, labels=[str(size) for size in sizes])
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
        axes.grid(alpha=0.3)
        if not np.isfinite(axes.dataLim.y1):
            axes.set(yticks=[], title="not measured")
            continue
        legend = axes.legend(fontsize=8, loc="upper left")
        axes.set_ylim(
            0, axes.dataLim.y1 / max(0.3, 0.94 - 0.062 * len(legend.get_texts()))
        )  # room for the legend
    return (
        figure,
        f"Pairs per second over batch size: {'; '.join(texts)}; the guide's card: {guide}.",
    )


def show_inside(examined: Examined, *, palette: str = "middlebury") -> None:
    """Show where the deepest hidden point looks, the flow update by update, and what the
    aggregation adds, each with its numbers.
    """
    point = hidden_point(examined.truth, examined.occluded)
    for sheet, sentence in (
        (attention_figure(examined, point), looking_sentence(examined, point)),
        (updates_figure(examined, palette=palette), updates_sentence(examined)),
        (aggregation_figure(examined, palette=palette), aggregation_sentence(examined)),
    ):
        show(sheet, photo=True)
        say(sentence)


# --- from files -----------------------------------------------------------------------------------


def show_data(pairs: Sequence[FramePair], *, most: int = 4, palette: str = "middlebury") -> None:
    """Show frames and ground truth of the first pair with ground truth of every scene, at most so
    many.
    """
    for pair in first_of_scenes(pairs)[:most]:
        flow = None if pair.flow is None else read_flow(pair.flow)
        occluded = None if pair.occlusion is None else read_mask(pair.occlusion)
        show(
            data_figure(
                read_frame(pair.image1),
                read_frame(pair.image2),
                flow,
                occluded,
                title=pair.name,
                palette=palette,
            ),
            photo=True,
        )


def show_flows(
    pairs: Sequence[FramePair], folder: Path, *, most: int = 4, palette: str = "middlebury"
) -> None:
    """Show the computed flow of one pair of every scene, at most so many."""
    for pair in first_of_scenes(pairs)[:most]:
        show(
            flow_figure(
                read_frame(pair.image1),
                read_flow(flow_path(folder, pair)),
                title=pair.name,
                palette=palette,
            ),
            photo=True,
        )


def show_errors(
    roles: Mapping[str, FramePair], folder: Path, *, palette: str = "middlebury"
) -> None:
    """Show the error sheet of pairs with a role each (best, median, worst)."""
    for role, pair in roles.items():
        sheet = error_figure(
            read_frame(pair.image1),
            read_frame(pair.image2),
            read_flow(flow_path(folder, pair)),
            pair.load_flow(),
            occluded=None if pair.occlusion is None else read_mask(pair.occlusion),
            invalid=None if pair.invalid is None else read_mask(pair.invalid),
            title=f"{role}: {pair.name}",
            palette=palette,
        )
        show(sheet, photo=True)


def first_of_scenes(pairs: Sequence[FramePair]) -> list[FramePair]:
    """One pair of every scene, of the first pass that has the scene: the first with ground truth,
    else the first.
    """
    chosen: dict[str, FramePair] = {}
    for pair in pairs:
        known = chosen.setdefault(pair.scene, pair)
        if known.flow is None and pair.flow is not None and pair.pass_name == known.pass_name:
            chosen[pair.scene] = pair
    return list(chosen.values())


# --- out of Python --------------------------------------------------------------------------------


def encoded(figure: Figure, *, photo: bool = False) -> tuple[str, str]:
    """A figure as (media type, base64): JPEG for photographs, which are large as PNG, and PNG for
    everything else.
    """
    buffer = io.BytesIO()
    if photo:
        figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    else:
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return ("image/jpeg" if photo else "image/png"), base64.b64encode(buffer.getvalue()).decode()


def save(figure_and_text: tuple[Figure, str], path: Path) -> None:
    """Write a figure in the format that the path's ending names, whole or not at all."""
    path = Path(path)
    with write_atomically(path) as partial:
        figure_and_text[0].savefig(partial)


def show(figure_and_text: tuple[Figure, str], *, photo: bool = False) -> None:
    """Show a figure in a notebook, with its alternative text where readers and HTML pages look for
    it.
    """
    from IPython.display import display

    figure, text = figure_and_text
    media_type, data = encoded(figure, photo=photo)
    display({media_type: data, "text/plain": text}, metadata={media_type: {"alt": text}}, raw=True)


def say(sentence: str) -> None:
    """Show a sentence in a notebook as prose, not as a program's output."""
    from IPython.display import Markdown, display

    display(Markdown(sentence))
