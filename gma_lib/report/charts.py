"""Charts of numbers: scores, work, times and throughput, each with an alternative text."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gma_lib.report.figures import BLUE, COLOURS, DPI, ORANGE, WIDTH, Picture
from gma_lib.runs.records import Record

CLOCKS_AGREE = 0.1  # s


def _make_chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _add_legend(
    axes: Axes, scored: Collection[str], place: Literal["best", "lower right"] = "best"
) -> None:
    """A legend for what was scored; where nothing was, say why the chart is empty."""
    if scored:
        axes.legend(loc=place)
    else:
        axes.text(0.5, 0.5, "no pair has ground truth", transform=axes.transAxes, ha="center")


def plot_scenes(epe: Mapping[str, Mapping[str, float]]) -> Picture:
    """Plot the EPE of every scene, a bar per pass, the worst scene on top: pass -> scene -> EPE in
    pixels.
    """
    scored = {name: scenes for name, scenes in epe.items() if scenes}
    scenes = list(dict.fromkeys(scene for values in scored.values() for scene in values))
    means = {
        scene: np.nanmean([values.get(scene, np.nan) for values in scored.values()])
        for scene in scenes
    }
    scenes.sort(key=means.__getitem__)
    figure, axes = _make_chart(9, 1.5 + 0.42 * len(scenes))
    thickness = 0.8 / max(1, len(scored))
    for number, ((name, values), colour, hatch) in enumerate(
        zip(scored.items(), cycle(COLOURS), cycle(("", "//", "..")), strict=False)
    ):
        bars = axes.barh(
            np.arange(len(scenes)) - (number - (len(scored) - 1) / 2) * thickness,
            [values.get(scene, np.nan) for scene in scenes],
            thickness,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=name,
        )
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
    axes.set_yticks(
        range(len(scenes)),
        [name if len(name) <= 40 else f"{name[:25]}…{name[-14:]}" for name in scenes],
    )
    axes.set(xlabel="EPE over all pixels, px")
    axes.margins(x=0.12)
    _add_legend(axes, scored, "lower right")
    worst = f"; largest in {scenes[-1]}" if scenes else ""
    return figure, f"EPE by scene and pass, {len(scenes)} scenes{worst}."


def plot_error_curves(
    curves: Mapping[str, Sequence[float]], thresholds: Sequence[float]
) -> Picture:
    """Plot the share of pixels within an error: label -> shares at ``thresholds`` (pixels)."""
    figure, axes = _make_chart(7, 3.6)
    for (label, shares), colour, style in zip(
        curves.items(), cycle(COLOURS), cycle(("-", "--", ":", "-.", (0, (8, 2)))), strict=False
    ):
        shown = 100 * np.asarray(shares)
        axes.plot(thresholds, shown, linestyle=style, color=colour, label=label)
    axes.set(
        xlabel="endpoint error, px",
        ylabel="pixels within it, %",
        ylim=(0, 101),
        xlim=(0, max(thresholds)),
    )
    axes.grid(alpha=0.3)
    _add_legend(axes, curves)
    middle = int(np.argmin(np.abs(np.asarray(thresholds) - 1)))
    within = ", ".join(f"{label} {100 * shares[middle]:.1f} %" for label, shares in curves.items())
    return figure, (
        f"Share of pixels by endpoint error; within {thresholds[middle]:.2f} px: {within}."
    )


def plot_work(work: Mapping[str, float]) -> Picture:
    """Plot the multiply-accumulates of every part of the network, in units of 1e9."""
    parts = sorted(work, key=work.__getitem__)
    figure, axes = _make_chart(8, 3.4)
    bars = axes.barh(parts, [work[part] for part in parts], color=BLUE)
    total = sum(work.values())
    labels = [f"{work[part]:.1f}  ({work[part] / total:.0%})" for part in parts]
    axes.bar_label(bars, labels, padding=3, fontsize=9)
    axes.set(xlabel="multiply-accumulates per pair, 1e9", xlim=(0, 1.2 * max(work.values())))
    most = f"{parts[-1]} ({work[parts[-1]]:.0f} GMAC)"
    return figure, f"Work per pair by part, {total:.0f} GMAC in all; most in {most}."


def _round_ms(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def plot_parts(
    measured_s: Mapping[str, float], work: Mapping[str, float], peak: float | None
) -> Picture:
    """Plot where the time goes, against what the arithmetic says it should take, if that is known.

    Parameters
    ----------
    measured_s
        Seconds per pair by part.
    work
        Multiply-accumulates per pair, 1e9, by part.
    peak
        Operations a second of the machine's matrix product in this precision; None where no library
        at hand has one (8-bit integers).
    """
    parts = sorted(measured_s, key=measured_s.__getitem__)
    figure, axes = _make_chart(8, 4.4)
    places = np.arange(len(parts))
    measured = [1000 * measured_s[part] for part in parts]
    bars = axes.barh(places + 0.2, measured, 0.4, color=BLUE, label="measured")
    total, least = f"{_round_ms(sum(measured))} ms in all", ""
    if peak:
        expected = [2e9 * work.get(part, 0) / peak for part in parts]
        axes.barh(
            places - 0.2,
            [1000 * seconds for seconds in expected],
            0.4,
            color=ORANGE,
            label="at the matrix product's rate",
        )
        least = f" where the arithmetic alone takes {_round_ms(1000 * sum(expected))} ms"
    axes.bar_label(bars, [_round_ms(value) for value in measured], padding=3, fontsize=9)
    axes.set(
        xlabel="milliseconds per pair",
        yticks=places,
        yticklabels=parts,
        xlim=(0, 1150 * max(measured_s.values())),
    )
    axes.legend(loc="lower right")
    most = f"{parts[-1]} ({_round_ms(measured[-1])} ms)"
    return figure, f"Time per pair by part, {total}{least}; most in {most}."


def plot_rounds(samples_s: Sequence[float], batch_size: int) -> Picture:
    """Plot the time of every counted call, with the median: drift and outliers show."""
    figure, axes = _make_chart(8, 3)
    median = float(np.median(samples_s))
    axes.plot(range(1, len(samples_s) + 1), samples_s, "o", color=BLUE, label="one call", zorder=3)
    axes.axhline(median, color=ORANGE, ls="--", label=f"median {median:#.3g} s")
    axes.set(
        xlabel="round", ylabel=f"seconds per call of {batch_size}", ylim=(0, 1.25 * max(samples_s))
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure, (
        f"Time of {len(samples_s)} calls at batch size {batch_size}: median {median:#.3g} s."
    )


def plot_timeline(shards: Sequence[Record], seconds: float) -> Picture:
    """Plot which worker computed which shard, and when, from the summary in ``infer.json``.

    A worker whose clock differs, as its bars begin before the call or end after it, is shifted to
    where they fit, and nothing is said of how busy the workers were.

    Parameters
    ----------
    seconds
        Duration of the whole call.
    """
    workers = sorted({shard["worker"] for shard in shards}, key=lambda name: int(name.split()[1]))
    shifts = {name: _find_shift(shards, name, seconds) for name in workers}
    starts = [shard["start"] + shifts[shard["worker"]] for shard in shards]
    ends = [start + shard["seconds"] for start, shard in zip(starts, shards, strict=True)]
    figure, axes = _make_chart(9, 1.2 + 0.35 * len(workers))
    axes.barh(
        [workers.index(shard["worker"]) for shard in shards],
        [shard["seconds"] for shard in shards],
        left=starts,
        color=BLUE,
        edgecolor="white",
    )
    axes.set(xlabel="seconds since the start, a bar per shard", xlim=(0, max(ends)))
    axes.set_yticks(range(len(workers)), workers)
    axes.invert_yaxis()
    text = f"{len(shards)} shards on {len(workers)} workers in {max(ends):.1f} s"
    if wrong := [name for name in workers if abs(shifts[name]) > CLOCKS_AGREE]:
        return figure, f"{text}; bars are shifted where a clock differs: {', '.join(wrong)}."
    busy = sum(shard["seconds"] for shard in shards) / (max(ends) * len(workers))
    return figure, f"{text}; the workers computed {busy:.0%} of the time."


def _find_shift(shards: Sequence[Record], worker: str, seconds: float) -> float:
    """By how many seconds a worker's shards have to move to lie within the call."""
    spans = [(one["start"], one["seconds"]) for one in shards if one["worker"] == worker]
    first = min(start for start, _ in spans)
    late = max(start + took for start, took in spans) - seconds
    return float(-late if late > 0 else max(0.0, -first))


def plot_throughput(
    rates: Mapping[str, Mapping[int, float | None]],
    memory_gb: Mapping[str, Mapping[int, float]],
    guide: Mapping[int, float],
    doubtful: Mapping[str, Collection[int]] | None = None,
) -> Picture:
    """Plot throughput and memory over batch size, a line per run, and the guide's points.

    Parameters
    ----------
    rates
        Run -> batch size -> pairs per second; None leaves a gap.
    memory_gb
        Run -> batch size -> peak memory, GB, where it is known.
    guide
        Batch size -> pairs per second on the guide's card.
    doubtful
        Run -> batch sizes whose measurement has a caution: their markers are hollow.
    """
    figure = Figure(figsize=(WIDTH * 0.8, 3.6), dpi=DPI, layout="constrained")
    speed, memory = figure.subplots(1, 2)
    texts = []
    for (run, rows), colour, marker in zip(
        rates.items(), cycle(COLOURS), cycle("osD^v"), strict=False
    ):
        timed = {size: rate for size, rate in sorted(rows.items()) if rate is not None}
        if not timed:
            continue
        peaks = dict(sorted(memory_gb[run].items()))
        speed.plot(list(timed), list(timed.values()), marker=marker, color=colour, label=run)
        memory.plot(list(peaks), list(peaks.values()), marker=marker, color=colour, label=run)
        hollow = {size: timed[size] for size in (doubtful or {}).get(run, ()) if size in timed}
        speed.scatter(
            list(hollow), list(hollow.values()), marker=marker, color="white", ec=colour, zorder=3
        )
        told = ", ".join(
            f"bs{size}: {rate:.2f}{' (with a caution)' * (size in hollow)}"
            for size, rate in timed.items()
        )
        texts.append(f"{run} {told}" + "".join(f", bs{n}: {gb:.2f} GB" for n, gb in peaks.items()))
    speed.plot(
        list(guide), list(guide.values()), "x:", color="black", label="guide, Ascend 310P3 float16"
    )
    sizes = sorted({*guide, *(size for rows in rates.values() for size in rows)})
    for axes, label in ((speed, "pairs per second"), (memory, "peak memory, GB")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, labels=[str(size) for size in sizes])
        axes.set(xlabel="batch size", ylabel=label, xlim=(sizes[0] / 1.3, sizes[-1] * 1.3))
        axes.grid(alpha=0.3)
        if not np.isfinite(axes.dataLim.y1):
            axes.set(yticks=[], title="not measured")
            continue
        legend = axes.legend(fontsize=8, loc="upper left")
        room = max(0.3, 0.94 - 0.062 * len(legend.get_texts()))  # below the legend
        axes.set_ylim(0, axes.dataLim.y1 / room)
    card = ", ".join(f"bs{size}: {rate:.2f}" for size, rate in guide.items())
    return figure, (
        f"Pairs per second and peak memory over batch size: {'; '.join(texts)}; the guide's card "
        f"{card}."
    )


def plot_deviations(ratios: Mapping[str, Sequence[float]]) -> Picture:
    """Plot how far values are from expected ones, a row per kind of value.

    Parameters
    ----------
    ratios
        Kind -> difference over tolerance, per value; above 1 is a failure.
    """
    figure, axes = _make_chart(9, 1.2 + 0.42 * len(ratios))
    jitter = np.random.default_rng(0)
    smallest, largest = 1e-6, 1e3
    for row, values in enumerate(ratios.values()):
        shown = np.clip(np.asarray(values, float), smallest, largest)
        axes.scatter(
            shown,
            row + jitter.uniform(-0.25, 0.25, len(shown)),
            s=9,
            alpha=0.6,
            color=np.where(shown > 1, ORANGE, BLUE),
        )
    axes.axvline(1, color=ORANGE, linewidth=1)
    axes.text(1, -0.72, " tolerance", color=ORANGE, va="bottom", fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(
        xlim=(smallest / 2, largest * 2),
        ylim=(len(ratios) - 0.4, -0.75),
        xlabel="difference / tolerance (left edge: equal; right edge: a digest that differs)",
    )
    axes.set_yticks(
        range(len(ratios)), [f"{kind} ({len(values)})" for kind, values in ratios.items()]
    )
    outside = sum(value > 1 for values in ratios.values() for value in values)
    total = sum(map(len, ratios.values()))
    return figure, f"Difference over tolerance of {total} values; {outside} are above 1."
