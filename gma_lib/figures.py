"""Flow as colours, and the figures that the notebooks share: one look, fixed scales, a text for who cannot see them."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import flow_vis
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gma_lib.flow_io import read_flow, read_frame, read_mask
from gma_lib.inference import flow_path
from gma_lib.metrics import endpoint_error
from gma_lib.published import GUIDE_PAIRS_PER_SECOND
from gma_lib.sintel import FramePair

ERROR_RANGE = 5.0  # px; the same in every error map, so that pictures can be compared
INVALID_FLOW = 1e9  # beyond it, a vector marks a pixel without flow
WIDTH = 12.0  # inches; at 100 dpi as wide as a notebook's column
DPI = 100
# Okabe and Ito's colours, told apart by colour-blind readers too
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


def flow_radius(*flows: np.ndarray) -> float:
    """The speed, in pixels, that gets full colour: the 99.5th percentile over all given fields, and at least one pixel."""
    speeds = np.concatenate([np.hypot(flow[0], flow[1]).ravel() for flow in flows])
    return max(1.0, float(np.percentile(speeds[speeds < INVALID_FLOW], 99.5)))


def flow_to_rgb(flow: np.ndarray, radius: float) -> np.ndarray:
    """Flow (2, H, W) as Middlebury colours, uint8 (H, W, 3).

    Hue is the direction, saturation the speed up to ``radius``; faster pixels are darkened. Pixels without finite flow are black.
    The radius is given, never taken from the field, or a prediction and its truth could not be compared.
    """
    known = np.isfinite(flow).all(axis=0) & (np.abs(flow).max(axis=0) < INVALID_FLOW)
    u, v = np.where(known, flow, 0) / radius
    return np.where(known[..., None], flow_vis.flow_uv_to_colors(u, v), 0).astype(np.uint8)


def _picture(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _sheet(rows: int, columns: int, height: int, width: int) -> tuple[Figure, np.ndarray]:
    """Panels of the frame's shape, with room for a title each."""
    panel = WIDTH / columns
    figure = Figure(figsize=(WIDTH, rows * (panel * height / width + 0.38)), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _panel(axes, image: np.ndarray, title: str, **options):
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes.imshow(image, interpolation="antialiased", **options)


def _add_wheel(axes, radius: float) -> None:
    """The colour wheel with its radius, in the lower left corner of a panel."""
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    colours = flow_to_rgb(np.stack([x, y]) * radius, radius)
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
    axes.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1, width=0.0018, color="black", alpha=0.7)


def data_figure(
    frame1: np.ndarray, frame2: np.ndarray, flow: np.ndarray | None, occluded: np.ndarray | None, *, title: str
) -> tuple[Figure, str]:
    """Two frames, their true flow, and what becomes occluded. Returns the figure and its alternative text."""
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
    _panel(axes[1, 0], flow_to_rgb(flow, radius), "true flow")
    _add_wheel(axes[1, 0], radius)
    _add_arrows(axes[1, 0], flow, radius)
    share = 0.0 if occluded is None else float(occluded.mean())
    if occluded is None:
        axes[1, 1].set_axis_off()
    else:
        _panel(axes[1, 1], _tinted(frame1, occluded), f"occluded in frame t + 1: {share:.1%}")
    speed = float(np.hypot(flow[0], flow[1]).mean())
    return figure, f"{title}: two frames, their true flow with a mean speed of {speed:.1f} px, and {share:.1%} of the pixels occluded."


def _tinted(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame in grey with a mask over it in orange."""
    grey = np.repeat(frame.mean(axis=0)[..., None], 3, axis=-1) * 0.6 + 90
    return np.where(mask[..., None], np.array([230, 120, 0]), np.clip(grey, 0, 255)).astype(np.uint8)


def flow_figure(frame: np.ndarray, flow: np.ndarray, *, title: str) -> tuple[Figure, str]:
    """A frame and the flow computed for it."""
    height, width = frame.shape[1:]
    figure, axes = _sheet(1, 2, height, width)
    figure.suptitle(title, fontsize=11)
    radius = flow_radius(flow)
    _panel(axes[0, 0], _picture(frame), "frame t")
    _panel(axes[0, 1], flow_to_rgb(flow, radius), "computed flow")
    _add_wheel(axes[0, 1], radius)
    _add_arrows(axes[0, 1], flow, radius)
    return figure, f"{title}: a frame and its computed flow, mean speed {np.hypot(flow[0], flow[1]).mean():.1f} px."


def error_figure(
    frame1: np.ndarray,
    frame2: np.ndarray,
    flow: np.ndarray,
    truth: np.ndarray,
    *,
    occluded: np.ndarray | None,
    invalid: np.ndarray | None,
    title: str,
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
    for panel, field, label in ((axes[1, 0], truth, "true flow"), (axes[1, 1], flow, "computed flow")):
        _panel(panel, flow_to_rgb(field, radius), label)
        _add_arrows(panel, field, radius)
    _add_wheel(axes[1, 0], radius)
    shown = _panel(axes[1, 2], error, f"endpoint error, 0 to {ERROR_RANGE:.0f} px and more", cmap="cividis", vmin=0, vmax=ERROR_RANGE)
    figure.colorbar(shown, ax=axes[1, 2], fraction=0.021, pad=0.01).ax.tick_params(labelsize=8)
    numbers = f"EPE {error.mean():.2f} px, 1px {(error < 1).mean():.1%}"
    if mask.any():
        numbers += f"; occluded {error[mask].mean():.2f} px, not occluded {error[~mask].mean():.2f} px"
    figure.suptitle(f"{title}\n{numbers}", fontsize=11)
    return figure, f"{title}: frames, masks, true and computed flow and the error map; {numbers}."


def error_curve(curves: Mapping[str, Sequence[float]], thresholds: Sequence[float]) -> tuple[Figure, str]:
    """Share of pixels within an error, per pass: label -> shares at ``thresholds`` (pixels)."""
    figure = Figure(figsize=(7, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (label, shares), colour, style in zip(curves.items(), (BLUE, ORANGE, GREEN), ("-", "--", ":"), strict=False):
        axes.plot(thresholds, 100 * np.asarray(shares), style, color=colour, label=label)
    axes.set(xlabel="endpoint error, px", ylabel="pixels within it, %", ylim=(0, 101), xlim=(0, max(thresholds)))
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "no pair has ground truth", transform=axes.transAxes, ha="center")
    middle = int(np.argmin(np.abs(np.asarray(thresholds) - 1)))
    within = ", ".join(f"{label} {100 * shares[middle]:.1f} %" for label, shares in curves.items())
    return figure, f"Share of pixels by endpoint error; within {thresholds[middle]:.2f} px: {within}."


def work_figure(work: Mapping[str, float]) -> tuple[Figure, str]:
    """Multiply-accumulates by part of the network, in units of 1e9."""
    parts = sorted(work, key=work.get)
    figure = Figure(figsize=(8, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(parts, [work[part] for part in parts], color=BLUE)
    total = sum(work.values())
    axes.bar_label(bars, [f"{work[part]:.1f}  ({work[part] / total:.0%})" for part in parts], padding=3, fontsize=9)
    axes.set(xlabel="multiply-accumulates per pair, 1e9", xlim=(0, 1.2 * max(work.values())))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, f"Work per pair by part, {total:.0f} GMAC in all; most in {parts[-1]} ({work[parts[-1]]:.0f} GMAC)."


def rounds_figure(samples_s: Sequence[float], batch_size: int) -> tuple[Figure, str]:
    """Time of every counted call, with the median, so that drift and outliers can be seen."""
    figure = Figure(figsize=(8, 3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    median = float(np.median(samples_s))
    axes.plot(range(1, len(samples_s) + 1), samples_s, "o", color=BLUE, label="one call")
    axes.axhline(median, color=ORANGE, ls="--", label=f"median {median:.2f} s")
    axes.set(xlabel="round", ylabel=f"seconds per call of {batch_size}", ylim=(0, 1.25 * max(samples_s)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure, f"Time of {len(samples_s)} calls at batch size {batch_size}: median {median:.2f} s."


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
    for (run, rows), colour, marker in zip(runs.items(), (BLUE, ORANGE, GREEN, "#CC79A7"), "osD^", strict=False):
        sizes = sorted(size for size, row in rows.items() if row["status"] == "ok")
        if not sizes:
            continue
        speed.plot(sizes, [rows[size]["pairs_per_second"] for size in sizes], marker=marker, color=colour, label=run)
        inside = [size for size in sizes if "peak_rss_bytes" in rows[size]]  # a card's memory is not this machine's
        memory.plot(inside, [rows[size]["peak_rss_bytes"] / 1e9 for size in inside], marker=marker, color=colour, label=run)
        texts.append(run + " " + ", ".join(f"bs{size}: {rows[size]['pairs_per_second']:.2f}" for size in sizes))
    guide = {size: rate for size, rate in GUIDE_PAIRS_PER_SECOND.items() if rate}
    speed.plot(list(guide), list(guide.values()), "x:", color="black", label="guide, Ascend 310P3 float16")
    speed.set(xlabel="batch size", ylabel="pairs per second")
    memory.set(xlabel="batch size", ylabel="peak memory, GB")
    sizes = sorted({*guide, *(size for rows in runs.values() for size in rows)})
    for axes in (speed, memory):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, labels=[str(size) for size in sizes])
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
        if np.isfinite(axes.dataLim.y1):
            axes.set_ylim(0, 1.35 * axes.dataLim.y1)  # room for the legend
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    return figure, f"Pairs per second over batch size: {'; '.join(texts)}; the guide's card: {guide}."


# --- from files -----------------------------------------------------------------------------------------------------


def show_data(pairs: Sequence[FramePair], *, most: int = 4) -> None:
    """Show frames and ground truth of the first pair with ground truth of every scene, at most so many."""
    for pair in first_of_scenes(pairs)[:most]:
        flow = None if pair.flow is None else read_flow(pair.flow)
        occluded = None if pair.occlusion is None else read_mask(pair.occlusion)
        show(data_figure(read_frame(pair.image1), read_frame(pair.image2), flow, occluded, title=pair.name), photo=True)


def show_flows(pairs: Sequence[FramePair], folder: Path, *, most: int = 4) -> None:
    """Show the computed flow of one pair of every scene, at most so many."""
    for pair in first_of_scenes(pairs)[:most]:
        show(flow_figure(read_frame(pair.image1), read_flow(flow_path(folder, pair)), title=pair.name), photo=True)


def show_errors(roles: Mapping[str, FramePair], folder: Path) -> None:
    """Show the error sheet of pairs with a role each (best, median, worst)."""
    for role, pair in roles.items():
        sheet = error_figure(
            read_frame(pair.image1),
            read_frame(pair.image2),
            read_flow(flow_path(folder, pair)),
            read_flow(pair.flow),
            occluded=None if pair.occlusion is None else read_mask(pair.occlusion),
            invalid=None if pair.invalid is None else read_mask(pair.invalid),
            title=f"{role}: {pair.name}",
        )
        show(sheet, photo=True)


def first_of_scenes(pairs: Sequence[FramePair]) -> list[FramePair]:
    """One pair of every scene, of the first pass that has the scene: the first with ground truth, else the first."""
    chosen: dict[str, FramePair] = {}
    for pair in pairs:
        known = chosen.setdefault(pair.scene, pair)
        if known.flow is None and pair.flow is not None and pair.pass_name == known.pass_name:
            chosen[pair.scene] = pair
    return list(chosen.values())


# --- out of Python --------------------------------------------------------------------------------------------------


def encoded(figure: Figure, *, photo: bool = False) -> tuple[str, str]:
    """A figure as (media type, base64): JPEG for photographs, which are large as PNG, and PNG for everything else."""
    buffer = io.BytesIO()
    if photo:
        figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    else:
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return ("image/jpeg" if photo else "image/png"), base64.b64encode(buffer.getvalue()).decode()


def show(figure_and_text: tuple[Figure, str], *, photo: bool = False) -> None:
    """Show a figure in a notebook, with its alternative text where readers and HTML pages look for it."""
    from IPython.display import display

    figure, text = figure_and_text
    media_type, data = encoded(figure, photo=photo)
    display({media_type: data, "text/plain": text}, metadata={media_type: {"alt": text}}, raw=True)
