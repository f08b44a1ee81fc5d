"""The log of a training run, ``log.jsonl``: read it, cut it, draw it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gma_lib.runs.files import write_atomically
from gma_lib.runs.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cut_log(path: Path, step: int) -> None:
    """Remove entries after the checkpoint's step, or the curve would hold those steps twice."""
    path.touch()
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the line that was being written when the run was killed
            break
        if entry["step"] <= step:
            kept.append(line)
    with write_atomically(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def held_out_epe(validation: Record) -> float:
    """Return the EPE in pixels that decides which weights are kept: the mean of both families."""
    return float(np.mean([family["all"]["epe"] for family in validation["validation"].values()]))


def read_log(path: Path) -> tuple[list[Record], list[Record]]:
    """Read the entries of steps and those of validations."""
    entries = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if "loss" in entry], [
        entry for entry in entries if "validation" in entry
    ]


def plot_log(path: Path) -> "Figure":
    """Plot the training error, smoothed, and the held-out error of both families over the steps."""
    from matplotlib.figure import Figure

    steps, validations = read_log(path)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="EPE (px)", yscale="log")
    steps = [entry for entry in steps if "epe" in entry]  # none while features alone learn
    window = max(1, min(50, len(steps)))
    lines = (("epe", "training", "0.3"), ("zero_epe", "zero flow on the same scenes", "0.7"))
    for name, label, colour in lines if steps else ():
        errors = [entry[name] for entry in steps]
        smooth = np.convolve(errors, np.ones(window) / window, mode="valid")
        numbers = [entry["step"] for entry in steps][window - 1 :]
        axes.plot(numbers, smooth, label=f"{label}, mean of {window} steps", color=colour)
    for family in validations[0]["validation"] if validations else ():
        curve = [
            (entry["step"], entry["validation"][family]["all"]["epe"]) for entry in validations
        ]
        axes.plot(*zip(*curve, strict=True), marker="o", label=f"held out: {family}")
    if axes.lines:
        axes.legend()
    return figure
