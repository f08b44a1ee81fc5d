"""From pairs of frames to flow files: streamed, in batches of a fixed size, resumable."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gma_lib.backends.base import AlongSequence, Backend, FolderBackend, SplitBackend
from gma_lib.data import FramePair, Padding, read_batch, write_guide_tensors
from gma_lib.flow import count_flow_bytes, read_image_size, write_flow
from gma_lib.infer.shards import StoredModel, borrow_backend, cut_shards
from gma_lib.runs import Record, Track, hash_file, hash_value, pass_silently, require_free_space
from gma_lib.runs.clusters import compute_shards

LEDGER = "ledger.jsonl"
ENTRY = ("pair", "key", "sha256")  # of the ledger: strings


@dataclass(frozen=True)
class InferenceSummary:
    """What a call of ``infer`` did.

    Attributes
    ----------
    pairs, computed, reused
        Pairs asked for, computed now, and found whole from an earlier call with the same key.
    filled
        Copies that filled the last batch of a shard up and were dropped again.
    seconds
        Duration of the call: reading, computing and writing.
    seconds_computing
        Time spent in the backend, summed over the workers.
    threads
        Of each worker, where a ``StoredModel`` sets them.
    workers
        Of an executor: name -> ``pairs``, ``seconds_computing``, ``pairs_per_second``.
    """

    pairs: int
    computed: int
    reused: int
    filled: int
    seconds: float
    seconds_computing: float
    threads: int | None = None
    workers: dict[str, Record] = field(default_factory=dict)

    def to_record(self) -> Record:
        rate = self.computed / self.seconds if self.computed else None
        return asdict(self) | {"pairs_per_second_end_to_end": rate}


class Written(NamedTuple):
    """A flow file: its pair, its SHA-256, the seconds in the backend, the process that wrote it."""

    pair: str
    sha256: str
    seconds: float
    process: str


def infer(
    pairs: list[FramePair],
    backend: Backend | StoredModel,
    folder: Path,
    *,
    batch_size: int,
    key: str,
    executor: Executor | None = None,
    track: Track = pass_silently,
) -> InferenceSummary:
    """Write the flow of every pair to ``folder/<pass>/<scene>/frame_NNNN.flo``, unpadded.

    A pair is computed only if its file is missing, was written under another key, or has changed
    since. A ledger in ``folder``, which this process alone writes, records every file, so an
    interrupted call can be repeated. Where the backend computes pair by pair and in parts, the
    features of a frame that two pairs of a shard share are computed once.

    Parameters
    ----------
    backend
        Anything with ``predict`` (see ``gma_lib.backends.Backend``), or where to load it from.
    batch_size
        Pairs per call; the last batch of a shard (``cut_shards``) is filled up by repeating its
        last pair, and cut again.
    key
        What the flow depends on besides the frames: model, backend, precision.
    executor
        Computes shards, and needs a ``StoredModel``; its workers read frames and model and write
        flow under the same paths as this process. None: this process computes.
    track
        ``gma_lib.runs.progress.track`` to show progress.
    """
    start = time.monotonic()
    folder = Path(folder)
    keys = {
        pair.name: hash_value([key, hash_file(pair.image1), hash_file(pair.image2)])
        for pair in pairs
    }
    opening: AbstractContextManager[Backend | StoredModel] = nullcontext(backend)
    if executor is None and isinstance(backend, StoredModel):
        opening = backend.load()
    with opening as opened:
        shards = _find_work(pairs, folder, keys, batch_size, isinstance(opened, FolderBackend))
        done = []
        for written in _compute(shards, opened, folder, batch_size, executor, track):
            _record(folder, written, keys[written.pair])
            done.append(written)
    return InferenceSummary(
        pairs=len(pairs),
        computed=len(done),
        reused=len(pairs) - len(done),
        filled=sum(-len(shard) % batch_size for shard in shards),
        seconds=time.monotonic() - start,
        seconds_computing=sum(written.seconds for written in done),
        threads=backend.threads if isinstance(backend, StoredModel) else None,
        workers={} if executor is None else _summarise_workers(done),
    )


def _find_work(
    pairs: list[FramePair], folder: Path, keys: dict[str, str], batch_size: int, by_pass: bool
) -> list[list[FramePair]]:
    """Shards, or passes, of the pairs that have to be computed, once there is room for the flow."""
    stored = _find_whole(folder, keys)
    if by_pass:
        groups = [[*group] for _, group in groupby(pairs, key=lambda pair: pair.pass_name)]
    else:
        groups = cut_shards(pairs, batch_size)
    left = [[pair for pair in group if pair.name not in stored] for group in groups]
    if todo := [*chain.from_iterable(left)]:
        require_free_space(folder, len(todo) * count_flow_bytes(*read_image_size(todo[0].image1)))
    return [group for group in left if group]


def _compute(
    shards: list[list[FramePair]],
    backend: Backend | StoredModel,
    folder: Path,
    batch_size: int,
    executor: Executor | None,
    track: Track,
) -> Iterator[Written]:
    """Yield each pair's file as soon as it is written, or its shard is, by a worker."""
    if isinstance(backend, StoredModel):
        answers = compute_shards(
            executor, partial(infer_shard, backend, folder, batch_size), shards
        )
        written = (one for _, answer in answers for one in answer)
        yield from track(written, label="flow", unit="pair", total=sum(map(len, shards)))
    elif executor is None:
        yield from _write_flow(shards, backend, folder, batch_size, track)
    else:
        raise ValueError("an executor's workers load their model themselves: give a StoredModel")


def infer_shard(
    model: StoredModel, folder: Path, batch_size: int, shard: list[FramePair]
) -> list[Written]:
    """In a worker: write the flow of a shard."""
    with borrow_backend(model) as backend:
        return [*_write_flow([shard], backend, folder, batch_size, pass_silently)]


def _write_flow(
    shards: list[list[FramePair]], backend: Backend, folder: Path, batch_size: int, track: Track
) -> Iterator[Written]:
    predicted: Iterator[tuple[FramePair, np.ndarray, float]]
    if isinstance(backend, FolderBackend):
        predicted = chain.from_iterable(_predict_folders(one, backend, track) for one in shards)
    else:
        predicted = _predict_batches(shards, backend, batch_size, track)
    process = f"{platform.node()} {os.getpid()}"
    for pair, flow, seconds in predicted:
        path = flow_path(folder, pair)
        write_flow(path, flow)
        yield Written(pair.name, hash_file(path), seconds, process)


def _summarise_workers(done: list[Written]) -> dict[str, Record]:
    """What each worker did, numbered: host names are nobody's business."""
    workers: dict[str, Record] = {}
    for place, process in enumerate(dict.fromkeys(one.process for one in done), start=1):
        each = [one.seconds for one in done if one.process == process]
        workers[f"worker {place}"] = {
            "pairs": len(each),
            "seconds_computing": sum(each),
            "pairs_per_second": len(each) / sum(each),
        }
    return workers


def _predict_batches(
    shards: list[list[FramePair]], backend: Backend, batch_size: int, track: Track
) -> Iterator[tuple[FramePair, np.ndarray, float]]:
    """Yield each pair with its flow (2, H, W) and its share of the seconds in the backend."""
    sequence = None
    if isinstance(backend, SplitBackend) and backend.at_once == 1:
        sequence = AlongSequence(backend)
    batches = [
        shard[first : first + batch_size]
        for shard in shards
        for first in range(0, len(shard), batch_size)
    ]
    for batch in track(batches, label="flow", unit="batch"):
        images1, images2, padding = read_batch(batch, batch_size)
        before = time.monotonic()
        if sequence is None:
            flow = backend.predict(images1, images2)
        else:
            frames = zip(batch, images1, images2, strict=False)  # without the copies
            flows = [
                sequence.flow(pair.image1, image1[None], pair.image2, image2[None])[0]
                for pair, image1, image2 in frames
            ]
            flow = np.concatenate(flows)
        seconds = (time.monotonic() - before) / len(batch)
        _check_flow(flow, images1, batch)
        for pair, pair_flow in zip(batch, padding.unpad(flow), strict=False):  # without the copies
            yield pair, pair_flow, seconds


def _predict_folders(
    pairs: list[FramePair], backend: FolderBackend, track: Track
) -> Iterator[tuple[FramePair, np.ndarray, float]]:
    """As ``_predict_batches``, for one pass and the guide's way: a folder of tensors per frame.

    The tensors need 10.8 MB a pair at Sintel's size; they lie in a temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="gma_tensors_") as place:
        numbers = write_guide_tensors(pairs, Path(place), with_truth=False, track=track)
        numbered = {numbers[pair.name]: pair for pair in pairs}
        folder = Path(place) / pairs[0].pass_name
        before = time.monotonic()
        for number, flow in backend.predict_folders(
            folder / "image1", folder / "image2", track=track
        ):
            pair, seconds = numbered[number], time.monotonic() - before
            yield pair, Padding.for_size(*read_image_size(pair.image1)).unpad(flow), seconds
            before = time.monotonic()


def inference_key(converted: Record) -> str:
    """Digest of what the flow depends on besides the frames, from ``convert.json``: model, runtime,
    device and precision.
    """
    versions = converted["provenance"]["versions"]
    return hash_value(
        [
            *(converted[name] for name in ("model_sha256", "backend", "precision", "device")),
            {name: versions.get(name) for name in ("openvino", "onnxruntime", "torch")},
        ]
    )


def flow_path(folder: Path, pair: FramePair) -> Path:
    """Where the flow of a pair lies in a run's flow folder."""
    return Path(folder) / f"{pair.name}.flo"


def _check_flow(flow: np.ndarray, image: np.ndarray, batch: list[FramePair]) -> None:
    wanted = (2, *image.shape[2:])
    if flow.shape[1:] != wanted or len(flow) not in (len(batch), len(image)):
        raise ValueError(
            f"the backend answered with shape {flow.shape} where {(len(image), *wanted)} was "
            "expected"
        )
    for pair, pair_flow in zip(batch, flow, strict=False):
        if not np.isfinite(pair_flow).all():
            raise ValueError(f"the flow of {pair.name} holds values that are not finite")


def _record(folder: Path, written: Written, key: str) -> None:
    entry = {"pair": written.pair, "key": key, "sha256": written.sha256}
    with open(folder / LEDGER, "a", encoding="utf-8") as ledger:
        # The line break comes first: a line that an interruption cut short then spoils no other.
        ledger.write("\n" + json.dumps(entry))
        ledger.flush()
        os.fsync(ledger.fileno())


def _read_ledger(folder: Path) -> Iterator[Record]:
    """Yield the ledger's entries; a damaged line loses its own entry only."""
    ledger = Path(folder) / LEDGER
    if not ledger.is_file():
        return
    for line in ledger.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # cut short, or not even UTF-8
            continue
        if isinstance(entry, dict) and {*map(type, map(entry.get, ENTRY))} == {str}:
            yield entry


def read_hashes(folder: Path) -> dict[str, str]:
    """Map each pair's name to the SHA-256 that its file had when it was written."""
    return {line["pair"]: line["sha256"] for line in _read_ledger(folder)}


def describe_stored(pairs: list[FramePair], folder: Path) -> Record:
    """Pairs whose flow lies in a folder, as a record: their names, and name -> SHA-256."""
    stored, names = read_hashes(folder), [pair.name for pair in pairs]
    return {"pairs": names, "flow": {name: stored[name] for name in names}}


def _find_whole(folder: Path, keys: dict[str, str]) -> set[str]:
    """Find the pairs whose file is, byte for byte, what was written for this key."""
    last = {line["pair"]: line for line in _read_ledger(folder)}
    return {
        name
        for name, key in keys.items()
        if name in last
        and last[name]["key"] == key
        and (path := Path(folder) / f"{name}.flo").is_file()
        and hash_file(path) == last[name]["sha256"]
    }
