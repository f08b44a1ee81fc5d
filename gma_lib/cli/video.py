"""``gma video``: a clip to a folder of flow files, and a movie of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import wraps
from itertools import chain, count, islice
from pathlib import Path
from typing import Unpack

import click
import numpy as np

from gma_lib.cli.options import (
    FLOW_FORMAT,
    NOISE,
    PATH,
    FiniteRange,
    Network,
    describe_refinement,
    detail,
    network_options,
    output_options,
    refuse_used_folder,
    remark,
    tell,
)
from gma_lib.data.clips import count_frames, hash_clip, name_images, read_clip
from gma_lib.data.videos import choose_encoder, write_movie
from gma_lib.flow import (
    choose_radius,
    flow_to_rgb,
    read_flow_file,
    to_picture,
    write_flow_file,
)
from gma_lib.infer.estimator import Estimator, load
from gma_lib.infer.means import describe_all_means
from gma_lib.runs import Record, hash_value, read_json, reading, track, write_atomically, write_json
from gma_lib.runs.files import make_plain
from gma_lib.runs.ledger import NAME as LEDGER
from gma_lib.runs.ledger import Ledger
from gma_lib.runs.leftovers import remove, remove_leftovers
from gma_lib.runs.processes import lock_path
from gma_lib.runs.progress import show_waiting

FRAMES_PER_SECOND = 25.0


def select_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which some frames of a clip are chosen, as one slice."""

    @click.option("--start", default=1, type=click.IntRange(1), help="First frame.  [default: 1]")
    @click.option("--end", type=click.IntRange(2), help="Last frame.  [default: the clip's]")
    @click.option("--stride", default=1, type=click.IntRange(1), help="Use every n-th frame.")
    @wraps(command)
    def collected(*, start: int, end: int | None, stride: int, **others: object) -> None:
        command(select=slice(start - 1, end, stride), **others)

    return collected


@click.command("video", epilog="Example: gma video clip.mp4 -o flows --movie --warm")
@click.argument("clip", type=PATH)
@click.option(
    "-o",
    "--output",
    required=True,
    type=PATH,
    help="Folder, new or empty, for frame_NNNN.flo (the pair's first frame, counted from 1).",
)
@FLOW_FORMAT
@click.option(
    "--movie",
    is_flag=True,
    help="Also write flow.mp4, the flow in colours.",
)
@click.option("--above", is_flag=True, help="In the movie, put each frame above its flow.")
@click.option(
    "--fps",
    type=FiniteRange(0.01, 1000),
    help="Movie's frame rate.  [default: as clip, or 25]",
)
@click.option("--warm", is_flag=True, help="Start each pair from the previous pair's flow.")
@output_options
@select_options
@network_options(updates=12)
def main(
    clip: Path,
    output: Path,
    kind: str,
    movie: bool,
    above: bool,
    fps: float | None,
    warm: bool,
    select: slice,
    **network: Unpack[Network],
) -> None:
    """Compute the flow along CLIP, a video or a folder of images.

    Repeat the command to resume an interrupted run.
    """
    if (above or fps is not None) and not movie:
        raise click.UsageError("--above and --fps are about --movie: give it too")
    refuse_used_folder(output)
    frames_there = count_frames(clip, select)
    partial = output.absolute().with_name(f"{output.absolute().name}.partial")  # until whole
    estimator = load(say=remark, **network)
    made_from = {"clip": clip.name, "clip_sha256": hash_clip(clip), "format": kind, "warm": warm}
    made_from |= {"start": select.start + 1, "stride": select.step} | estimator.to_record()
    means = describe_all_means(estimator.backend, estimator.precision)
    times: list[Fraction] = []
    frames = read_clip(clip, select=select, times=times, say=remark)
    detail(repr(estimator))
    if movie:  # no flow is computed for a movie that cannot be written
        first = next(frames)
        height, width = first.shape[1:]
        choose_encoder(height * (1 + above), width)
        frames = chain([first], frames)
    click.get_current_context().with_resource(_open_partial(partial, made_from, means))

    def name(index: int) -> Path:
        return partial / f"frame_{select.start + 1 + index * select.step:04d}.{kind}"

    most = select.stop and max(0, len(range(select.stop)[select]) - 1)
    files, seconds = _compute(estimator, frames, name, made_from, frames_there, most)
    for beyond in {*partial.glob(f"frame_*.{kind}")} - {*files}:  # of a run with a later end
        beyond.unlink()
    _require_unchanged(clip, made_from, partial)
    stored = [float(time) for time in times]
    if movie:
        rate = Fraction(fps or FRAMES_PER_SECOND).limit_denominator(10**4)
        even = [number / rate for number in range(len(files) + 1)]
        shown_above = read_clip(clip, select=select, say=detail) if above else None
        times = even if fps or not times else times
        _write_flow_movie(partial / "flow.mp4", files, times, shown_above)
    record = made_from | means | {"pairs": len(files), "end": select.stop, "times_s": stored}
    record["images"] = _name_images(clip, select, files)
    write_json(partial / "flow.json", record)
    partial.rename(output)
    _forget_resuming(output)
    extra = (", flow.mp4" if movie else "") + ("" if estimator.trained else NOISE)
    line = f"{output}: flow of {len(files)} pairs{extra}; {len(seconds)} computed in "
    line += f"{sum(seconds):.1f} s" + (f" on {estimator.device}" if seconds else "")
    line += f" in {estimator.precision}{describe_refinement(network)}"
    told = {"computed": len(seconds), "seconds": sum(seconds), "device": estimator.device}
    tell({"output": str(output)} | record | told, line)


def _require_unchanged(clip: Path, made_from: Record, partial: Path) -> None:
    if hash_clip(clip) != made_from["clip_sha256"]:
        raise ValueError(f"{clip} changed while it was read; delete {partial} and run this again")


def _name_images(clip: Path, select: slice, files: list[Path]) -> list[str]:
    """Return a folder's image names in order; tell where a flow file has another's name."""
    images = name_images(clip, select)
    stems = [Path(image).stem for image in images]
    names = [file.stem for file in files]
    if {*stems} & {*names} and stems[: len(names)] != names:
        remark(
            "flow files are numbered by the order of the images, not by their names: "
            f"{files[0].name} is the flow from {images[0]} to {images[1]}. flow.json lists them"
        )
    return images


def _forget_resuming(folder: Path) -> None:
    for name in ("warm.npz", LEDGER):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _open_partial(partial: Path, made_from: Record, means: Record) -> Iterator[None]:
    """Hold a folder alone: begin it, or go on with one that was begun in the same way, and by the
    same ``means``.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    with lock_path(partial.with_name(f".{partial.name}.lock"), wait=False):
        _begin(partial, made_from, means)
        yield


def _begin(partial: Path, made_from: Record, means: Record) -> None:
    record = partial / "flow.json"
    if not record.is_file():
        partial.mkdir(parents=True, exist_ok=True)
        remove_leftovers(partial)  # of a run that was killed before it had begun
        refuse_used_folder(partial)
        write_json(record, made_from | means)
        return
    found = read_json(record, made_by="gma video")
    for key, wanted in made_from.items():
        if found.get(key) != make_plain(wanted):
            raise ValueError(
                f"{partial} was begun with {key} {found.get(key)!r}, not {make_plain(wanted)!r}; "
                "repeat that command, or delete the folder"
            )
    if differing := [key for key, one in means.items() if found.get(key) != make_plain(one)]:
        raise ValueError(
            f"{partial} was begun by another version, library, processor or GPU "
            f"({', '.join(differing)}): delete the folder, or go on where it was begun"
        )


def _compute(
    estimator: Estimator,
    frames: Iterator[np.ndarray],
    name: Callable[[int], Path],
    made_from: Record,
    total: int | None,
    most: int | None,
) -> tuple[list[Path], list[float]]:
    """Compute the flow that is missing; return all files, and the seconds of each pair that was
    computed.
    """
    seconds: list[float] = []
    folder, flow_low = name(0).parent, None
    key, warm = hash_value(made_from), made_from["warm"]
    ledger = Ledger(folder / LEDGER)
    done = _count_whole(ledger, name, key, most)
    if warm and done:
        done, flow_low = _read_state(folder / "warm.npz", key, done)
    if done:
        remark(f"{folder} holds {done} pairs already; computing the rest")
    try:
        flows = estimator.along(islice(frames, done, None), warm=warm, flow_low=flow_low)
        # The first may build a model, which the rate should not count
        with show_waiting("first pair"):
            first = list(islice(flows, 1))
        left = total - 1 - done if total else None
        shown = track(flows, label="flow", unit="pair", total=left, initial=len(first))
        for field in chain(first, shown):
            write_flow_file(name(done), field)
            ledger.note(name(done).name, key, name(done))
            seconds.append(estimator.last_seconds)
            done += 1
            if warm and estimator.last_flow_low is not None:
                _write_state(folder / "warm.npz", key, done, estimator.last_flow_low)
    except BaseException:
        if done:
            remark(
                f"stopped: {folder} holds the flow of {done} pair{'s' * (done > 1)}; "
                "the same command computes the rest"
            )
        else:
            remove(folder)
        raise
    return [name(index) for index in range(done)], seconds


def _count_whole(ledger: Ledger, name: Callable[[int], Path], key: str, most: int | None) -> int:
    """Number of pairs, from the first, whose file is what was written for this key."""
    files = {file.name: file for file in ledger.path.parent.glob("frame_*")}
    whole = ledger.find_whole(dict.fromkeys(files, key), files)
    missing = (index for index in islice(count(), most) if name(index).name not in whole)
    return next(missing, most or 0)


def _write_state(path: Path, key: str, done: int, flow_low: np.ndarray) -> None:
    with write_atomically(path) as state:
        np.savez(state, pairs=done, flow_low=flow_low, seal=_seal_state(key, done, flow_low))


def _read_state(path: Path, key: str, done: int) -> tuple[int, np.ndarray | None]:
    """Number of pairs after which a warm start can go on, and the flow that it needs; 0 where it
    was not written for this key, or was changed.
    """
    if path.is_file():
        with reading(path, "a warm start", "Delete its folder") as path, np.load(path) as state:
            pairs, flow_low = int(state["pairs"]), state["flow_low"]
            if pairs <= done and str(state["seal"]) == _seal_state(key, pairs, flow_low):
                return pairs, flow_low
    return 0, None


def _seal_state(key: str, done: int, flow_low: np.ndarray) -> str:
    return hash_value([key, done, flow_low.shape, flow_low.tobytes().hex()])


def _write_flow_movie(
    path: Path, files: list[Path], times: list[Fraction], frames: Iterator[np.ndarray] | None
) -> None:
    """Write the flow's colours as a movie, below the frames if there are some."""
    shown = track(files, label="colours", unit="pair")
    radius = max(choose_radius(read_flow_file(file)[0]) for file in shown)
    shown = track(files, label="movie", unit="frame")
    pictures = (flow_to_rgb(read_flow_file(file)[0], radius) for file in shown)
    if frames is not None:  # one more than flow
        both = zip(frames, pictures, strict=False)
        pictures = (np.vstack([to_picture(frame), picture]) for frame, picture in both)
    write_movie(path, pictures, times)
    remark(f"{path.name}: colours up to {radius:.3g} px per pair")
