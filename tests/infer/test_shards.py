"""The same flow and the same scores, whoever computes and whoever dies."""

import dataclasses
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino
import pytest
from dying import die_the_first_time
from openvino import opset13 as operations

from gma_lib.backends import FakeBackend
from gma_lib.data.sintel import FramePair
from gma_lib.evaluate.evaluation import score_folder
from gma_lib.infer.inference import LEDGER, infer, read_hashes
from gma_lib.infer.shards import StoredModel, borrow_backend, cut_shards
from gma_lib.runs.clusters import open_cluster
from gma_lib.runs.digests import hash_files


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
    return written, repr(score_folder(pairs, folder, written=written, executor=executor)), summary


class Dying(Executor):
    """Workers of which one is killed when it has computed a shard, before it says so."""

    def __init__(self, workers, marker):
        self.workers, self.marker = workers, marker

    def submit(self, fn, /, *args, **kwargs):
        return self.workers.submit(die_the_first_time, self.marker, fn, *args, **kwargs)


def test_any_executor_gives_the_same(pairs, model, tmp_path):
    flow, scores, summary = compute(pairs, model, tmp_path / "serial")
    assert (summary.computed, summary.threads, summary.workers) == (8, 1, {})
    with ThreadPoolExecutor(3) as executor:
        found = compute(pairs, model, tmp_path / "threads", executor)
        assert found[:2] == (flow, scores)
        assert found[2].workers["worker 1"]["pairs"] == 8
        with borrow_backend(model) as backend:
            assert backend.options.threads == 1
        again = infer(pairs, model, tmp_path / "threads", batch_size=1, key="k", executor=executor)
    assert (again.computed, again.reused) == (0, 8)


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
        with pytest.raises(ValueError, match=r"gma_refine\.bin.*03_convert"):
            infer(pairs, changed, tmp_path / "flow", **more)
    assert not (tmp_path / "flow").exists()


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
def test_the_same_bytes_from_real_workers_and_after_a_kill(pairs, model, tmp_path, messages, kind):
    """Two processes with a thread each; the second time one is killed with its shard done."""
    expected = compute(pairs, model, tmp_path / "serial")[:2]
    with open_workers(kind) as workers:
        assert workers.threads == 1
        found = compute(pairs, model, tmp_path / "plain", workers.executor)
        assert found[:2] == expected
        assert not [line for line in messages if "killed" in line or "lost" in line]
        dying = Dying(workers.executor, tmp_path / "marker")
        survived = compute(pairs, model, tmp_path / "killed", dying)
    assert (tmp_path / "marker").exists()
    assert survived[:2] == expected
    assert survived[2].computed == 8
    assert len([line for line in messages if "killed" in line or "lost" in line]) == 1
