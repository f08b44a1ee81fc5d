"""One estimator, several callers: threads, sequences that take turns, calls in between, and frames
in memory that is used again.
"""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest

from gma_lib.backends import SplitBackend
from gma_lib.infer import estimator
from gma_lib.infer.estimator import Estimator


class Brightening(SplitBackend):
    """Flow is how much brighter the second frame is. Frames lie in one place for all calls, as in
    the runtimes, and a closed model computes nothing.
    """

    device, precision, at_once = "none", "float32", 1

    def __init__(self, meet):
        self.meet, self.is_open = meet, True

    def _compute(self, part, *given):
        assert self.is_open
        self.given = given
        self.meet()
        first, second, *_ = *self.given, None
        if part in ("features", "context"):
            return (first[:, :, ::8, ::8].copy(),)
        flow = (second - first)[:, :2]
        return (flow,) if not part else (flow.repeat(8, axis=2).repeat(8, axis=3), flow)

    def close(self):
        self.is_open = False


@pytest.fixture
def meeting():
    """Where two threads meet that compute in one model at once; broken, nobody waits."""
    barrier = threading.Barrier(2)
    barrier.abort()
    return barrier


@pytest.fixture
def loaded(meeting, monkeypatch):
    """The models that estimators have loaded."""
    models = []

    def meet():
        with suppress(threading.BrokenBarrierError):  # the other one waits for its turn
            meeting.wait(0.3)

    def load(*args, **kwargs):
        models.append(Brightening(meet))
        return models[-1]

    monkeypatch.setattr(Estimator, "_prepare", lambda *args: None)
    monkeypatch.setattr(estimator, "load_backend", load)
    return models


def grey(value, width=136):
    return np.full((3, 128, width), value, np.uint8)


def walk(net, frames):
    return [float(flow.max()) for flow in net.along(frames)]


def call(net, frames):
    return [float(net(*pair).max()) for pair in pairwise(frames)]


@pytest.mark.parametrize("how", [(call, call), (walk, walk), (call, walk)])
def test_threads_get_the_flow_of_their_own_frames(loaded, meeting, how):
    meeting.reset()
    net = pickle.loads(pickle.dumps(Estimator()))  # as a worker receives it
    clips = [[grey(0), grey(1), grey(3)], [grey(0), grey(10), grey(30)]]
    with ThreadPoolExecutor(2) as threads:
        found = [
            threads.submit(function, net, clip) for function, clip in zip(how, clips, strict=True)
        ]
        assert [one.result() for one in found] == [[1, 2], [10, 20]]


def test_a_sequence_goes_on_after_whatever_happens_between_two_pairs(loaded):
    net, frames = Estimator(), [grey(value) for value in (0, 1, 3, 7)]
    flows = net.along(frames)
    assert next(flows).max() == 1
    assert net(frames[2], frames[0]).max() == -3
    assert len(loaded) == 1  # of one size, as the sequence
    assert net(grey(5, 144), grey(9, 144)).max() == 4
    assert next(flows).max() == 2
    net.close()
    assert next(flows).max() == 4


def test_sequences_of_two_sizes_take_turns(loaded):
    net = Estimator()
    narrow = net.along([grey(value) for value in (0, 1, 3)])
    wide = net.along([grey(value, 144) for value in (0, 10, 30)])
    assert [(one.max(), two.max()) for one, two in zip(narrow, wide, strict=True)] == [
        (1, 10),
        (2, 20),
    ]
    assert [model.is_open for model in loaded] == [False] * (len(loaded) - 1) + [True]


def test_a_batch_is_no_frame_of_a_sequence(loaded):
    pairs = [np.stack([grey(value), grey(2 * value)]) for value in (0, 1)]
    with pytest.raises(ValueError, match="frame 1 is a batch, 2 of 136x128 px"):
        next(Estimator().along(pairs))
    assert [flow.max() for flow in Estimator().along(frame[:1] for frame in pairs)] == [1]


def test_each_frame_may_be_written_into_the_memory_of_the_one_before(loaded, monkeypatch):
    seen = []
    monkeypatch.setattr(
        estimator, "refine_flow", lambda *given: seen.append([x.max() for x in given]) or given[2]
    )

    def camera():
        frame = np.empty((3, 128, 136), np.float32)
        for value in (10, 20, 40):
            frame[:] = value
            yield frame

    list(Estimator(refine="variational").along(camera()))
    assert seen == [[10, 20, 10], [20, 40, 20]]
