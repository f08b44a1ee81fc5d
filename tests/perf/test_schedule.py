"""A plan keeps the laws of scheduling, and says what limits it."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gma_lib.perf.schedule import Plan, replay_shards

SHARDS = some.lists(some.floats(0.01, 1e4), min_size=1, max_size=40)
START = some.floats(0, 1e3)


@given(SHARDS, START)
def test_one_worker_takes_the_sum_and_its_start(seconds, start):
    assert replay_shards(seconds, start, 1) == pytest.approx(start + sum(seconds))


@given(SHARDS, START, some.integers(1, 60))
def test_workers_keep_their_bounds(seconds, start, workers):
    """Never below the longest shard or an even share; above by a shard at most (Graham 1969)."""
    found = replay_shards(seconds, start, workers) - start
    even = sum(seconds) / workers
    assert found >= max(max(seconds), even) * (1 - 1e-6) - 1e-6
    assert found <= (even + max(seconds)) * (1 + 1e-6) + 1e-6


@given(SHARDS, START, some.integers(0, 10))
def test_more_workers_than_shards_add_nothing(seconds, start, more):
    found = replay_shards(seconds, start, len(seconds) + more)
    assert found == start + max(seconds)


def summary(*seconds, start=2.0):
    shards = [
        {"first": f"clean/a/{place}", "worker": "worker 1", "start": start, "seconds": one}
        for place, one in enumerate(seconds)
    ]
    return {"computed": len(shards), "reused": 0, "shards": shards}


@pytest.mark.parametrize(
    ("workers", "seconds", "busy", "limit"),
    [
        (1, 22, 20 / 22, "computing"),
        (2, 14, 20 / 28, "computing"),  # 4 and 8; 6 and 2
        (3, 10, 20 / 30, "the longest shard, clean/a/2"),  # 4 and 2; 6; 8
    ],
)
def test_what_limits_a_plan(workers, seconds, busy, limit):
    """Shards of 4, 6, 8 and 2 seconds, after 2 to start."""
    plan = Plan.of_summary(summary(4, 6, 8, 2), workers)
    assert (plan.workers, plan.seconds, plan.limit) == (workers, seconds, limit)
    assert plan.busy == pytest.approx(busy)


@pytest.mark.parametrize(("reused", "shards"), [(0, 3), (3, 6), (4, 7)])
def test_what_an_earlier_call_computed_is_planned_too(reused, shards):
    resumed = summary(4, 4, 4) | {"reused": reused}
    assert Plan.of_summary(resumed, 1).seconds == 2 + 4 * shards


def test_a_slow_start_limits_too():
    assert Plan.of_summary(summary(1, 1, start=30), 1).limit == "the start"


@pytest.mark.parametrize("content", [{}, {"shards": []}])
def test_without_times_there_is_no_plan(content):
    with pytest.raises(ValueError, match="04_infer"):
        Plan.of_summary(content, 1)
