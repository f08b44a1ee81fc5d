"""The next batch is read and the last flow written while a batch is computed: in order, one batch
ahead, and whatever fails or interrupts, the ledger names what is whole.
"""

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from gma_lib.backends import FakeBackend
from gma_lib.infer import inference

WAIT = 30  # seconds, for what must happen; never reached unless it does not


def flow_of(image1, image2):
    return np.stack([image1[:, 0], image2[:, 1]], axis=1)


def infer(pairs, backend, folder, batch_size=1, **more):
    return inference.infer(pairs, backend, folder, batch_size=batch_size, key="k", **more)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_threads_read_ahead_and_write_behind(pairs, tmp_path, monkeypatch, batch_size):
    """Each batch is computed only once the next of its scene is read and all before are stored,
    which without threads never happens; reading is never two batches ahead.
    """
    folder, read, log = tmp_path / "flow", inference.read_batch, []
    batches = [group for shard in inference.cut_shards(pairs) for group in cut(shard, batch_size)]
    last = {shard[-1].name for shard in inference.cut_shards(pairs)}
    reads, threads = [threading.Event() for _ in batches], set()

    def read_batch(batch, batch_size):
        number = batches.index(batch)
        assert number <= len(log) + 1
        threads.add(threading.get_ident())
        reads[number].set()
        return read(batch, batch_size)

    def compute(image1, image2):
        threads.add(-threading.get_ident())
        number = len(log)
        log.append(number)
        assert reads[number].is_set()
        assert batches[number][-1].name in last or reads[number + 1].wait(WAIT)
        before = [pair.name for batch in batches[:number] for pair in batch]
        for _ in range(WAIT * 100):
            if [*inference.read_hashes(folder)] == before:
                return flow_of(image1, image2)
            threading.Event().wait(0.01)
        raise AssertionError(f"not stored while the next is computed: {before}")

    monkeypatch.setattr(inference, "read_batch", read_batch)
    infer(pairs, FakeBackend(compute), folder, batch_size)
    assert -threading.get_ident() in threads  # computes
    assert threading.get_ident() not in threads
    for pair in pairs:
        frame1, frame2 = pair.load_frames()
        stored = inference.flow_path(folder, pair).read_bytes()[12:]
        assert stored == np.stack([frame1[0], frame2[1]], axis=-1).tobytes()


def cut(items, size):
    return [items[first : first + size] for first in range(0, len(items), size)]


def test_progress_counts_what_is_stored(pairs, tmp_path):
    folder, counts = tmp_path / "flow", []

    def track(items, **about):
        assert about["total"] == len(pairs)
        for done, item in enumerate(items, start=1):
            counts.append((done, len(inference.read_hashes(folder)) >= done))
            yield item

    infer(pairs, FakeBackend(flow_of), folder, track=track)
    assert counts == [(done, True) for done in range(1, len(pairs) + 1)]


def test_a_frame_that_cannot_be_read(pairs, tmp_path):
    """What comes before it is stored, and read ahead it spoils nothing."""
    folder, content = tmp_path / "flow", pairs[1].image2.read_bytes()
    pairs[1].image2.write_bytes(content[:-500])
    with pytest.raises(ValueError, match=r"(?i)alley/frame_0003\.png.*truncated"):
        infer(pairs, FakeBackend(flow_of), folder)
    assert [*inference.read_hashes(folder)] == [pairs[0].name]
    pairs[1].image2.write_bytes(content)
    assert infer(pairs, FakeBackend(flow_of), folder).computed == len(pairs) - 1


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 3), (2, 2)])
def test_a_flow_file_that_cannot_be_written(pairs, tmp_path, batch_size, calls):
    """It ends the call by the next batch at the latest, with its name."""
    folder = tmp_path / "flow"
    obstacle = inference.flow_path(folder, pairs[1])
    (obstacle / "in the way").mkdir(parents=True)
    backend = FakeBackend(flow_of)
    with pytest.raises(OSError, match=r"frame_0002\.flo"):
        infer(pairs, backend, folder, batch_size)
    assert backend.calls <= calls
    assert pairs[1].name not in inference.read_hashes(folder)
    (obstacle / "in the way").rmdir()
    obstacle.rmdir()
    infer(pairs, FakeBackend(flow_of), folder, batch_size)
    assert {*inference.read_hashes(folder)} == {pair.name for pair in pairs}


@pytest.mark.parametrize("last", [False, True])
def test_an_error_while_computing_loses_no_flow(pairs, tmp_path, last):
    pairs, folder = pairs[:2], tmp_path / "flow"

    def compute(image1, image2):
        if backend.calls == (2 if last else 1):
            raise RuntimeError("the device is gone")
        return flow_of(image1, image2)

    backend = FakeBackend(compute)
    with pytest.raises(RuntimeError, match="the device is gone"):
        infer(pairs, backend, folder)
    assert [*inference.read_hashes(folder)] == [pair.name for pair in pairs[: 1 if last else 0]]


WRITING = """
import sys, time
from pathlib import Path
from gma_lib.backends import FakeBackend
from gma_lib.data import sintel
from gma_lib.infer import inference
from gma_lib.runs import files

sync = files._sync

def slow_sync(path):
    if path.name.endswith("frame_0002.flo") and len(sys.argv) > 3:
        print("writing", flush=True)
        time.sleep(float(sys.argv[3]))
    sync(path)

files._sync = slow_sync
flow = lambda image1, image2: image1[:, :2]
pairs = sintel.find_pairs(Path(sys.argv[1]))
inference.infer(pairs, FakeBackend(flow), Path(sys.argv[2]), batch_size=1, key="k")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "seconds", "stored"),
    [
        pytest.param(signal.SIGKILL, 60, 1, marks=pytest.mark.exhaustive, id="killed"),
        pytest.param(signal.SIGTERM, 60, 1, marks=pytest.mark.exhaustive, id="terminated"),
        pytest.param(signal.SIGINT, 1, 2, id="interrupted"),
    ],
)
def test_stopped_while_a_flow_file_is_written(tiny_sintel, tmp_path, how, seconds, stored):
    """Stopped hard, the file is not there and not in the ledger; interrupted, it is finished. Then
    the next call computes the rest, to the bytes of a call that nothing stopped.
    """
    command = [sys.executable, "-c", WRITING, str(tiny_sintel)]
    folder, whole = tmp_path / "flow", tmp_path / "whole"
    process = subprocess.Popen(
        [*command, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(how)
    process.wait(timeout=WAIT)
    assert process.returncode
    assert len(inference.read_hashes(folder)) == stored
    assert len(list(folder.rglob("frame_*.flo"))) == stored
    for each in (folder, whole):
        subprocess.run([*command, str(each)], check=True, timeout=WAIT)
    found, expected = (
        {path.relative_to(each): path.read_bytes() for path in each.rglob("*.flo")}
        for each in (folder, whole)
    )
    assert found == expected
    assert len(found) == 4
