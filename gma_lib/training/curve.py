"""The figure of the card: the error on training scenes over all steps."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gma_lib import runs


def plot_training(curve: list[runs.Record]) -> Figure:
    """Plot the error on training scenes over the steps of all parts, one after the other."""
    spans = [tuple(map(int, point["steps"].split("-"))) for point in curve]
    ends = np.cumsum([last - first + 1 for first, last in spans])
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="steps, all parts one after the other",
        ylabel="EPE (px)",
        yscale="log",
        xlim=(0, ends[-1]),
    )
    axes.set_yticks([1, 2, 3, 5, 10], labels=["1", "2", "3", "5", "10"])
    axes.minorticks_off()
    parts = [point["phase"] for point in curve]
    changes = [number for number in range(1, len(parts)) if parts[number] != parts[number - 1]]
    for part, (first, end) in enumerate(pairwise([0, *changes, len(parts)])):
        places = np.concatenate([[ends[first - 1] if first else 0], ends[first:end]])
        _plot_part(axes, part, curve[first:end], places)
    # room for the names of the parts below, and the legend above
    axes.set_ylim(
        0.4 * min(point["epe"] for point in curve),
        1.6 * max(point["zero_flow_epe"] for point in curve),
    )
    axes.legend(loc="upper right", ncols=2)
    return figure


def _plot_part(axes: Axes, part: int, points: list[runs.Record], places: np.ndarray) -> None:
    for name, label, colour in (
        ("zero_flow_epe", "no motion at all", "0.7"),
        ("epe", "training", "tab:blue"),
    ):
        axes.stairs(
            [point[name] for point in points],
            places,
            baseline=None,
            color=colour,
            label=None if part else label,
            linewidth=1.5,
        )
    axes.axvspan(places[0], places[-1], color="0.96" if part % 2 else "white", zorder=0)
    axes.text(
        (places[0] + places[-1]) / 2,
        0.02,
        points[0]["phase"],
        transform=axes.get_xaxis_transform(),
        rotation=90,
        fontsize=7,
        ha="center",
    )
