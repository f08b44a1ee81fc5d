"""From pairs of frames to flow files: streamed, in batches of a fixed size, resumable."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gma_lib.backends.base import AlongSequence, Backend, FolderBackend, SplitBackend
from gma_lib.data.padding import Padding
from gma_lib.data.sintel import FramePair
from gma_lib.flow.files import flow_file_bytes, read_flow, read_frame, write_flow, write_tensor
from gma_lib.runs.files import digest, require_free_space, sha256, write_atomically

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class InferenceSummary:
    """What a call of ``infer`` did.

    Attributes
    ----------
    pairs, computed, reused
        Pairs asked for, computed now, and found whole from an earlier call with the same key.
    filled
        Places in the last batch that were filled with a repeated pair and cut away again.
    seconds
        Of the whole call: reading, computing and writing.
    seconds_computing
        Inside the backend.
    """

    pairs: int
    computed: int
    reused: int
    filled: int
    seconds: float
    seconds_computing: float

    def described(self) -> dict:
        rate = self.computed / self.seconds if self.computed else None
        return asdict(self) | {"pairs_per_second_end_to_end": rate}


def infer(
    pairs: list[FramePair],
    backend: Backend,
    folder: Path,
    *,
    batch_size: int,
    key: str,
    track: Callable[..., Iterable] | None = None,
) -> InferenceSummary:
    """Write the flow of every pair to ``folder/<pass>/<scene>/frame_NNNN.flo``, unpadded.

    A pair is computed only if its file is not there, or was not made under the same key, or is no
    longer what was written. The ledger in ``folder`` knows, one line a pair: interrupt at any
    moment and call again. Where the backend computes pair by pair and in parts, the features of a
    frame that two pairs share are computed once.

    Parameters
    ----------
    backend
        Anything with ``predict`` (see ``gma_lib.backends.Backend``).
    batch_size
        Pairs per call; the last batch is filled up by repeating its last pair, and cut again.
    key
        Says what the flow depends on besides the frames: model, backend, precision.
    track
        ``gma_lib.runs.progress.track``, or None for silence.
    """
    start = time.monotonic()
    folder = Path(folder)
    keys = {pair.name: digest([key, sha256(pair.image1), sha256(pair.image2)]) for pair in pairs}
    stored = _whole_pairs(folder, keys)
    todo = [pair for pair in pairs if pair.name not in stored]
    batches = [todo[first : first + batch_size] for first in range(0, len(todo), batch_size)]
    if todo:
        height, width = read_frame(todo[0].image1).shape[1:]
        require_free_space(folder, len(todo) * flow_file_bytes(height, width))
    if isinstance(backend, FolderBackend):
        computing, filled = _infer_folders(todo, backend, folder, keys, batch_size, track)
        batches = []
    else:
        computing, filled = 0.0, len(batches) * batch_size - len(todo)
    sequence = (
        AlongSequence(backend)
        if isinstance(backend, SplitBackend) and backend.at_once == 1
        else None
    )
    for batch in track(batches, label="flow", unit="batch") if track else batches:
        image1, image2, padding = read_batch(batch, batch_size)
        before = time.monotonic()
        if sequence:
            frames = zip(batch, image1, image2, strict=False)  # without what fills the batch up
            flow = np.concatenate(
                [
                    sequence.flow(pair.image1, first[None], pair.image2, second[None])[0]
                    for pair, first, second in frames
                ]
            )
        else:
            flow = backend.predict(image1, image2)
        computing += time.monotonic() - before
        _check_flow(flow, image1, batch)
        for pair, pair_flow in zip(
            batch, padding.unpad(flow), strict=False
        ):  # what filled the batch up is cut away
            _store(folder, pair, pair_flow, keys[pair.name])
    return InferenceSummary(
        pairs=len(pairs),
        computed=len(todo),
        reused=len(stored),
        filled=filled,
        seconds=time.monotonic() - start,
        seconds_computing=computing,
    )


def _infer_folders(
    pairs: list[FramePair],
    backend: FolderBackend,
    folder: Path,
    keys: dict[str, str],
    batch_size: int,
    track: Callable[..., Iterable] | None,
) -> tuple[float, int]:
    """The guide's way: a folder of tensors per frame, one call a pass. Returns seconds in the
    backend, and places that were filled up.

    The tensors of a pass need 10.8 MB a pair at Sintel's size; they lie in the temporary folder and
    go when the pass is done.
    """
    computing, filled = 0.0, 0
    for pass_name in dict.fromkeys(pair.pass_name for pair in pairs):
        mine = {
            pair.name: replace(pair, flow=None) for pair in pairs if pair.pass_name == pass_name
        }
        filled += -len(mine) % batch_size
        with tempfile.TemporaryDirectory(prefix="gma_tensors_") as place:
            tensors = write_guide_tensors(list(mine.values()), Path(place), track=track) / pass_name
            named = {stem: name for name, stem in _guide_stems(list(mine.values())).items()}
            before = time.monotonic()
            for stem, flow in backend.predict_folders(
                tensors / "image1", tensors / "image2", track=track
            ):
                pair = mine[named[stem]]
                padding = Padding.for_size(*read_frame(pair.image1).shape[1:])
                _store(folder, pair, padding.unpad(flow), keys[pair.name])
            computing += time.monotonic() - before
    return computing, filled


def inference_key(converted: dict) -> str:
    """What the flow depends on besides the frames, from ``convert.json``: the model's content, what
    runs it, and in which precision.
    """
    runtime = {
        name: converted["provenance"]["versions"].get(name)
        for name in ("openvino", "onnxruntime", "torch")
    }
    return digest(
        [
            converted["model_sha256"],
            converted["backend"],
            converted["precision"],
            converted["device"],
            runtime,
        ]
    )


def flow_path(folder: Path, pair: FramePair) -> Path:
    """Where the flow of a pair lies in a run's flow folder."""
    return Path(folder) / f"{pair.name}.flo"


def read_batch(batch: list[FramePair], batch_size: int) -> tuple[np.ndarray, np.ndarray, Padding]:
    """First and second frames (batch_size, 3, H, W), padded, filled up with copies of the last
    pair, and the padding to undo.
    """
    images = []
    for frames in ([pair.image1 for pair in batch], [pair.image2 for pair in batch]):
        stack = np.stack([read_frame(path) for path in frames])
        padding = Padding.for_size(*stack.shape[-2:])
        images.append(
            np.pad(
                padding.pad(stack),
                [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)],
                mode="edge",
            )
        )
    return images[0], images[1], padding


def _check_flow(flow: np.ndarray, image: np.ndarray, batch: list[FramePair]) -> None:
    wanted = (2, *image.shape[2:])
    if flow.shape[1:] != wanted or len(flow) not in (len(batch), len(image)):
        raise ValueError(
            f"the backend answered with shape {flow.shape} where {(len(image), *wanted)} was expected"
        )
    for pair, pair_flow in zip(batch, flow, strict=False):
        if not np.isfinite(pair_flow).all():
            raise ValueError(f"the flow of {pair.name} holds values that are not finite")


def _store(folder: Path, pair: FramePair, flow: np.ndarray, key: str) -> None:
    path = flow_path(folder, pair)
    write_flow(path, flow)
    with open(folder / LEDGER, "a", encoding="utf-8") as ledger:
        # The line break comes first: a line that an interruption cut short then spoils no other.
        ledger.write("\n" + json.dumps({"pair": pair.name, "key": key, "sha256": sha256(path)}))
        ledger.flush()
        os.fsync(ledger.fileno())


def _ledger_lines(folder: Path) -> Iterator[dict]:
    """Entries of the ledger; a line that an interruption cut short is skipped, and its pair counts
    as not stored.
    """
    ledger = Path(folder) / LEDGER
    if not ledger.is_file():
        return
    for line in ledger.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def stored_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 that each pair's file had when it was written, by the pair's name."""
    return {line["pair"]: line["sha256"] for line in _ledger_lines(folder)}


def _whole_pairs(folder: Path, keys: dict[str, str]) -> set[str]:
    """Names of pairs whose file is, byte for byte, what was written for this key."""
    last = {line["pair"]: line for line in _ledger_lines(folder)}
    return {
        name
        for name, key in keys.items()
        if name in last
        and last[name]["key"] == key
        and (path := Path(folder) / f"{name}.flo").is_file()
        and sha256(path) == last[name]["sha256"]
    }


def write_guide_tensors(
    pairs: list[FramePair],
    folder: Path,
    *,
    plain_names: bool = False,
    track: Callable[..., Iterable] | None = None,
) -> Path:
    """Write padded frames and ground truth as the guide's preprocessing lays them out, for tools
    that read files.

    Per pass, ``image1/<i>.bin`` and ``image2/<i>.bin`` are float32 (1, 3, H, W), 0..255, padded;
    ``gt/<i>.bin`` is float32 (H, W, 2), not padded, and only there where ground truth is. Stems are
    zero-padded, so that both ways of sorting agree, or with ``plain_names`` as in the guide (0, 1,
    ..., 10); ``pairs.json`` says which pair a number is.
    """
    folder = Path(folder)
    height, width = read_frame(pairs[0].image1).shape[1:]
    padding = Padding.for_size(height, width)
    rows, columns = padding.padded_size(height, width)
    require_free_space(folder, len(pairs) * 4 * (2 * 3 * rows * columns + 2 * height * width))
    stems = _guide_stems(pairs, plain=plain_names)
    for pair in track(pairs, label="tensors", unit="pair") if track else pairs:
        place, stem = folder / pair.pass_name, stems[pair.name]
        for kind in ("image1", "image2"):
            write_tensor(
                place / kind / f"{stem}.bin", padding.pad(read_frame(getattr(pair, kind)))[None]
            )
        if pair.flow is not None:
            write_tensor(place / "gt" / f"{stem}.bin", read_flow(pair.flow).transpose(1, 2, 0))
    with write_atomically(folder / "pairs.json") as partial:
        partial.write_text(json.dumps(stems, indent=1) + "\n", encoding="utf-8")
    return folder


def _guide_stems(pairs: list[FramePair], *, plain: bool = False) -> dict[str, str]:
    """Pair name -> its number within its pass, as many digits for all unless plain."""
    stems: dict[str, str] = {}
    for pass_name in dict.fromkeys(pair.pass_name for pair in pairs):
        names = [pair.name for pair in pairs if pair.pass_name == pass_name]
        stems |= {
            name: str(index).zfill(1 if plain else len(str(len(names) - 1)))
            for index, name in enumerate(names)
        }
    return stems
