"""``gma video``: a clip to a folder of flow files, and a movie of them."""

import os
from itertools import chain
from pathlib import Path
from typing import Unpack

import click

from gma_lib.cli.options import PATH, Network, network_options, refuse_used_folder, remark
from gma_lib.data.clips import count_frames, read_clip, write_movie
from gma_lib.flow import choose_radius, flow_to_rgb, read_flow, write_flow
from gma_lib.infer.estimator import load
from gma_lib.runs import track, write_json


@click.command("video")
@click.argument("clip", type=PATH)
@click.option(
    "-o", "--output", required=True, type=PATH, help="Folder for frame_NNNN.flo; new or empty."
)
@click.option(
    "--movie",
    is_flag=True,
    help="Also write the flow's colours as flow.mp4, with one radius throughout.",
)
@click.option("--fps", default=25.0, show_default=True, help="Frames per second of the movie.")
@click.option("--warm", is_flag=True, help="Start each pair from the flow before it.")
@network_options(updates=12)
def main(
    clip: Path, output: Path, movie: bool, fps: float, warm: bool, **network: Unpack[Network]
) -> None:
    """Flow along CLIP, a folder of images or a video; each frame is encoded once."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's complaints name no file
    # renamed when it is whole
    partial = output.absolute().with_name(f"{output.absolute().name}.partial")
    for folder in (output, partial):
        refuse_used_folder(folder)
    frames = count_frames(clip)
    estimator = load(say=remark, **network)
    flows = estimator.along(read_clip(clip), warm=warm)
    first = next(flows)  # may build a model, which the rate shown should not count
    files: list[Path] = []
    try:
        for field in track(
            chain([first], flows), label="flow", unit="pair", total=frames - 1 if frames else None
        ):
            files.append(partial / f"frame_{len(files) + 1:04d}.flo")
            write_flow(files[-1], field)
    except BaseException:
        if files:
            pairs = f"{len(files)} pair{'s' * (len(files) > 1)}"
            remark(f"stopped: {partial} holds the flow of the first {pairs}")
        raise
    if frames and len(files) < frames - 1:
        remark(f"{clip} declares {frames} frames, of which {len(files) + 1} could be decoded")
    if movie:
        _write_flow_movie(partial / "flow.mp4", files, fps)
    record = {"clip": clip.name, "pairs": len(files), "warm": warm}
    write_json(partial / "flow.json", record | estimator.to_record())
    partial.rename(output)
    click.echo(f"{output}: flow of {len(files)} pairs{', flow.mp4' if movie else ''}")


def _write_flow_movie(path: Path, files: list[Path], frames_per_second: float) -> None:
    radius = max(choose_radius(read_flow(file)) for file in files)
    pictures = (flow_to_rgb(read_flow(file), radius) for file in files)
    write_movie(path, pictures, frames_per_second=frames_per_second)
    remark(f"{path}: colours up to {radius:.0f} px per frame")
