"""Score flow files against ground truth; a missing pair is an error, never a smaller average."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import astuple, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np

from gma_lib.data.pair import FramePair
from gma_lib.flow import CLASSICAL, Deviation, ErrorSums, pool_scores, sum_errors
from gma_lib.flow.refine import check_refinable, refine_flow
from gma_lib.infer.inference import StoredFlow, flow_path
from gma_lib.infer.shards import Shard, cut_shards
from gma_lib.runs import Record, Run, Track, hash_file, pass_silently
from gma_lib.runs.choosing import choose_evenly
from gma_lib.runs.clusters import compute_shards
from gma_lib.runs.parcels import Sent, place_files

NETWORK, REFINED = "network", "network + variational refinement"


def score_folder(
    pairs: list[FramePair],
    stored: StoredFlow,
    *,
    executor: Executor | None = None,
    track: Track = pass_silently,
) -> dict[str, Record]:
    """Score the flow of every pair that has ground truth.

    Parameters
    ----------
    pairs
        All pairs that inference was asked for, of any passes.
    stored
        Their flow.
    executor
        Scores shards. A worker reads its own copies of the files, or is sent them. The sums of the
        pairs are added here, in the given order.

    Returns
    -------
    dict
        A key per pass, as ``metrics.json`` holds them: ``pairs_inferred``, ``pairs_scored``,
        ``pixels``, a dict of metrics per group of pixels, then ``scenes`` (name -> groups) and
        ``pairs`` (a list in the data set's order).

    Raises
    ------
    FileNotFoundError
        When the flow of any pair is missing, scored or not.
    ValueError
        When a file is not what inference wrote, or does not fit its ground truth.
    """
    check_complete(pairs, stored)
    scored = [pair for pair in pairs if pair.flow is not None]
    shards = [
        Shard(
            shard,
            {stored.locate(pair): stored.written[pair.name] for pair in shard}
            | {path: digest for pair in shard for path, digest in pair.list_truth().items()},
        )
        for shard in cut_shards(scored)
    ]
    answers = compute_shards(executor, partial(score_shard, stored.folder), shards)
    found = chain.from_iterable(zip(one.pairs, sums, strict=True) for one, sums in answers)
    sums = {
        pair.name: groups
        for pair, groups in track(found, label="scores", unit="pair", total=len(scored))
    }
    return {
        name: _summarise_pass([pair for pair in pairs if pair.pass_name == name], sums)
        for name in dict.fromkeys(pair.pass_name for pair in pairs)
    }


def select_passes(metrics: Record) -> dict[str, Record]:
    """Select from a ``metrics.json``, which holds more, what ``score_folder`` returned."""
    return {
        name: found
        for name, found in metrics.items()
        if isinstance(found, dict) and "pairs_scored" in found
    }


def _summarise_pass(pairs: list[FramePair], sums: dict[str, dict[str, ErrorSums]]) -> Record:
    scored = [pair for pair in pairs if pair.name in sums]
    pooled = {"all": ErrorSums()} | pool_scores(sums[pair.name] for pair in scored)
    scenes = {
        scene: pool_scores(sums[pair.name] for pair in scored if pair.scene == scene)
        for scene in dict.fromkeys(pair.scene for pair in scored)
    }
    return {
        "pairs_inferred": len(pairs),
        "pairs_scored": len(scored),
        "pixels": pooled["all"].pixels,
        "share_within": pooled["all"].shares_within(),
        **_to_metrics(pooled),
        "scenes": {scene: _to_metrics(groups) for scene, groups in scenes.items()},
        "pairs": [
            {
                "name": pair.name,
                "scene": pair.scene,
                "number": pair.number,
                **_to_metrics(sums[pair.name]),
            }
            for pair in scored
        ],
    }


def _to_metrics(sums: dict[str, ErrorSums]) -> dict[str, Record]:
    return {group: value.to_metrics() for group, value in sums.items()}


def score_shard(folder: Path, shard: Shard, sent: Sent) -> list[dict[str, ErrorSums]]:
    """In a worker: ``score_pair`` for every pair."""
    written = {pair.name: shard.files[flow_path(folder, pair)] for pair in shard.pairs}
    with place_files(shard.files, sent) as locate:
        stored = StoredFlow(locate(folder), written)
        return [score_pair(pair.move(locate), stored) for pair in shard.pairs]


def score_pair(pair: FramePair, stored: StoredFlow) -> dict[str, ErrorSums]:
    """Return the error sums of the network's flow of one pair for every group of pixels."""
    return Truth.load(pair).score(stored.read(pair), stored.locate(pair))


@dataclass(frozen=True)
class Truth:
    """Ground truth of one pair, by which the flow of every method is scored alike.

    Attributes
    ----------
    path
        File of the true flow.
    flow, occluded, invalid
        As ``FramePair`` loads them.
    """

    path: Path | None
    flow: np.ndarray
    occluded: np.ndarray | None
    invalid: np.ndarray | None

    @classmethod
    def load(cls, pair: FramePair) -> "Truth":
        """Read the ground truth of a pair that has some."""
        return cls(pair.flow, pair.load_flow(), pair.load_occluded(), pair.load_invalid())

    def score(self, flow: np.ndarray, source: object) -> dict[str, ErrorSums]:
        """Return the error sums of a flow (2, H, W) for every group of pixels; an error names its
        ``source``, a file or a method.
        """
        try:
            return sum_errors(flow, self.flow, occluded=self.occluded, invalid=self.invalid)
        except ValueError as error:
            raise ValueError(f"{source} against {self.path}: {error}") from error

    def require_fit(self, frames: Sequence[np.ndarray], name: str) -> None:
        """Raise ValueError unless the frames (3, H, W) of the pair ``name`` have the truth's size.

        For a method, that would look like a fault of its own.
        """
        sizes = [f"{one.shape[2]}x{one.shape[1]}" for one in (*frames, self.flow)]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"{name}: the frames have {sizes[0]} and {sizes[1]} px, the true flow {sizes[2]}: "
                "run 01_data again"
            )


def check_complete(pairs: list[FramePair], stored: StoredFlow) -> None:
    """Raise unless the folder holds, for every pair, the file that inference wrote."""
    if not pairs:
        raise ValueError("there are no pairs to score")
    missing = [pair.name for pair in pairs if not stored.locate(pair).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{stored.folder}: {len(missing)} of {len(pairs)} pairs have no flow "
            f"(first: {missing[0]}). Run 04_infer to its end."
        )
    changed = [
        pair.name
        for pair in pairs
        if stored.written.get(pair.name) != hash_file(stored.locate(pair))
    ]
    if changed:
        raise ValueError(
            f"{stored.folder}: {len(changed)} flow files are not what 04_infer wrote "
            f"(first: {changed[0]}). Run 04_infer again."
        )


def compare_batch_sizes(
    pairs: list[FramePair], stored: StoredFlow, others: Mapping[Run, Mapping[str, str]]
) -> dict[str, Deviation]:
    """Return the largest deviations from the flow of other batch sizes, by their folder (``bs1``),
    over the pairs that both have; a batch size that shares none is left out.

    Parameters
    ----------
    pairs, stored
        Those of a run, and their flow.
    others
        Runs that should have the same flow, with what each has (pair -> SHA-256):
        ``gma_lib.pipeline.chain.find_comparable``.
    """
    found = {}
    for other, theirs in others.items():
        both = [pair for pair in pairs if pair.name in theirs]
        reference = StoredFlow(other.flow_folder, theirs)
        if deviations := [_compare_pair(pair, stored, reference) for pair in both]:
            largest = np.max([astuple(one) for one in deviations], axis=0).tolist()
            found[other.folder.name] = Deviation(*largest)
    return found


def _compare_pair(pair: FramePair, stored: StoredFlow, reference: StoredFlow) -> Deviation:
    flows = stored.read(pair), reference.read(pair)
    try:
        return Deviation.between(*flows)
    except ValueError as error:
        files = f"{stored.locate(pair)} against {reference.locate(pair)}"
        raise ValueError(f"{files}: {error}") from error


@dataclass(frozen=True)
class Comparison:
    """Methods on the same pairs: one pair, or all that were chosen of a pass.

    Attributes
    ----------
    pairs
        How many were compared.
    scores
        Method -> group of pixels -> sums.
    seconds
        Method -> seconds per pair; without the network, and for its refinement without its own.
    """

    pairs: int
    scores: dict[str, dict[str, ErrorSums]]
    seconds: dict[str, float]


def compare_methods(
    pairs: list[FramePair], stored: StoredFlow, *, most: int = 100, track: Track = pass_silently
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """Score the network, its flow after variational refinement, and OpenCV's classical methods on
    the same pairs with ground truth, at most ``most`` of all passes, evenly chosen.

    Returns
    -------
    compared, left_out
        Pass -> comparison, for passes with a chosen pair; method -> why it has no score: it cannot
        compute one of the pairs.
    """
    chosen = choose_evenly([pair for pair in pairs if pair.flow is not None], most)
    trials = {pair.name: Comparison(1, {}, {}) for pair in chosen}
    left_out: dict[str, str] = {}
    for pair in track(chosen, label="classical methods", unit="pair"):
        frames, truth, network = pair.load_frames(), Truth.load(pair), stored.read(pair)
        found = trials[pair.name]
        found.scores[NETWORK] = truth.score(network, stored.locate(pair))
        truth.require_fit(frames, pair.name)
        methods = {REFINED: partial(_refine, flow=network)} | CLASSICAL
        for name in [name for name in methods if name not in left_out]:
            started = perf_counter()
            try:
                flow = methods[name](*frames)
                found.seconds[name] = perf_counter() - started
                found.scores[name] = truth.score(flow, name)
            except (ValueError, cv2.error) as error:
                left_out[name] = f"{pair.name}: {' '.join(str(error).split())}"
    names = [name for name in (NETWORK, REFINED, *CLASSICAL) if name not in left_out]
    compared = {
        pass_name: _pool_trials(
            [trials[pair.name] for pair in chosen if pair.pass_name == pass_name], names
        )
        for pass_name in dict.fromkeys(pair.pass_name for pair in chosen)
    }
    return compared, left_out


def _pool_trials(trials: list[Comparison], names: list[str]) -> Comparison:
    scores = {name: pool_scores(one.scores[name] for one in trials) for name in names}
    timed = [name for name in names if name != NETWORK]
    seconds = {name: sum(one.seconds[name] for one in trials) / len(trials) for name in timed}
    return Comparison(len(trials), scores, seconds)


def _refine(frame1: np.ndarray, frame2: np.ndarray, *, flow: np.ndarray) -> np.ndarray:
    """``refine_flow``; ValueError for frames that it would leave as they are, or may not take."""
    check_refinable(np.stack([frame1, frame2]), "a frame")
    return refine_flow(frame1, frame2, flow)


def pool_methods(compared: Mapping[str, Comparison]) -> dict[str, dict[str, ErrorSums]]:
    """Add up the passes of ``compare_methods``: method -> group of pixels -> sums."""
    names = dict.fromkeys(name for one in compared.values() for name in one.scores)
    return {name: pool_scores(one.scores[name] for one in compared.values()) for name in names}


def summarise_methods(compared: Mapping[str, Comparison], left_out: Mapping[str, str]) -> Record:
    """Return what ``compare_methods`` found as a record: method -> group of pixels -> metrics over
    all passes, and method -> pass -> the same; with ``pairs`` and ``left_out``.
    """
    methods = {
        name: _to_metrics(groups)
        | {
            pass_name: {"pairs": one.pairs} | _to_metrics(one.scores[name])
            for pass_name, one in compared.items()
        }
        for name, groups in pool_methods(compared).items()
    }
    pairs = sum(one.pairs for one in compared.values())
    return {"pairs": pairs, "left_out": dict(left_out)} | methods


def choose_examples(metrics: dict[str, Record]) -> dict[str, str]:
    """Choose the best, the median and the worst scored pair by EPE over all pixels, of all passes:
    role -> pair name.
    """
    ranked = sorted(
        (pair for scores in metrics.values() for pair in scores["pairs"]),
        key=lambda pair: (pair["all"]["epe"], pair["name"]),
    )
    if not ranked:
        return {}
    roles = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    return {role: pair["name"] for role, pair in roles.items()}
