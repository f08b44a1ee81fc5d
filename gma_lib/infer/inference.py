"""From pairs of frames to flow files: streamed, in batches of a fixed size, resumable."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from gma_lib.backends.base import AlongSequence, Backend, FolderBackend, SplitBackend
from gma_lib.data import FramePair, Padding, read_batch, write_guide_tensors
from gma_lib.flow import count_flow_bytes, read_image_size, write_flow
from gma_lib.runs import Record, Track, hash_file, hash_value, pass_silently, require_free_space

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
        Copies that filled the last batch up and were dropped again.
    seconds
        Duration of the call: reading, computing and writing.
    seconds_computing
        Time spent in the backend.
    """

    pairs: int
    computed: int
    reused: int
    filled: int
    seconds: float
    seconds_computing: float

    def to_record(self) -> Record:
        rate = self.computed / self.seconds if self.computed else None
        return asdict(self) | {"pairs_per_second_end_to_end": rate}


def infer(
    pairs: list[FramePair],
    backend: Backend,
    folder: Path,
    *,
    batch_size: int,
    key: str,
    track: Track = pass_silently,
) -> InferenceSummary:
    """Write the flow of every pair to ``folder/<pass>/<scene>/frame_NNNN.flo``, unpadded.

    A pair is computed only if its file is missing, was written under another key, or has changed
    since. A ledger in ``folder`` records every file, so an interrupted call can be repeated. Where
    the backend computes pair by pair and in parts, the features of a frame that two pairs share are
    computed once.

    Parameters
    ----------
    backend
        Anything with ``predict`` (see ``gma_lib.backends.Backend``).
    batch_size
        Pairs per call; the last batch is filled up by repeating its last pair, and cut again.
    key
        What the flow depends on besides the frames: model, backend, precision.
    track
        ``gma_lib.runs.progress.track`` to show progress.
    """
    start = time.monotonic()
    folder = Path(folder)
    keys = {
        pair.name: hash_value([key, hash_file(pair.image1), hash_file(pair.image2)])
        for pair in pairs
    }
    stored = _find_whole(folder, keys)
    todo = [pair for pair in pairs if pair.name not in stored]
    if todo:
        require_free_space(folder, len(todo) * count_flow_bytes(*read_image_size(todo[0].image1)))
    if isinstance(backend, FolderBackend):
        passes = dict.fromkeys(pair.pass_name for pair in todo)
        groups = [[pair for pair in todo if pair.pass_name == name] for name in passes]
        predicted = [_predict_folders(group, backend, track) for group in groups]
    else:
        groups = [todo]
        predicted = [_predict_batches(todo, backend, batch_size, track)]
    computing = 0.0
    for pair, flow, seconds in chain.from_iterable(predicted):
        _store(folder, pair, flow, keys[pair.name])
        computing += seconds
    return InferenceSummary(
        pairs=len(pairs),
        computed=len(todo),
        reused=len(stored),
        filled=sum(-len(group) % batch_size for group in groups),
        seconds=time.monotonic() - start,
        seconds_computing=computing,
    )


def _predict_batches(
    pairs: list[FramePair], backend: Backend, batch_size: int, track: Track
) -> Iterator[tuple[FramePair, np.ndarray, float]]:
    """Yield each pair with its flow (2, H, W) and its share of the seconds in the backend."""
    sequence = None
    if isinstance(backend, SplitBackend) and backend.at_once == 1:
        sequence = AlongSequence(backend)
    batches = [pairs[first : first + batch_size] for first in range(0, len(pairs), batch_size)]
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


def _store(folder: Path, pair: FramePair, flow: np.ndarray, key: str) -> None:
    path = flow_path(folder, pair)
    write_flow(path, flow)
    with open(folder / LEDGER, "a", encoding="utf-8") as ledger:
        # The line break comes first: a line that an interruption cut short then spoils no other.
        ledger.write("\n" + json.dumps({"pair": pair.name, "key": key, "sha256": hash_file(path)}))
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
