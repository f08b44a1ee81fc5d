"""``gma flow``: two images to a flow file."""

from pathlib import Path
from typing import Unpack

import click
import numpy as np

from gma_lib import report
from gma_lib.cli.options import (
    NOISE,
    PATH,
    Network,
    describe_refinement,
    network_options,
    refuse_existing,
    remark,
)
from gma_lib.flow.files import check_flow_suffix, write_flow_file
from gma_lib.flow.images import read_photo
from gma_lib.infer.estimator import load

FIGURE_SUFFIXES = (".png", ".jpg", ".svg", ".pdf")


@click.command("flow")
@click.argument("frame1", type=PATH)
@click.argument("frame2", type=PATH)
@click.option(
    "-o",
    "--output",
    required=True,
    type=PATH,
    help="Flow file: .flo, .npy, or .png (KITTI's 16-bit format).",
)
@click.option(
    "--figure", type=PATH, help="Also draw the frame and its flow (.png, .jpg, .svg or .pdf)."
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@network_options(updates=12)
def main(
    frame1: Path,
    frame2: Path,
    output: Path,
    figure: Path | None,
    overwrite: bool,
    **network: Unpack[Network],
) -> None:
    """Flow from FRAME1 to FRAME2, two images of one size."""
    check_flow_suffix(output)
    if figure is not None and figure.suffix.lower() not in FIGURE_SUFFIXES:
        raise ValueError(f"{figure}: a figure ends in {', '.join(FIGURE_SUFFIXES)}")
    if figure == output:
        raise ValueError(f"{figure}: the flow and its figure need two names")
    for path in filter(None, (output, figure)):
        refuse_existing(path, overwrite)
    estimator = load(say=remark, **network)
    (image1, remarks1), (image2, remarks2) = read_photo(frame1), read_photo(frame2)
    for sentence in remarks1 + remarks2:
        remark(sentence)
    flow, noise = estimator(image1, image2), "" if estimator.trained else NOISE
    write_flow_file(output, flow)
    speed = np.hypot(*flow)
    click.echo(
        f"{output}: {flow.shape[2]}x{flow.shape[1]} px, mean speed {speed.mean():.2f} px, "
        f"fastest {speed.max():.2f} px{noise}{describe_refinement(network)}"
    )
    if figure is not None:
        drawn = report.draw_flow(image1, flow, title=f"{frame1.name} to {frame2.name}{noise}")
        report.save_figure(drawn, figure)
        click.echo(f"{figure}: the figure")
