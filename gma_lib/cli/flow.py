"""``gma flow``: pairs of images to flow files."""

import glob
from pathlib import Path
from typing import Unpack

import click
import numpy as np
from click.core import ParameterSource

from gma_lib import report
from gma_lib.cli.options import (
    FLOW_FORMAT,
    NOISE,
    PATH,
    Network,
    describe_refinement,
    detail,
    network_options,
    output_options,
    refuse_existing,
    remark,
    tell,
)
from gma_lib.data.clips import match_images, read_pair_list
from gma_lib.flow import check_flow_suffix, read_photo, write_flow_file, write_mask
from gma_lib.flow.consistency import check_warpable, find_occluded, warp_to_first
from gma_lib.flow.images import write_frame
from gma_lib.infer.estimator import Estimator, load
from gma_lib.runs import Record
from gma_lib.runs.files import name_file
from gma_lib.runs.progress import show_waiting

FIGURE_SUFFIXES = (".png", ".jpg", ".svg", ".pdf")


@click.command("flow", epilog="Example: gma flow left right -o flows --check")
@click.argument("frames", type=PATH, nargs=-1, metavar="[FRAME1 FRAME2]")
@click.option(
    "--list", "listed", type=PATH, help="File with two image paths per line, instead of frames."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=PATH,
    help="Flow file (.flo, .npy or KITTI's .png), or a folder for many pairs.",
)
@FLOW_FORMAT
@click.option("--figure", type=PATH, help="Also draw frame and flow (.png, .jpg, .svg or .pdf).")
@click.option(
    "--check",
    is_flag=True,
    help="Also write backward flow, occlusion mask and FRAME2 warped to FRAME1.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@output_options
@network_options(updates=12)
def main(
    frames: tuple[Path, ...],
    listed: Path | None,
    output: Path,
    kind: str,
    figure: Path | None,
    check: bool,
    overwrite: bool,
    **network: Unpack[Network],
) -> None:
    """Compute the flow from FRAME1 to FRAME2: two images of one size, two folders of images with
    the same names, or two patterns in quotes.
    """
    pairs, is_one = _list_pairs(frames, listed)
    source = click.get_current_context().get_parameter_source("kind")
    if is_one and source != ParameterSource.DEFAULT:
        raise click.UsageError("--format is for many pairs; the flow of one is named by its suffix")
    outputs = [output] if is_one else [output / f"{one.stem}.{kind}" for one, _ in pairs]
    check_flow_suffix(outputs[0])
    if figure is not None and figure.suffix.lower() not in FIGURE_SUFFIXES:
        raise ValueError(f"{name_file(figure)}: a figure ends in {', '.join(FIGURE_SUFFIXES)}")
    if figure is not None and not is_one:
        raise ValueError(f"{name_file(figure)}: a figure is for one pair")
    results = [file for path in outputs for file in (_name_checks(path) if check else [path])]
    results += [figure] if figure else []
    refuse_existing(results, [frame for pair in pairs for frame in pair], overwrite)
    estimator = load(say=remark, **network)
    detail(repr(estimator))
    ending = describe_refinement(network)
    for (frame1, frame2), path in zip(pairs, outputs, strict=True):
        _compute(estimator, frame1, frame2, path, figure, check, ending)
        ending = ending if network["refine"] else ""  # advice, once


def _list_pairs(
    frames: tuple[Path, ...], listed: Path | None
) -> tuple[list[tuple[Path, Path]], bool]:
    """The pairs of images, and whether they were given as one."""
    if listed is not None and not frames:
        return read_pair_list(listed), False
    if len(frames) > 2 and listed is None:
        raise ValueError(
            f"{len(frames)} images given: for the flow along a sequence run gma video FOLDER; for "
            "many pairs give two folders, two quoted patterns, or --list"
        )
    if len(frames) != 2 or listed is not None:
        raise click.UsageError("give FRAME1 and FRAME2, or --list")
    first, second = frames
    are_folders = first.is_dir() and second.is_dir()
    if are_folders or (glob.has_magic(str(first)) and not first.exists()):
        return match_images(first, second, say=remark), False
    return [(first, second)], True


def _name_checks(output: Path) -> list[Path]:
    """The flow file, and those that ``--check`` adds."""
    endings = (f".backward{output.suffix}", ".occluded.png", ".warped.png")
    return [output, *(output.with_name(f"{output.stem}{ending}") for ending in endings)]


def _compute(
    estimator: Estimator,
    frame1: Path,
    frame2: Path,
    output: Path,
    figure: Path | None,
    check: bool,
    ending: str,
) -> None:
    (image1, remarks1), (image2, remarks2) = read_photo(frame1), read_photo(frame2)
    for sentence in remarks1 + remarks2:
        remark(sentence)
    if check:
        check_warpable(*image1.shape[-2:])
    with show_waiting(f"{frame1.name} to {frame2.name}"):
        flow = estimator(image1, image2)
        seconds = estimator.last_seconds
        backward = estimator(image2, image1) if check else None
    noise = "" if estimator.trained else NOISE
    write_flow_file(output, flow)
    speed = np.hypot(*flow)
    record: Record = {
        "flow": str(output),
        "width": flow.shape[2],
        "height": flow.shape[1],
        "mean_speed_px": float(speed.mean()),
        "fastest_px": float(speed.max()),
        "seconds": seconds,
        "device": estimator.device,
        **estimator.to_record(),
    }
    line = (
        f"{name_file(output)}: {flow.shape[2]}x{flow.shape[1]} px, "
        f"mean speed {speed.mean():.2f} px, fastest {speed.max():.2f} px{noise}; {seconds:.1f} s "
        f"on {estimator.device} in {estimator.precision}{ending}"
    )
    if backward is not None:
        found = _write_checks(output, image1, image2, flow, backward)
        record |= found
        line += f"; occluded {found['occluded']:.1%}"
        if found["warp_error"] is not None:
            line += f", warped {found['warp_error']:.1f} grey levels"
    tell(record, line)
    if figure is not None:
        drawn = report.draw_flow(image1, flow, title=f"{frame1.name} to {frame2.name}{noise}")
        report.save_figure(drawn, figure)
        remark(f"{name_file(figure)}: the figure")


def _write_checks(
    output: Path, image1: np.ndarray, image2: np.ndarray, flow: np.ndarray, backward: np.ndarray
) -> Record:
    """Write what ``--check`` adds; return the share of occluded pixels, and how far the warped
    frame is from the first in the others, in grey levels; None where all are occluded.
    """
    _, back, mask, warped = _name_checks(output)
    occluded, picture = find_occluded(flow, backward), warp_to_first(image2, flow)
    write_flow_file(back, backward)
    write_mask(mask, occluded)
    write_frame(warped, picture)
    visible = np.abs(picture - image1).mean(axis=0)[~occluded]
    return {
        "occluded": float(occluded.mean()),
        "warp_error": float(visible.mean()) if visible.size else None,
    }
