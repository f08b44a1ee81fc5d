"""``gma show``: a flow file as an image."""

from pathlib import Path

import click
import numpy as np

from gma_lib.cli.options import (
    PATH,
    FiniteRange,
    detail,
    output_options,
    refuse_existing,
    remark,
    tell,
)
from gma_lib.flow import (
    PALETTES,
    check_picture_suffix,
    choose_radius,
    flow_to_rgb,
    read_flow_file,
    read_photo,
    write_frame,
)
from gma_lib.runs.files import BadFile, name_file


@click.command("show", epilog="Example: gma show flow.flo -o flow.png --over frame.jpg")
@click.argument("flow", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Image file, of the flow's size.")
@click.option(
    "--radius",
    type=FiniteRange(0, 1e9, min_open=True),
    help="Speed of full saturation, px.  [default: 99.5th percentile of the speeds]",
)
@click.option(
    "--palette",
    type=click.Choice(list(PALETTES)),
    default="middlebury",
    show_default=True,
    help="Colours; twilight suits colour-blind readers.",
)
@click.option("--over", type=PATH, help="Blend with this frame.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@output_options
def main(
    flow: Path,
    output: Path,
    radius: float | None,
    palette: str,
    over: Path | None,
    overwrite: bool,
) -> None:
    """Draw a FLOW file (.flo, .npy or KITTI .png): hue is direction, saturation is speed.

    Pixels without flow are black.
    """
    check_picture_suffix(output)
    refuse_existing([output], [flow, over] if over else [flow], overwrite)
    field, valid = read_flow_file(flow)
    if not valid.any():
        raise BadFile(flow, "its flow is known in no pixel", "flow to draw", "Name another file")
    field = np.where(valid, field, np.nan)
    radius = radius or choose_radius(field)
    detail(f"palette {palette}, frame {over or 'none'}, {(~valid).sum():,} pixels without flow")
    picture = flow_to_rgb(field, radius, palette).transpose(2, 0, 1).astype(np.float32)
    if over is not None:
        frame, remarks = read_photo(over)
        for sentence in remarks:
            remark(sentence)
        if frame.shape != picture.shape:
            raise ValueError(
                f"{name_file(over)} is {frame.shape[2]}x{frame.shape[1]} px and {name_file(flow)} "
                f"is {picture.shape[2]}x{picture.shape[1]} px; give the frame of this flow"
            )
        picture = (picture + frame) / 2
    write_frame(output, picture)
    height, width = picture.shape[1:]
    tell(
        {"image": str(output), "width": width, "height": height, "radius_px": radius},
        f"{name_file(output)}: {width}x{height} px, full saturation from {radius:.2f} px",
    )
