"""Score flow files against ground truth; a missing pair is an error, never a smaller average."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np

from gma_lib.data.sintel import FramePair
from gma_lib.flow import CLASSICAL, Deviation, ErrorSums, pool_scores, read_flow, sum_errors
from gma_lib.flow.refine import refine_flow
from gma_lib.infer.inference import flow_path
from gma_lib.infer.shards import Shard, cut_shards
from gma_lib.runs import Record, Run, Track, hash_file, pass_silently
from gma_lib.runs.clusters import compute_shards
from gma_lib.runs.parcels import Sent, place_files

Item = TypeVar("Item")


def score_folder(
    pairs: list[FramePair],
    folder: Path,
    *,
    written: Mapping[str, str],
    executor: Executor | None = None,
    track: Track = pass_silently,
) -> dict[str, Record]:
    """Score the flow of every pair that has ground truth.

    Parameters
    ----------
    pairs
        All pairs that inference was asked for, of any passes.
    folder
        Its flow folder.
    written
        Pair -> SHA-256 of its file, as inference recorded them.
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
    check_complete(pairs, folder, written)
    scored = [pair for pair in pairs if pair.flow is not None]
    shards = [
        Shard(
            shard,
            {flow_path(folder, pair): written[pair.name] for pair in shard}
            | {path: digest for pair in shard for path, digest in pair.list_truth().items()},
        )
        for shard in cut_shards(scored)
    ]
    answers = compute_shards(executor, partial(score_shard, folder), shards)
    found = chain.from_iterable(zip(one.pairs, sums, strict=True) for one, sums in answers)
    sums = {
        pair.name: groups
        for pair, groups in track(found, label="scores", unit="pair", total=len(scored))
    }
    return {
        name: _summarise_pass([pair for pair in pairs if pair.pass_name == name], sums)
        for name in dict.fromkeys(pair.pass_name for pair in pairs)
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
    with place_files(shard.files, sent) as locate:
        return [score_pair(pair.move(locate), locate(folder)) for pair in shard.pairs]


def score_pair(pair: FramePair, folder: Path) -> dict[str, ErrorSums]:
    """Return the error sums of one pair for every group of pixels."""
    path = flow_path(folder, pair)
    try:
        return sum_errors(
            read_flow(path),
            pair.load_flow(),
            occluded=pair.load_occluded(),
            invalid=pair.load_invalid(),
        )
    except ValueError as error:
        raise ValueError(f"{path} against {pair.flow}: {error}") from error


def check_complete(pairs: list[FramePair], folder: Path, written: Mapping[str, str]) -> None:
    """Raise unless the folder holds, for every pair, the file that inference wrote."""
    if not pairs:
        raise ValueError("there are no pairs to score")
    missing = [pair.name for pair in pairs if not flow_path(folder, pair).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(pairs)} pairs have no flow (first: {missing[0]}). "
            "Run 04_infer to its end."
        )
    changed = [
        pair.name for pair in pairs if written.get(pair.name) != hash_file(flow_path(folder, pair))
    ]
    if changed:
        raise ValueError(
            f"{folder}: {len(changed)} flow files are not what 04_infer wrote "
            f"(first: {changed[0]}). Run 04_infer again."
        )


def compare_batch_sizes(
    pairs: list[FramePair], run: Run, others: Iterable[Run]
) -> dict[str, Deviation]:
    """Return the largest deviations from the flow of other batch sizes, by their folder (``bs1``),
    over the pairs that both hold; a batch size that shares none is left out.

    Parameters
    ----------
    others
        Runs that should have the same flow: ``gma_lib.pipeline.chain.find_comparable``.
    """
    found = {}
    for other in others:
        files = [[flow_path(one.flow_folder, pair) for one in (run, other)] for pair in pairs]
        both = [one for one in files if all(path.is_file() for path in one)]
        if deviations := [Deviation.between(*map(read_flow, one)) for one in both]:
            largest = np.max([dataclasses.astuple(one) for one in deviations], axis=0).tolist()
            found[other.folder.name] = Deviation(*largest)
    return found


def score_classical(
    pairs: list[FramePair], folder: Path, *, most: int = 100, track: Track = pass_silently
) -> tuple[dict[str, dict[str, ErrorSums]], int, dict[str, float]]:
    """Score the network, its flow after variational refinement, and OpenCV's classical methods on
    the same pairs with ground truth, at most ``most``, evenly chosen.

    Returns
    -------
    scores, pairs, seconds
        Method -> group of pixels -> sums; how many pairs were compared; method -> seconds per pair,
        for the refinement without the network's own.
    """
    chosen = choose_evenly([pair for pair in pairs if pair.flow is not None], most)
    scores: dict[str, list[dict[str, ErrorSums]]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for pair in track(chosen, label="classical methods", unit="pair"):
        frame1, frame2 = pair.load_frames()
        truth, occluded = pair.load_flow(), pair.load_occluded()
        network = read_flow(flow_path(folder, pair))
        scores["network"].append(sum_errors(network, truth, occluded=occluded))
        methods = {"network + variational refinement": partial(refine_flow, flow=network)}
        for name, method in (methods | CLASSICAL).items():
            started = perf_counter()
            flow = method(frame1, frame2)
            seconds[name] += (perf_counter() - started) / len(chosen)
            scores[name].append(sum_errors(flow, truth, occluded=occluded))
    return {name: pool_scores(each) for name, each in scores.items()}, len(chosen), seconds


def choose_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most ``most`` items in their order, the first, the last and evenly between."""
    places = np.linspace(0, len(items) - 1, min(most, len(items)))
    return [items[place] for place in sorted({round(place) for place in places})]


def summarise_classical(scores: Mapping[str, Mapping[str, ErrorSums]], pairs: int) -> Record:
    """Scores of ``score_classical`` as a record: method -> group of pixels -> metrics."""
    return {"pairs": pairs} | {
        name: {group: sums.to_metrics() for group, sums in groups.items()}
        for name, groups in scores.items()
    }


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
