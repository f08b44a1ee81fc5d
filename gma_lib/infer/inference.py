"""From pairs of frames to flow files: streamed, in batches of a fixed size, resumable."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gma_lib.backends.base import AlongSequence, Backend, FolderBackend, is_for_sequences
from gma_lib.data import FramePair, Padding, read_batch, write_guide_tensors
from gma_lib.flow import count_flow_bytes, read_flow, read_image_size, write_flow
from gma_lib.infer.means import describe_means, describe_threads
from gma_lib.infer.shards import Shard, StoredModel, borrow_backend, cut_shards, list_frames
from gma_lib.runs import (
    Record,
    Track,
    hash_file,
    hash_value,
    pass_silently,
    require_free_space,
)
from gma_lib.runs.clusters import compute_shards
from gma_lib.runs.digests import read_recorded
from gma_lib.runs.ledger import NAME as LEDGER
from gma_lib.runs.ledger import Ledger
from gma_lib.runs.leftovers import name_process, temporary_folder
from gma_lib.runs.parcels import Sent, place_files


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
    shards
        What was computed together, in the order in which it was begun: ``first`` pair, ``pairs``,
        ``worker``, ``start`` in seconds since the call began, ``seconds``.
    """

    pairs: int
    computed: int
    reused: int
    filled: int
    seconds: float
    seconds_computing: float
    threads: int | None = None
    workers: dict[str, Record] = field(default_factory=dict)
    shards: list[Record] = field(default_factory=list)

    def to_record(self) -> Record:
        rate = self.computed / self.seconds if self.computed else None
        return asdict(self) | {"pairs_per_second_end_to_end": rate}

    def describe(self) -> str:
        """Say what was computed, and how fast."""
        if not self.computed:
            return f"The flow of all {self.pairs} pairs was there from an earlier call."
        whose = "the workers' networks" if self.workers else "the network"
        return (
            f"{self.computed} of {self.pairs} pairs were computed in {self.seconds:.1f} s, "
            f"{self.computed / self.seconds:.2f} pairs/s with reading and writing; {whose} took "
            f"{self.seconds_computing:.1f} s."
        )


class Computed(NamedTuple):
    """A pair's flow (2, H, W), the seconds in the backend, the process that computed it, and its
    clock before it waited for the frames and when the flow was there.
    """

    pair: FramePair
    flow: np.ndarray
    seconds: float
    process: str
    begun: float
    ended: float


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
    since. This process alone writes flow, and a ledger in ``folder`` that records every file, so an
    interrupted call can be repeated. Where the backend computes pair by pair and in parts, the
    features of a frame that two pairs of a shard share are computed once. While a batch is
    computed, the next one is read and the one before is written, each by a thread of its own.

    Parameters
    ----------
    backend
        Anything with ``predict`` (see ``gma_lib.backends.Backend``), or where to load it from.
    batch_size
        Pairs per call; the last batch of a shard (``cut_shards``) is filled up by repeating its
        last pair, and cut again.
    key
        What the flow depends on besides the frames and threads: model, backend, precision.
    executor
        Computes shards, and needs a ``StoredModel``. A worker reads its own copies of the frames
        and the model, or is sent them, and sends the flow. None: this process computes.
    track
        ``gma_lib.runs.progress.track`` to show progress.
    """
    start, clock, folder = time.monotonic(), time.time(), Path(folder)
    frames = _hash_frames(pairs)
    pairs = [_fix_frames(pair, frames) for pair in pairs]
    keys = _make_keys(pairs, frames, backend, key)
    opening: AbstractContextManager[Backend | StoredModel] = nullcontext(backend)
    if executor is None and isinstance(backend, StoredModel):
        opening = backend.load()
    with opening as opened:
        groups = _find_work(pairs, folder, keys, batch_size, isinstance(opened, FolderBackend))
        shards = [Shard(one, {path: frames[path] for path in list_frames(one)}) for one in groups]
        found = _compute(shards, opened, batch_size, executor, track)
        stored = _store(found, folder, keys, batch_size)
        if not isinstance(opened, FolderBackend):  # which shows its progress itself
            total = sum(len(shard.pairs) for shard in shards)
            stored = track(stored, label="flow", unit="pair", total=total)
        done = [*stored]
    return InferenceSummary(
        pairs=len(pairs),
        computed=len(done),
        reused=len(pairs) - len(done),
        filled=sum(-len(group) % batch_size for group in groups),
        seconds=time.monotonic() - start,
        seconds_computing=sum(one.seconds for one in done),
        threads=backend.threads if isinstance(backend, StoredModel) else None,
        workers={} if executor is None else _summarise_workers(done),
        shards=_summarise_shards(groups, done, clock),
    )


def _hash_frames(pairs: list[FramePair]) -> dict[Path, str]:
    frames = list_frames(pairs)
    if missing := next((path for path in frames if not path.is_file()), None):
        raise FileNotFoundError(f"{missing} has gone since 01_data: run 01_data again")
    return {path: hash_file(path) for path in frames}


def _make_keys(
    pairs: list[FramePair], frames: dict[Path, str], backend: Backend | StoredModel, key: str
) -> dict[str, str]:
    """Name of each pair -> digest of all that its flow depends on."""
    fixed = [key]
    if isinstance(backend, StoredModel):
        fixed += describe_threads(backend.backend, backend.precision, backend.threads).values()
    return {one.name: hash_value([*fixed, frames[one.image1], frames[one.image2]]) for one in pairs}


def _fix_frames(pair: FramePair, frames: dict[Path, str]) -> FramePair:
    """The pair, whose frames are refused where they are read and have changed by then."""
    now = {"image1": frames[pair.image1], "image2": frames[pair.image2]}
    return replace(pair, sha256={**now, **pair.sha256})


def _find_work(
    pairs: list[FramePair], folder: Path, keys: dict[str, str], batch_size: int, by_pass: bool
) -> list[list[FramePair]]:
    """Shards, or passes, of the pairs that have to be computed, once there is room for the flow."""
    files = {pair.name: flow_path(folder, pair) for pair in pairs}
    stored = Ledger(folder / LEDGER).find_whole(keys, files)
    if by_pass:
        groups = [[*group] for _, group in groupby(pairs, key=lambda pair: pair.pass_name)]
    else:
        groups = cut_shards(pairs, batch_size)
    left = [[pair for pair in group if pair.name not in stored] for group in groups]
    if todo := [*chain.from_iterable(left)]:
        require_free_space(folder, len(todo) * count_flow_bytes(*read_image_size(todo[0].image1)))
    return [group for group in left if group]


def _compute(
    shards: list[Shard],
    backend: Backend | StoredModel,
    batch_size: int,
    executor: Executor | None,
    track: Track,
) -> Iterator[Computed]:
    """Yield the flow of each pair as soon as it, or a worker's shard, is computed."""
    if isinstance(backend, StoredModel):
        answers = compute_shards(executor, partial(infer_shard, backend, batch_size), shards)
        yield from chain.from_iterable(answer for _, answer in answers)
    elif executor is not None:
        raise ValueError("an executor's workers load their model themselves: give a StoredModel")
    else:
        for shard in shards:
            if isinstance(backend, FolderBackend):
                yield from _predict_folders(shard.pairs, backend, track)
            else:
                yield from _predict_batches(shard.pairs, backend, batch_size)


def _store(
    found: Iterator[Computed], folder: Path, keys: dict[str, str], most: int
) -> Iterator[Computed]:
    """Write flow in a thread while more is computed; yield, without its flow, what is stored.

    At most ``most`` pairs wait to be written. Whatever ends this, what was begun is finished.
    """
    writing: deque[Future[Computed]] = deque()
    with ThreadPoolExecutor(1) as writer:
        for computed in found:
            while writing and (len(writing) == most or writing[0].done()):
                yield writing.popleft().result()
            writing.append(writer.submit(_store_pair, computed, folder, keys))
        while writing:
            yield writing.popleft().result()


def _store_pair(computed: Computed, folder: Path, keys: dict[str, str]) -> Computed:
    name, path = computed.pair.name, flow_path(folder, computed.pair)
    write_flow(path, computed.flow)
    Ledger(folder / LEDGER).note(name, keys[name], path)
    return computed._replace(flow=np.empty(0))


def infer_shard(model: StoredModel, batch_size: int, shard: Shard, sent: Sent) -> list[Computed]:
    """In a worker: the flow of a shard."""
    with borrow_backend(model, sent) as backend, place_files(shard.files, sent) as locate:
        pairs = [pair.move(locate) for pair in shard.pairs]
        if isinstance(backend, FolderBackend):
            return [*_predict_folders(pairs, backend, pass_silently)]
        return [*_predict_batches(pairs, backend, batch_size)]


def _predict_batches(
    pairs: list[FramePair], backend: Backend, batch_size: int
) -> Iterator[Computed]:
    """Yield the flow of the pairs of a shard, each with its share of the seconds of its batch."""
    sequence = None
    if is_for_sequences(backend):
        sequence = AlongSequence(backend)
    batches = [pairs[first : first + batch_size] for first in range(0, len(pairs), batch_size)]
    tell_time = _start_clock()
    begun = tell_time()
    for batch, (images1, images2, padding) in _read_ahead(batches, batch_size):
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
        ended = tell_time()
        for pair, pair_flow in zip(batch, padding.unpad(flow), strict=False):  # without the copies
            yield Computed(pair, pair_flow, seconds, name_process(), begun, ended)
        begun = tell_time()


def _read_ahead(
    batches: list[list[FramePair]], batch_size: int
) -> Iterator[tuple[list[FramePair], tuple[np.ndarray, np.ndarray, Padding]]]:
    """Yield batches with their frames; a thread reads the next one meanwhile.

    Another thread reads and not one that computes: PyTorch's settings are those of a thread.
    """
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read_batch, batches[0], batch_size)
        for batch, following in zip_longest(batches, batches[1:]):
            frames = ahead.result()
            if following is not None:
                ahead = reader.submit(read_batch, following, batch_size)
            yield batch, frames


def _predict_folders(
    pairs: list[FramePair], backend: FolderBackend, track: Track
) -> Iterator[Computed]:
    """As ``_predict_batches``, for one pass and the guide's way: a folder of tensors per frame.

    The tensors need 10.8 MB a pair at Sintel's size; they lie in a temporary folder.
    """
    with temporary_folder() as place:
        tell_time = _start_clock()
        begun = tell_time()
        numbers = write_guide_tensors(pairs, place, with_truth=False, track=track)
        numbered = {numbers[pair.name]: pair for pair in pairs}
        folder = place / pairs[0].pass_name
        before = time.monotonic()
        for number, flow in backend.predict_folders(
            folder / "image1", folder / "image2", track=track
        ):
            pair, seconds = numbered[number], time.monotonic() - before
            cut = Padding.for_size(*read_image_size(pair.image1)).unpad(flow)
            yield Computed(pair, cut, seconds, name_process(), begun, tell_time())
            begun, before = tell_time(), time.monotonic()


def _start_clock() -> Callable[[], float]:
    """Return what tells the seconds since 1970, without the steps of a clock that is set
    meanwhile.
    """
    ahead = time.time() - time.monotonic()
    return lambda: ahead + time.monotonic()


def _name_workers(done: list[Computed]) -> dict[str, str]:
    """Process -> ``worker 1``: host names are nobody's business."""
    processes = dict.fromkeys(one.process for one in done)
    return {process: f"worker {place}" for place, process in enumerate(processes, start=1)}


def _summarise_workers(done: list[Computed]) -> dict[str, Record]:
    """What each worker did."""
    workers: dict[str, Record] = {}
    for process, name in _name_workers(done).items():
        each = [one.seconds for one in done if one.process == process]
        workers[name] = {
            "pairs": len(each),
            "seconds_computing": sum(each),
            "pairs_per_second": len(each) / sum(each),
        }
    return workers


def _summarise_shards(
    groups: list[list[FramePair]], done: list[Computed], clock: float
) -> list[Record]:
    """Who computed each shard, and when."""
    computed, names, shards = {one.pair.name: one for one in done}, _name_workers(done), []
    for group in groups:
        each = [computed[pair.name] for pair in group]
        begun, ended = min(one.begun for one in each), max(one.ended for one in each)
        who = {"first": group[0].name, "pairs": len(group), "worker": names[each[0].process]}
        shards.append(who | {"start": begun - clock, "seconds": ended - begun})
    return sorted(shards, key=itemgetter("start"))


def inference_key(converted: Record) -> str:
    """Digest of what the flow depends on besides the frames: model, runtime, device and precision
    from ``convert.json``, this package's code, and the processor.
    """
    names = ("model_sha256", "backend", "precision", "device")
    means = describe_means()
    return hash_value([*(converted[name] for name in names), *means.values()])


def flow_path(folder: Path, pair: FramePair) -> Path:
    """Where the flow of a pair lies in a run's flow folder."""
    return Path(folder) / f"{pair.name}.flo"


@dataclass(frozen=True)
class StoredFlow:
    """The flow of a run, which is read only as inference wrote it.

    Attributes
    ----------
    folder
        The run's flow folder.
    written
        Pair -> SHA-256 of its file, as inference recorded them.
    """

    folder: Path
    written: Mapping[str, str]

    def locate(self, pair: FramePair) -> Path:
        """Where the flow of a pair lies."""
        return flow_path(self.folder, pair)

    def read(self, pair: FramePair) -> np.ndarray:
        """Read the flow of a pair, float32 (2, H, W), in pixels; ValueError unless its file is the
        recorded one before and after.
        """
        digest = self.written.get(pair.name, "")  # which no file has
        return read_recorded(self.locate(pair), read_flow, digest, made_by="04_infer")


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


def read_hashes(folder: Path) -> dict[str, str]:
    """Map each pair's name to the SHA-256 that its file had when it was written."""
    return Ledger(Path(folder) / LEDGER).read_hashes()


def describe_stored(pairs: list[FramePair], folder: Path) -> Record:
    """Pairs whose flow lies in a folder, as a record: their names, and name -> SHA-256."""
    stored, names = read_hashes(folder), [pair.name for pair in pairs]
    return {"pairs": names, "flow": {name: stored[name] for name in names}}
