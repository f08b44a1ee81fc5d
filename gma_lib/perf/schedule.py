"""``gma plan``: how long 04_infer would take on N workers, from the times of its shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import cycle, islice
from statistics import median

from gma_lib.runs.records import Record


@dataclass(frozen=True)
class Plan:
    """An estimate for some workers, each as fast as the measured ones.

    Attributes
    ----------
    seconds
        Wall-clock of the call.
    busy
        Share of that time in which the workers compute.
    limit
        What takes most of it: more workers shorten only ``computing``.
    """

    workers: int
    seconds: float
    busy: float
    limit: str

    @classmethod
    def of_summary(cls, summary: Record, workers: int) -> "Plan":
        """Replay the shards of ``infer.json``; ValueError where it has none."""
        seconds = list_seconds(summary)
        shards: list[Record] = summary["shards"]
        first = {shard["worker"]: shard["start"] for shard in reversed(shards)}
        start = median(first.values())
        total = replay_shards(seconds, start, workers)
        longest = max(shards, key=lambda shard: shard["seconds"])
        parts = {
            "computing": sum(seconds) / workers,
            f"the longest shard, {longest['first']}": longest["seconds"],
            "the start": start,
        }
        busy = sum(seconds) / (total * workers)
        return cls(workers, total, busy, max(parts, key=parts.__getitem__))


def list_seconds(summary: Record) -> list[float]:
    """Return the seconds of every shard of a run; ValueError where ``infer.json`` has none.

    The last call timed only what it computed. Shards that were there before take as long as these.
    """
    shards: list[Record] = summary.get("shards", [])
    if not shards:
        raise ValueError(
            "infer.json has no times of shards: run 04_infer again, into another folder"
        )
    whole = 1 + summary["reused"] / summary["computed"]
    return list(islice(cycle(one["seconds"] for one in shards), round(whole * len(shards))))


def replay_shards(seconds: Sequence[float], start: float, workers: int) -> float:
    """Return the wall-clock of shards that are given in order to whoever is free.

    Parameters
    ----------
    seconds
        Of each shard.
    start
        Seconds until a worker begins its first: its own start, and loading the model.
    """
    free = [start] * min(workers, len(seconds))  # a heap
    for one in seconds:
        heapreplace(free, free[0] + one)
    return max(free)
