"""``gma evaluate``: flow files and ground truth to scores."""

import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import get_terminal_size

import click

from gma_lib.cli.options import PATH, detail, output_options, remark, tell
from gma_lib.evaluate.any_files import count_others, list_without_truth, match_files, score_files
from gma_lib.flow.metrics import GROUP_LABELS
from gma_lib.runs import Record, pass_silently, track


@click.command("evaluate", epilog="Example: gma evaluate flows truth --json")
@click.argument("prediction", type=PATH)
@click.argument("truth", type=PATH)
@click.option(
    "--occlusions",
    type=PATH,
    help="Mask, or folder of masks named like the ground truth; white is occluded.",
)
@output_options
def main(prediction: Path, truth: Path, occlusions: Path | None) -> None:
    """Score PREDICTION against TRUTH: two flow files, or two folders of them with the same names.

    Scores are pooled over all pixels with known ground truth. A missing prediction is an error.
    JSON holds EPE in pixels, shares from 0 to 1 and WAUC from 0 to 100.
    """
    files = match_files(prediction, truth)
    detail(f"{prediction} against {truth}; occlusions: {occlusions or 'none'}")
    if unmatched := list_without_truth(prediction, files):
        first = f"(first: {unmatched[0]})"
        remark(f"{len(unmatched)} predictions without ground truth left out {first}")
    # in a file or a pipe, the scores are all there is
    shown = track if len(files) > 1 and sys.stderr.isatty() else pass_silently
    sums, unknown = score_files(files, occlusions=occlusions, track=shown)
    scores = {group: errors.to_metrics() for group, errors in sums.items()}
    others = count_others(truth)
    about = {"fields": len(files), "other_files": others, "pixels_without_truth": unknown}
    about["predictions_without_truth"] = len(unmatched)
    fields = f"{len(files)} flow field{'s' * (len(files) > 1)}"
    lines = [f"{fields}: EPE in px; shares below 1, 3 and 5 px in %"]
    if others:
        lines.append(f"left out: {others} files of {truth} that are no flow files")
    if unknown:
        lines.append(f"left out: {unknown:,} pixels without ground truth")
    tell(about | scores, "\n".join([*lines, *_tabulate(scores)]))


def _tabulate(scores: Mapping[str, Record]) -> list[str]:
    """A line per group of pixels that there are, or two where the terminal is narrow."""
    narrow = get_terminal_size().columns < 79
    heads = f"{'pixels':>12}{'EPE':>9}{'1px':>8}{'3px':>8}{'5px':>8}{'Fl':>8}"
    lines = [heads if narrow else f"{'':26}{heads}"]
    for group, score in scores.items():
        if score["pixels"]:
            shares = "".join(f"{100 * score[name]:8.2f}" for name in ("px1", "px3", "px5", "fl"))
            epe = f"{score['epe']:.3f}" if score["epe"] < 9999 else f"{score['epe']:.2e}"
            label = f"{GROUP_LABELS[group]}\n" if narrow else f"{GROUP_LABELS[group]:26}"
            lines.append(f"{label}{score['pixels']:>12,}{epe:>9}{shares}")
    return lines
