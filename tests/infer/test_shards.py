"""The same flow and the same scores, whoever computes and whoever dies."""

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino
import pytest
from dying import die_at_first
from openvino import opset13 as operations

from gma_lib.backends import FakeBackend, OpenVinoBackend
from gma_lib.data.pair import FramePair
from gma_lib.evaluate.evaluation import score_folder
from gma_lib.infer import shards
from gma_lib.infer.inference import LEDGER, StoredFlow, infer, read_hashes
from gma_lib.infer.shards import StoredModel, borrow_backend, cut_shards
from gma_lib.runs import leftovers, pool
from gma_lib.runs.clusters import open_cluster
from gma_lib.runs.digests import hash_files
from gma_lib.runs.files import PROJECT


def scene(name, pairs, pass_name="clean"):
    frame = Path("frame.png")
    return [FramePair(pass_name, name, number, frame, frame) for number in range(1, pairs + 1)]


@pytest.mark.parametrize(
    ("batch_size", "lengths"),
    [(1, [16, 16, 8, 3, 3]), (3, [15, 15, 10, 3, 3]), (16, [16, 16, 8, 3, 3]), (64, [40, 3, 3])],
)
def test_shards_are_scenes_of_a_pass_and_long_ones_are_cut(batch_size, lengths):
    pairs = [*scene("a", 40), *scene("b", 3), *scene("b", 3, "final")]
    shards = cut_shards(pairs, batch_size)
    assert [len(shard) for shard in shards] == lengths
    assert [pair for shard in shards for pair in shard] == pairs


def test_no_pairs_are_no_shards():
    assert cut_shards([]) == []


def write_model(folder: Path) -> None:
    """A network of a few convolutions, in parts and whole, for frames of 128x160."""
    rng = np.random.default_rng(0)

    def constant(*shape):
        return operations.constant(rng.normal(scale=0.02, size=shape).astype(np.float32))

    def parameter(name, *shape):
        made = operations.parameter(shape, np.float32, name=name)
        made.output(0).tensor.set_names({name})
        return made

    def convolve(image, kernel, stride):
        return operations.convolution(image, kernel, [stride] * 2, [0, 0], [0, 0], [1, 1])

    def save(name, outputs, inputs):
        model = openvino.Model(outputs, inputs, name)
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)

    encode, guide = constant(4, 3, 8, 8), constant(4, 3, 8, 8)
    mix, spread = constant(2, 14, 1, 1), constant(2, 2, 8, 8)

    def refine(*arrays):
        coarse = operations.tanh(convolve(operations.concat(arrays, 1), mix, 1))
        return operations.convolution_backprop_data(coarse, spread, [8, 8]), coarse

    for name, kernel in (("gma_features", encode), ("gma_context", guide)):
        image = parameter("image", 1, 3, 128, 160)
        save(name, [convolve(image, kernel, 8)], [image])
    encoded = [parameter(name, 1, 4, 16, 20) for name in ("features1", "features2", "context")]
    encoded.append(parameter("flow_init", 1, 2, 16, 20))
    save("gma_refine", [*refine(*encoded)], encoded)
    images = [parameter(name, 1, 3, 128, 160) for name in ("image1", "image2")]
    kernels = zip((images[0], images[1], images[0]), (encode, encode, guide), strict=True)
    start = operations.constant(np.zeros((1, 2, 16, 20), np.float32))
    flow, _ = refine(*(convolve(image, kernel, 8) for image, kernel in kernels), start)
    save("gma", [flow], images)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    device = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    files = hash_files(folder.iterdir())
    return StoredModel("openvino", folder, "float32", files, device, threads=1)


def compute(pairs, model, folder, executor=None):
    """Flow by digest, scores to the last bit, and the summary."""
    summary = infer(pairs, model, folder, batch_size=1, key="k", executor=executor)
    written = read_hashes(folder)
    assert len((folder / LEDGER).read_text().split()) == 6 * len(pairs)  # words of an entry
    scores = score_folder(pairs, StoredFlow(folder, written), executor=executor)
    return written, repr(scores), summary


class Dying(Executor):
    """Workers of which the first get a signal when they have computed a shard, before they say
    so.
    """

    def __init__(self, workers, folder, signals):
        self.workers, self.folder, self.signals = workers, folder, signals
        folder.mkdir()

    def submit(self, fn, /, *args, **kwargs):
        return self.workers.submit(die_at_first, self.folder, self.signals, fn, *args, **kwargs)


def test_any_executor_gives_the_same(pairs, model, tmp_path):
    flow, scores, summary = compute(pairs, model, tmp_path / "serial")
    assert (summary.computed, summary.threads, summary.workers) == (8, 1, {})
    with ThreadPoolExecutor(3) as executor:
        found = compute(pairs, model, tmp_path / "threads", executor)
        assert found[:2] == (flow, scores)
        assert found[2].workers["worker 1"]["pairs"] == 8
        with borrow_backend(model, None) as backend:
            assert backend.options.threads == 1
        again = infer(pairs, model, tmp_path / "threads", batch_size=1, key="k", executor=executor)
    assert (again.computed, again.reused) == (0, 8)


class Containers(Executor):
    """Two workers in turn, whose containers have the same host name and count processes alike."""

    def submit(self, fn, /, *args, **kwargs):
        self.turn = not getattr(self, "turn", False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leftovers, "_name_host", lambda: f"000{self.turn:d}")
            leftovers._name_owner.cache_clear()
            future = Future()
            future.set_result(fn(*args, **kwargs))
        leftovers._name_owner.cache_clear()
        return future


def test_workers_of_one_host_name_and_number_are_told_apart(pairs, model, tmp_path):
    summary = infer(pairs, model, tmp_path / "flow", batch_size=1, key="k", executor=Containers())
    assert {name: one["pairs"] for name, one in summary.workers.items()} == {
        "worker 1": 4,
        "worker 2": 4,
    }
    who = [one["worker"] for one in summary.shards]
    assert len(set(who[:2])) == 2  # which of them is the first is a matter of chance
    assert who[2:] == who[:2]


def test_a_worker_loads_no_other_model(pairs, model, tmp_path):
    """Neither one of another content, nor on another device, nor one that was handed over."""
    with ThreadPoolExecutor(1) as executor:
        more = {"batch_size": 1, "key": "k", "executor": executor}
        other = dataclasses.replace(model, device="Another CPU")
        with pytest.raises(ValueError, match="Another CPU"):
            infer(pairs, other, tmp_path / "flow", **more)
        with pytest.raises(ValueError, match="StoredModel"):
            infer(pairs, FakeBackend(), tmp_path / "flow", **more)
        weights = model.folder / "gma_refine.bin"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        changed = dataclasses.replace(model, threads=2)  # not the one that is loaded
        with pytest.raises(ValueError, match=r"gma_refine\.bin has SHA-256"):
            infer(pairs, changed, tmp_path / "flow", **more)
    assert not (tmp_path / "flow").exists()


def test_this_process_computes_on_no_other_device_either(pairs, model, tmp_path, monkeypatch):
    """A call that was resumed on another GPU went on under the key of the first."""
    opened, load = [], shards.load_backend
    monkeypatch.setattr(
        shards, "load_backend", lambda *a, **b: opened.append(load(*a, **b)) or opened[-1]
    )
    monkeypatch.setattr(OpenVinoBackend, "close", lambda backend: opened.remove(backend))
    other = dataclasses.replace(model, device="Another CPU")
    with pytest.raises(ValueError, match=r"on Another CPU in 03_convert: .*run 03_convert again"):
        infer(pairs, other, tmp_path / "flow", batch_size=1, key="k")
    assert not (tmp_path / "flow").exists()
    assert not opened


@contextmanager
def open_workers(kind):
    """Two workers, and the executor that gives to them."""
    if kind == "processes":
        with open_cluster("processes:2") as workers:
            yield workers
        return
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        open_cluster(f"dask:{cluster.scheduler_address}") as workers,
    ):
        yield workers


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_the_same_bytes_from_real_workers_and_after_two_kills(
    pairs, model, tmp_path, messages, kind
):
    """Two processes with a thread each; the second time, two are killed with their shards done."""
    expected = compute(pairs, model, tmp_path / "serial")[:2]
    with open_workers(kind) as workers:
        assert workers.threads == 1
        found = compute(pairs, model, tmp_path / "plain", workers.executor)
        assert found[:2] == expected
        assert not [line for line in messages if "killed" in line or "lost" in line]
        dying = Dying(workers.executor, tmp_path / "markers", [signal.SIGKILL] * 2)
        survived = compute(pairs, model, tmp_path / "killed", dying)
    assert len([*(tmp_path / "markers").iterdir()]) == 2
    assert survived[:2] == expected
    assert survived[2].computed == 8
    assert len([line for line in messages if "killed" in line or "lost" in line]) == 2


@pytest.mark.exhaustive
def test_the_same_bytes_after_a_worker_hangs(pairs, model, tmp_path, messages, monkeypatch):
    monkeypatch.setattr(pool, "SECONDS_IDLE", 3)
    expected = compute(pairs, model, tmp_path / "serial")[:2]
    with open_cluster("processes:2") as workers:
        hanging = Dying(workers.executor, tmp_path / "markers", [signal.SIGSTOP])
        survived = compute(pairs, model, tmp_path / "hung", hanging)
    assert survived[:2] == expected
    assert survived[2].computed == 8
    assert len([line for line in messages if "no processor time" in line]) == 1


# Two hosts, each a network namespace with one cable to this one, and an empty folder instead of the
# data set, the model and the results. Arguments: that folder, a Python program, its arguments.
HOSTS = """
ip link set lo up
folder=$1; shift
python=$1; shift
"$python" -m distributed.cli.dask_scheduler --host 0.0.0.0 --port 8786 --no-dashboard &
for number in 1 2; do
    unshare --net --mount sh -ec '
        mount -t tmpfs none "$1" && mkdir "$1/tmp" && cd "$1/tmp"
        until ip addr add "10.77.$3.2/24" dev eth0 2>/dev/null; do sleep 0.1; done
        ip link set eth0 up && ip link set lo up
        TMPDIR="$1/tmp" exec "$2" -m distributed.cli.dask_worker "tcp://10.77.$3.1:8786" \
            --nthreads 1 --no-dashboard
    ' worker "$folder" "$python" "$number" &
    while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
    ip link add "cable$number" type veth peer name eth0 netns $!
    ip addr add "10.77.$number.1/24" dev "cable$number"
    ip link set "cable$number" up
done
"$python" "$@"
"""
COMPUTE = """
import os, pickle, sys
from pathlib import Path
sys.path.append("tests/infer")
from test_shards import compute
from gma_lib.runs.clusters import open_cluster
pairs, model, folder = pickle.loads(Path(sys.argv[1]).read_bytes())
with open_cluster("dask:127.0.0.1:8786") as workers:
    workers.executor._client.wait_for_workers(2, timeout=60)
    hidden = workers.executor.submit(os.path.exists, folder / "tiny-sintel").result()
    flow, scores, summary = compute(pairs, model, folder / "hosts", workers.executor)
Path(sys.argv[1]).write_bytes(pickle.dumps([hidden, flow, scores, len(summary.workers)]))
"""


@pytest.mark.exhaustive
def test_two_hosts_without_a_common_folder_compute_the_same(pairs, model, tmp_path):
    namespace = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--mount-proc"]
    namespace += ["--fork", "--kill-child", "sh", "-ec"]
    probe = [
        *namespace,
        "ip link add cable1 type veth peer name cable2 && mount -t tmpfs none /mnt",
    ]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs permission for network namespaces")
    expected = compute(pairs, model, tmp_path / "serial")[:2]
    given = tmp_path / "given.pickle"
    given.write_bytes(pickle.dumps([pairs, model, tmp_path]))
    command = [*namespace, HOSTS, "hosts", tmp_path, sys.executable, "-c", COMPUTE, given]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), "tests"])}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=PROJECT, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert pickle.loads(given.read_bytes()) == [False, *expected, 2]
