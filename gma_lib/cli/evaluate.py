"""``gma evaluate``: flow files and ground truth to scores."""

import json
from pathlib import Path

import click

from gma_lib.cli.options import PATH
from gma_lib.evaluate.any_files import count_others, match_files, score_files
from gma_lib.flow.metrics import GROUP_LABELS


@click.command("evaluate", epilog="Example: gma evaluate flows truth --json")
@click.argument("prediction", type=PATH)
@click.argument("truth", type=PATH)
@click.option(
    "--occlusions",
    type=PATH,
    help="Mask, or folder of masks named like the ground truth; white is occluded.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON: EPE in pixels, shares from 0 to 1, WAUC from 0 to 100.",
)
def main(prediction: Path, truth: Path, occlusions: Path | None, as_json: bool) -> None:
    """Score PREDICTION against TRUTH: two flow files, or two folders of them with the same names.

    Scores are pooled over all pixels with known ground truth. A missing prediction is an error.
    """
    files = match_files(prediction, truth)
    sums, unknown = score_files(files, occlusions=occlusions)
    scores = {group: errors.to_metrics() for group, errors in sums.items()}
    others = count_others(truth)
    if as_json:
        about = {"fields": len(files), "other_files": others, "pixels_without_truth": unknown}
        record = about | scores
        click.echo(json.dumps(record, indent=1))
        return
    fields = f"{len(files)} flow field{'s' * (len(files) > 1)}"
    click.echo(f"{fields}; EPE in pixels; shares below 1, 3 and 5 px in %")
    if others:
        click.echo(f"left out: {others} files of {truth} that are no flow files")
    if unknown:
        click.echo(f"left out: {unknown:,} pixels without ground truth")
    click.echo(f"{'':26}{'pixels':>12}{'EPE':>9}{'1px':>8}{'3px':>8}{'5px':>8}{'Fl':>8}")
    for group, score in scores.items():
        if score["pixels"]:
            shares = "".join(f"{100 * score[name]:8.2f}" for name in ("px1", "px3", "px5", "fl"))
            click.echo(f"{GROUP_LABELS[group]:26}{score['pixels']:>12,}{score['epe']:9.3f}{shares}")
