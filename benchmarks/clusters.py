"""Two workers of one core against one: throughput, and how near `gma plan` comes.

    python benchmarks/clusters.py RUN ROUNDS REPEATS

RUN is a folder bs<N> of results, such as outputs/verify/quick/openvino-float32/bs1. Its pairs are
computed REPEATS times by one worker and by two, round after round in turn. Each plan is made from
the one worker of the round before.
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from gma_lib.data.sintel import load_pairs
from gma_lib.infer.inference import infer
from gma_lib.infer.shards import StoredModel
from gma_lib.perf.schedule import Plan
from gma_lib.runs.clusters import open_cluster


def measure(run: Path, workers: int, repeats: int) -> dict:
    """The summary of a call on as many cores as workers."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:workers])
    converted = json.loads((run / "convert.json").read_text())
    index = json.loads((run.parents[1] / "data" / "index.json").read_text())
    pairs = [
        replace(pair, scene=f"{pair.scene}-{repeat}")
        for repeat in range(repeats)
        for pair in load_pairs(index)
    ]
    try:
        with tempfile.TemporaryDirectory() as folder, open_cluster(f"processes:{workers}") as found:
            assert found.threads == 1
            model = StoredModel.of_record(run / "model", converted, found.threads, {})
            more = {"batch_size": 1, "key": "", "executor": found.executor}
            return infer(pairs, model, Path(folder), **more).to_record()
    finally:
        os.sched_setaffinity(0, cores)


def main(run: Path, rounds: int, repeats: int) -> None:
    before, gains, errors = None, [], []
    for number in range(rounds):
        one, two = (measure(run, workers, repeats) for workers in (1, 2))
        gains.append(one["seconds"] / two["seconds"])
        rates = [
            sum(each["pairs_per_second"] for each in s["workers"].values()) for s in (one, two)
        ]
        print(
            f"round {number}: {one['seconds']:.1f} s and {two['seconds']:.1f} s, "
            f"{gains[-1]:.2f} times as fast; while they compute {rates[1] / rates[0]:.2f}",
            flush=True,
        )
        for workers, measured in ((1, one), (2, two)) if before else ():
            plan = Plan.of_summary(before, workers)
            errors.append(plan.seconds / measured["seconds"] - 1)
            print(f"  {workers}: plan {plan.seconds:.1f} s, {errors[-1]:+.1%}", flush=True)
        before = one
    print(f"times as fast: median {median(gains):.2f}, {min(gains):.2f} to {max(gains):.2f}")
    print(f"plan: {min(errors):+.1%} to {max(errors):+.1%} of the measured")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:]))
