"""Flow for Sintel's benchmark: the test split of both passes, in the folder that the data set's
``bundler`` takes.

Pairs start warm, as the authors submit (https://github.com/zacjiang/GMA at 2f1fd29,
``evaluate.py``, ``create_sintel_submission``): 32 updates from the flow of the pair before in the
scene, moved along itself; the first pair of a scene starts from zero.
"""

from concurrent.futures import Executor
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from gma_lib.data.complete import require_all_bits, require_same_pairs
from gma_lib.data.padding import Padding
from gma_lib.data.pair import FramePair, require_upright
from gma_lib.data.sintel import PASSES, find_pairs, frame_size
from gma_lib.flow import check_whole, count_flow_bytes, read_image_size, read_photo, write_flow
from gma_lib.infer.estimator import Estimator
from gma_lib.infer.means import describe_all_means, find_gpu
from gma_lib.infer.shards import Shard, list_frames
from gma_lib.infer.views import View
from gma_lib.runs import (
    Record,
    Track,
    hash_file,
    hash_value,
    pass_silently,
    read_json,
    require_free_space,
    write_json,
)
from gma_lib.runs.clusters import compute_shards
from gma_lib.runs.ledger import Ledger
from gma_lib.runs.leftovers import remove_leftovers
from gma_lib.runs.parcels import Sent, place_files

UPDATES = 32
PAIRS_IN_TEST_SPLIT = 552  # per pass, in the complete data set: 564 frames of 12 scenes


def submission_path(folder: Path, pair: FramePair) -> Path:
    """``<folder>/<pass>/<scene>/frameNNNN.flo``, numbered as the pair's first frame."""
    return Path(folder) / pair.pass_name / pair.scene / f"frame{pair.number:04d}.flo"


def locate_beside(folder: Path, suffix: str) -> Path:
    """``<folder><suffix>``: the folder itself holds nothing but flow."""
    folder = Path(folder).absolute()
    return folder.with_name(f"{folder.name}{suffix}")


def write_submission(
    root: Path,
    folder: Path,
    estimator: Estimator,
    *,
    split: str = "test",
    warm: bool = True,
    executor: Executor | None = None,
    track: Track = pass_silently,
) -> list[FramePair]:
    """Write the flow of every pair of both passes, check the result, and return the pairs.

    An interrupted call can be repeated: it continues with the first incomplete scene. A scene is
    computed as a whole, because its pairs depend on each other. ``<folder>.json`` records the
    settings, the weights, the frames and what computes; a folder that was made with others is
    refused. ``<folder>.jsonl`` records each file that was written: one that has changed since is
    computed again.

    Parameters
    ----------
    root
        The folder that holds Sintel's ``test``.
    folder
        The folder to give to ``bundler``.
    estimator
        It must not scale frames: the benchmark scores full size.
    split
        ``training`` for a trial run.
    executor
        Computes scenes. A worker reads its own copies of the frames, or is sent them, and builds
        its own model. None: this process computes.
    """
    pairs = [
        pair for pass_name in PASSES for pair in find_pairs(root, split=split, pass_name=pass_name)
    ]
    height, width = _require_whole_frames(pairs, estimator)
    frames = {path: hash_file(path) for path in list_frames(pairs)}
    folder, ledger = Path(folder), Ledger(locate_beside(folder, ".jsonl"))
    key = _claim(folder, pairs, frames, estimator, {"warm": warm, "split": split})
    files = {pair.name: submission_path(folder, pair) for pair in pairs}
    whole = ledger.find_whole(dict.fromkeys(files, key), files)
    scenes = [list(group) for _, group in groupby(pairs, key=attrgetter("pass_name", "scene"))]
    todo = [scene for scene in scenes if any(pair.name not in whole for pair in scene)]
    require_free_space(folder, sum(map(len, todo)) * count_flow_bytes(height, width))
    if executor and todo:
        estimator.build(height, width)
    shards = [Shard(scene, {path: frames[path] for path in list_frames(scene)}) for scene in todo]
    compute = partial(compute_scene, estimator, warm, find_gpu(estimator.backend))
    answers = compute_shards(executor, compute, shards)
    for shard, flows in track(answers, label="submission", unit="scene", total=len(shards)):
        for pair, flow in zip(shard.pairs, flows, strict=True):
            write_flow(files[pair.name], flow)
            ledger.note(pair.name, key, files[pair.name])
    check_submission(pairs, folder)
    return pairs


def compute_scene(
    estimator: Estimator, warm: bool, gpu: str | None, scene: Shard, sent: Sent
) -> list[np.ndarray]:
    """In a worker: the flow of a scene; ValueError if it has another GPU than ``gpu``."""
    if (found := find_gpu(estimator.backend)) != gpu:
        raise ValueError(f"a worker computes on {found}, not {gpu}: start it on a GPU like that")
    with place_files(scene.files, sent) as locate:
        frames = [read_photo(locate(path))[0] for path in scene.files]
        for path, digest in scene.files.items():
            if hash_file(locate(path)) != digest:
                raise ValueError(f"{path} changed since this began: give another folder")
        return list(estimator.along(frames, warm=warm))


def _require_whole_frames(pairs: list[FramePair], estimator: Estimator) -> tuple[int, int]:
    """Return the one size of all frames; raise where they are not as the benchmark stores them, or
    would be scaled.
    """
    require_same_pairs(pairs)
    require_all_bits(pairs)
    for path in list_frames(pairs):
        require_upright(path)
    height, width = frame_size(pairs)
    if View.fit(height, width, estimator.max_pixels).is_scaled:
        rows, columns = Padding.for_size(height, width).padded_size(height, width)
        raise ValueError(
            f"frames of {width}x{height} px, {rows * columns} pixels with their padding, would be "
            "computed smaller; raise max_pixels to that for a submission"
        )
    return height, width


def check_submission(pairs: list[FramePair], folder: Path) -> None:
    """Raise unless the folder holds exactly one whole flow file per pair.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is cut short, is no flow, has another size than its frame, or belongs to no pair.
    """
    missing = [path for pair in pairs if not (path := submission_path(folder, pair)).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} files are missing in {folder} (first: {missing[0]})"
        )
    for pair in pairs:
        path = submission_path(folder, pair)
        wanted = count_flow_bytes(*read_image_size(pair.image1))
        if path.stat().st_size != wanted:
            raise ValueError(
                f"{path}: {path.stat().st_size} bytes where the flow of its frame has {wanted}"
            )
        check_whole(path)
    refuse_foreign(pairs, folder)


def refuse_foreign(pairs: list[FramePair], folder: Path) -> None:
    """Raise ValueError if the folder holds a file that belongs to no pair."""
    expected = {submission_path(folder, pair) for pair in pairs}
    foreign = sorted(
        path for path in Path(folder).rglob("*") if path.is_file() and path not in expected
    )
    if foreign:
        raise ValueError(
            f"{folder} holds other things too (first: {foreign[0]}); give a new folder"
        )


def _claim(
    folder: Path,
    pairs: list[FramePair],
    frames: dict[Path, str],
    estimator: Estimator,
    options: Record,
) -> str:
    """Record the folder's settings and frames (path -> SHA-256); return their digest, or ValueError
    if it was made with others.
    """
    for place in {submission_path(folder, pair).parent for pair in pairs}:
        if place.is_dir():
            remove_leftovers(place)  # of a call that was killed while it wrote
    refuse_foreign(pairs, folder)
    digests = {pair.name: [frames[pair.image1], frames[pair.image2]] for pair in pairs}
    settings = estimator.to_record() | options | {"frames_sha256": hash_value(digests)}
    settings |= describe_all_means(estimator.backend, estimator.precision, estimator.threads)
    record = locate_beside(folder, ".json")
    written = read_json(record, made_by="gma submit") if record.is_file() else None
    if written is None and not any(path.is_file() for path in folder.rglob("*")):
        write_json(record, {"settings": settings})
    elif written is None or written.get("settings") != settings:
        raise ValueError(
            f"{folder} was made with other settings, weights or frames, or by another version, "
            f"library, processor or GPU ({record.name} says which); give another folder"
        )
    return hash_value(settings)
