"""``gma``: flow from the command line. Exit codes: 0 done, 1 an input or a result is wrong, 2 the
command is, 130 interrupted.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import click

import gma_lib

# Heavy imports stay in the commands: `gma --help` answers at once, and `gma flow` of a known size
# never loads PyTorch.

PATH = click.Path(path_type=Path)
FIGURE_SUFFIXES = (".png", ".jpg", ".svg", ".pdf")


def _plain_errors(command: Callable) -> Callable:
    """Turn the library's errors into one line and exit code 1."""

    @functools.wraps(command)
    def wrapped(*arguments, **options):
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except (ValueError, OSError, MemoryError, ModuleNotFoundError, RuntimeError) as error:
            raise click.ClickException(str(error) or type(error).__name__) from error

    return wrapped


def _network_options(updates: int) -> Callable:
    """The options of every command that computes flow."""
    options = [
        click.option(
            "--checkpoint",
            default="gma-procedural",
            show_default=True,
            help="Shipped weights, or a .pth or .safetensors file.",
        ),
        click.option(
            "--updates",
            default=updates,
            show_default=True,
            type=click.IntRange(1),
            help="Refinements; more is slower.",
        ),
        click.option(
            "--backend",
            default="openvino",
            show_default=True,
            help="openvino, onnxruntime, torch or cuda.",
        ),
        click.option(
            "--precision",
            default="float32",
            show_default=True,
            help="bfloat16 or int8 where the processor has bfloat16; float16 on cuda.",
        ),
        click.option(
            "--max-pixels",
            default=None,
            type=click.IntRange(128 * 128),
            help="Larger frames are computed smaller.  [default: what needs 4 GB, 1280x720]",
        ),
    ]
    return lambda command: functools.reduce(
        lambda wrapped, option: option(wrapped), reversed(options), command
    )


def _estimator(checkpoint: str, updates: int, backend: str, precision: str, max_pixels: int | None):
    from gma_lib.infer.estimator import load

    return load(
        checkpoint,
        num_updates=updates,
        backend=backend,
        precision=precision,
        max_pixels=max_pixels,
        say=_say,
    )


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def _refuse_existing(path: Path | None, overwrite: bool) -> None:
    if path is None:
        return
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; name another file or add --overwrite")
    _refuse_unwritable(path)


def _refuse_used_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name another one")
    _refuse_unwritable(folder)


def _refuse_unwritable(path: Path) -> None:
    """Raise before anything is computed that could not be written."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: {folder} is no folder that this user may write to")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(gma_lib.__version__, prog_name="gma")
def main() -> None:
    """Optical flow with GMA (Global Motion Aggregation): where every pixel of one frame is found in
    the next.
    """
    from gma_lib.runs.progress import show_messages

    show_messages()


@main.command()
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
@_network_options(updates=12)
@_plain_errors
def flow(
    frame1: Path, frame2: Path, output: Path, figure: Path | None, overwrite: bool, **network
) -> None:
    """Flow from FRAME1 to FRAME2, two images of one size."""
    import numpy as np

    from gma_lib.flow.files import check_flow_suffix, read_photo, write_flow_file

    check_flow_suffix(output)
    if figure is not None and figure.suffix.lower() not in FIGURE_SUFFIXES:
        raise ValueError(f"{figure}: a figure ends in {', '.join(FIGURE_SUFFIXES)}")
    if figure == output:
        raise ValueError(f"{figure}: the flow and its figure need two names")
    for path in (output, figure):
        _refuse_existing(path, overwrite)
    (image1, remarks1), (image2, remarks2) = read_photo(frame1), read_photo(frame2)
    for remark in remarks1 + remarks2:
        _say(remark)
    computed = _estimator(**network)(image1, image2)
    write_flow_file(output, computed)
    speed = np.hypot(*computed)
    click.echo(
        f"{output}: {computed.shape[2]}x{computed.shape[1]} px, mean speed {speed.mean():.2f} px, fastest {speed.max():.2f} px"
    )
    if figure is not None:
        from gma_lib.report.figures import draw_flow, save_figure

        save_figure(draw_flow(image1, computed, title=f"{frame1.name} to {frame2.name}"), figure)
        click.echo(f"{figure}: the figure")


@main.command(short_help="Flow along a folder of images or a video.")
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
@_network_options(updates=12)
@_plain_errors
def video(clip: Path, output: Path, movie: bool, fps: float, warm: bool, **network) -> None:
    """Flow along CLIP, a folder of images or a video; each frame is encoded once."""
    from itertools import chain

    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # FFmpeg's own complaints name no file; ours do
    from gma_lib.data.clips import clip_length, read_clip
    from gma_lib.flow.files import write_flow
    from gma_lib.runs.progress import track
    from gma_lib.runs.records import write_json

    making = output.absolute().with_name(
        f"{output.absolute().name}.partial"
    )  # renamed when it is whole
    for folder in (output, making):
        _refuse_used_folder(folder)
    frames = clip_length(clip)
    estimator = _estimator(**network)
    flows = estimator.along(read_clip(clip), warm=warm)
    first = next(
        flows
    )  # makes the model where there is none yet, which is no part of the rate shown
    files: list[Path] = []
    try:
        for field in track(
            chain([first], flows), label="flow", unit="pair", total=frames - 1 if frames else None
        ):
            files.append(making / f"frame_{len(files) + 1:04d}.flo")
            write_flow(files[-1], field)
    except BaseException:
        if files:
            _say(
                f"stopped: {making} holds the flow of the first {len(files)} pair{'s' * (len(files) > 1)}"
            )
        raise
    if frames and len(files) < frames - 1:
        _say(f"{clip} declares {frames} frames, of which {len(files) + 1} could be decoded")
    if movie:
        _write_movie(making / "flow.mp4", files, fps)
    write_json(
        making / "flow.json",
        {"clip": clip.name, "pairs": len(files), "warm": warm, **estimator.described()},
    )
    making.rename(output)
    click.echo(f"{output}: flow of {len(files)} pairs{', flow.mp4' if movie else ''}")


def _write_movie(path: Path, files: list[Path], frames_per_second: float) -> None:
    from gma_lib.data.clips import write_movie
    from gma_lib.flow.files import read_flow
    from gma_lib.report.figures import flow_radius, flow_to_rgb

    radius = max(flow_radius(read_flow(file)) for file in files)
    write_movie(
        path,
        (flow_to_rgb(read_flow(file), radius) for file in files),
        frames_per_second=frames_per_second,
    )
    _say(f"{path}: colours up to {radius:.0f} px per frame")


@main.command(short_help="Score flow files against ground truth.")
@click.argument("prediction", type=PATH)
@click.argument("truth", type=PATH)
@click.option(
    "--occlusions",
    type=PATH,
    help="Mask, or folder of masks named like the truth; white is occluded.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: shares from 0 to 1, EPE in pixels."
)
@_plain_errors
def evaluate(prediction: Path, truth: Path, occlusions: Path | None, as_json: bool) -> None:
    """Score PREDICTION against TRUTH: two flow files, or two folders of them with the same names.

    Pooled over all pixels whose truth is known. A missing prediction is an error.
    """
    import json

    from gma_lib.evaluate.any_files import matched_files, score_files

    files = matched_files(prediction, truth)
    sums, unknown = score_files(files, occlusions=occlusions)
    scores = {group: errors.to_metrics() for group, errors in sums.items()}
    if as_json:
        click.echo(
            json.dumps({"fields": len(files), "pixels_without_truth": unknown, **scores}, indent=1)
        )
        return
    from gma_lib.evaluate.evaluation import GROUP_LABELS

    click.echo(
        f"{len(files)} flow field{'s' * (len(files) > 1)}; EPE in pixels; shares below 1, 3 and 5 px in %"
    )
    if unknown:
        click.echo(f"left out: {unknown:,} pixels whose truth is not known")
    click.echo(f"{'':26}{'pixels':>12}{'EPE':>9}{'1px':>8}{'3px':>8}{'5px':>8}{'Fl':>8}")
    for group, score in scores.items():
        if score["pixels"]:
            shares = "".join(f"{100 * score[name]:8.2f}" for name in ("px1", "px3", "px5", "fl"))
            click.echo(f"{GROUP_LABELS[group]:26}{score['pixels']:>12,}{score['epe']:9.3f}{shares}")


@main.command()
@click.option("-o", "--output", required=True, type=PATH, help="Folder for gma.onnx; new or empty.")
@click.option(
    "--height", required=True, type=int, help="Of the padded frame: a multiple of 8, at least 128."
)
@click.option("--width", required=True, type=int)
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--checkpoint",
    default="gma-procedural",
    show_default=True,
    help="Shipped weights, or a .pth or .safetensors file.",
)
@click.option(
    "--updates",
    default=6,
    show_default=True,
    type=click.IntRange(1),
    help="Refinements, unrolled into the file.",
)
@click.option(
    "--lookup",
    default="matmul",
    show_default=True,
    help="matmul, rows, gather or grid_sample (opset 16 and above).",
)
@click.option("--opset", default=13, show_default=True, type=int)
@click.option(
    "--split",
    is_flag=True,
    help="Also its parts gma_features, gma_context and gma_refine, for sequences.",
)
@_plain_errors
def export(
    output: Path,
    height: int,
    width: int,
    batch_size: int,
    checkpoint: str,
    updates: int,
    lookup: str,
    opset: int,
    split: bool,
) -> None:
    """Write the network as ONNX for one frame size."""
    from gma_lib.export.trace import export_split, export_whole
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.deploy import to_deploy_form
    from gma_lib.network.model import GMAConfig, check_sides

    check_sides(height, width)
    _refuse_used_folder(output)
    path = Path(checkpoint).expanduser()
    model, weights = load_model(
        path.absolute() if path.is_file() else checkpoint,
        GMAConfig(num_updates=updates, lookup=lookup),
    )
    model = to_deploy_form(model)
    size = {"height": height, "width": width, "batch_size": batch_size}
    files = [export_whole(model, output / "gma.onnx", **size, checkpoint=weights, opset=opset)]
    if split:
        files += export_split(model, output, **size, checkpoint=weights, opset=opset)
    for file in files:
        click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    click.echo(weights.note)


@main.command(short_help="Flow for Sintel's benchmark, every file checked.")
@click.argument("sintel", type=PATH)
@click.option(
    "-o", "--output", required=True, type=PATH, help="Folder that Sintel's bundler is given."
)
@click.option("--split", default="test", show_default=True, help="training, to try it out.")
@click.option("--cold", is_flag=True, help="Start every pair from zero flow.")
@_network_options(updates=32)
@_plain_errors
def submit(sintel: Path, output: Path, split: str, cold: bool, **network) -> None:
    """Flow for Sintel's benchmark from the data set's folder SINTEL: both passes, warm start, every
    file checked.
    """
    from gma_lib.infer.submission import PAIRS_IN_TEST_SPLIT, write_submission
    from gma_lib.runs.progress import track

    pairs = write_submission(
        sintel.absolute(), output, _estimator(**network), split=split, warm=not cold, track=track
    )
    click.echo(f"{output}: {len(pairs)} flow files, each there and of the right size")
    if split == "test" and len(pairs) != 2 * PAIRS_IN_TEST_SPLIT:
        _say(f"not the complete test split: {len(pairs)} of {2 * PAIRS_IN_TEST_SPLIT} pairs")


@main.command()
def doctor() -> None:
    """Say what this machine has and lacks."""
    from gma_lib.doctor import main as print_findings

    print_findings()


if __name__ == "__main__":
    main()
