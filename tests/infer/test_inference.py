"""Pairs become flow files: each once, whole, of the right pair, whatever interrupts."""

import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gma_lib import export
from gma_lib.backends import BACKENDS, FakeBackend, SplitBackend, load_backend
from gma_lib.convert import convert
from gma_lib.data import sintel
from gma_lib.flow.files import read_flow, write_flow
from gma_lib.flow.images import read_frame, write_frame
from gma_lib.flow.metrics import Deviation
from gma_lib.infer import inference, means
from gma_lib.infer.shards import StoredModel
from gma_lib.runs.files import PACKAGE

# What computes on any machine; the GPU and the card, by their stand-ins, have tests of their own.
RUNTIMES = tuple(
    name for name, kind in BACKENDS.items() if name != "ascend" and kind.computes_on == "cpu"
)


def first_value(image1, image2):
    """Flow that tells whose it is: the first pixel of either frame, everywhere."""
    batch, _, height, width = image1.shape
    u, v = image1[:, 0, 0, 0], image2[:, 0, 0, 0]
    return np.stack([u, v], axis=1)[:, :, None, None] * np.ones(
        (batch, 2, height, width), np.float32
    )


@pytest.mark.parametrize(("batch_size", "filled"), [(1, 0), (2, 0), (3, 4), (16, 56)])
def test_every_pair_gets_its_own_flow(pairs, tmp_path, batch_size, filled):
    backend = FakeBackend(first_value)
    summary = inference.infer(pairs, backend, tmp_path / "flow", batch_size=batch_size, key="k")
    assert (summary.pairs, summary.computed, summary.reused, summary.filled) == (8, 8, 0, filled)
    assert backend.calls == (8 if batch_size == 1 else 4)  # a batch holds pairs of one scene
    for pair in pairs:
        flow = read_flow(tmp_path / "flow" / f"{pair.name}.flo")
        assert flow.shape == (2, 128, 160)
        assert flow[:, 5, 5].tolist() == [
            read_frame(pair.image1)[0, 0, 0],
            read_frame(pair.image2)[0, 0, 0],
        ]


class CountingSplit(SplitBackend):
    """A split backend of arithmetic: features are the first pixel, flow is (features of 1, features
    of 2).
    """

    device = precision = "none"
    at_once = 1

    def __init__(self):
        self.encoded, self.contexts = 0, 0

    def features(self, image):
        assert image.shape == (1, 3, 128, 160)
        self.encoded += 1
        return image[:, :1, :1, :1]

    def context(self, image):
        self.contexts += 1
        return image[:, :1, :1, :1]

    def refine(self, features1, features2, context, flow_init=None):
        assert (context == features1).all()
        flow = np.concatenate([features1, features2], axis=1) * np.ones(
            (1, 2, 128, 160), np.float32
        )
        return flow, flow[:, :, ::8, ::8]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_frame_of_a_scene_is_encoded_once(pairs, tmp_path, batch_size):
    """Two passes of two scenes of three frames: 12 features instead of 16, 8 contexts, and the flow
    of the pairs one by one.
    """
    backend = CountingSplit()
    summary = inference.infer(pairs, backend, tmp_path / "flow", batch_size=batch_size, key="k")
    assert summary.computed == 8
    assert (backend.encoded, backend.contexts) == (12, 8)
    for pair in pairs:
        flow = read_flow(tmp_path / "flow" / f"{pair.name}.flo")
        assert flow[:, 5, 5].tolist() == [
            read_frame(pair.image1)[0, 0, 0],
            read_frame(pair.image2)[0, 0, 0],
        ]


def test_pairs_in_any_order_get_their_own_flow(pairs, tmp_path):
    backend = CountingSplit()
    inference.infer(pairs[::-1], backend, tmp_path / "flow", batch_size=2, key="k")
    assert backend.encoded == 16  # nothing to share backwards
    for pair in pairs:
        flow = read_flow(tmp_path / "flow" / f"{pair.name}.flo")
        assert flow[:, 5, 5].tolist() == [
            read_frame(pair.image1)[0, 0, 0],
            read_frame(pair.image2)[0, 0, 0],
        ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, shallow):
    """The network and its parts, for batches of two."""
    folder = tmp_path_factory.mktemp("exported")
    size = {"height": 128, "width": 160, "batch_size": 2, "checkpoint": shallow[1]}
    export.export_whole(shallow[0], folder / "gma.onnx", **size)
    export.export_split(shallow[0], folder, **size)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_along_a_sequence_as_pair_by_pair(name, pairs, tmp_path, exported):
    convert(name, exported, checkpoint="seeded")
    with load_backend(name, exported, precision="float32") as backend:
        inference.infer(pairs[:4], backend, tmp_path / "flow", batch_size=2, key="k")
        for pair in pairs[:4]:
            image1, image2 = (read_frame(path)[None] for path in (pair.image1, pair.image2))
            alone = backend.predict(image1, image2)
            found = read_flow(tmp_path / "flow" / f"{pair.name}.flo")[None]
            assert Deviation.between(found, alone).max < 1e-3
            assert Deviation.between(found, backend.predict(image2, image1)).max > 0.5


def test_flow_is_unpadded(tmp_path):
    for number in (1, 2):
        write_frame(
            tmp_path / f"training/clean/a/frame_000{number}.png",
            np.full((3, 130, 161), number, np.float32),
        )

    def rows(image1, image2):
        assert image1.shape == (1, 3, 136, 168)
        return np.broadcast_to(np.arange(136, dtype=np.float32)[:, None], (1, 2, 136, 168)).copy()

    inference.infer(
        sintel.find_pairs(tmp_path), FakeBackend(rows), tmp_path / "flow", batch_size=1, key="k"
    )
    flow = read_flow(tmp_path / "flow/clean/a/frame_0001.flo")
    assert flow.shape == (2, 130, 161)
    assert flow[0, :, 0].tolist() == list(range(3, 133))


def test_what_is_there_is_not_computed_again(pairs, tmp_path):
    folder = tmp_path / "flow"
    first = inference.infer(pairs[:5], FakeBackend(first_value), folder, batch_size=2, key="k")
    assert first.describe().startswith("5 of 5 pairs")
    backend = FakeBackend(first_value)
    summary = inference.infer(pairs, backend, folder, batch_size=2, key="k")
    assert (summary.computed, summary.reused, backend.calls) == (3, 5, 2)
    assert summary.describe().startswith("3 of 8 pairs")
    again = inference.infer(pairs, backend, folder, batch_size=2, key="k")
    assert "all 8 pairs" in again.describe()


@pytest.mark.parametrize("change", ["key", "frame", "file", "missing", "half a line"])
def test_what_is_not_the_same_is_computed_again(pairs, tmp_path, change):
    folder, key = tmp_path / "flow", "k"
    inference.infer(pairs, FakeBackend(first_value), folder, batch_size=4, key=key)
    expected = 1
    path = inference.flow_path(folder, pairs[0])
    if change == "key":
        key, expected = "another model", 8
    elif change == "frame":
        write_frame(pairs[0].image1, 255 - read_frame(pairs[0].image1))
    elif change == "file":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif change == "missing":
        path.unlink()
    else:
        lines = (folder / inference.LEDGER).read_text().strip().splitlines()
        (folder / inference.LEDGER).write_text("\n".join([*lines[1:], lines[0][:40]]))
    assert (
        inference.infer(pairs, FakeBackend(first_value), folder, batch_size=4, key=key).computed
        == expected
    )
    assert (
        inference.infer(pairs, FakeBackend(first_value), folder, batch_size=4, key=key).computed
        == 0
    )


BLOCKED = """
import sys, time
import numpy as np
from itertools import count
from pathlib import Path
from gma_lib.backends import FakeBackend
from gma_lib.data import sintel
from gma_lib.infer import inference

numbers, folder = count(1), Path(sys.argv[2])

def compute(image1, image2):
    if next(numbers) == 3:
        for _ in range(3000):  # the second is written by another thread
            if len(inference.read_hashes(folder)) == 2:
                break
            time.sleep(0.01)
        print("third", flush=True)
        sys.stdin.read()
    print("call", flush=True)
    return np.zeros((len(image1), 2, *image1.shape[2:]), np.float32)

pairs = sintel.find_pairs(Path(sys.argv[1]))
inference.infer(pairs, FakeBackend(compute), folder, batch_size=1, key="k")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_started_again(tiny_sintel, tmp_path, how):
    """A real process, stopped for real in the middle: no stored pair is computed twice, none is
    missing.
    """
    command = [sys.executable, "-c", BLOCKED, str(tiny_sintel), str(tmp_path / "flow")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert [process.stdout.readline() for _ in range(3)] == ["call\n", "call\n", "third\n"]
        process.send_signal(how)
        assert process.wait(timeout=30) != 0
    assert len(inference.read_hashes(tmp_path / "flow")) == 2
    flows = sorted(path.name for path in (tmp_path / "flow").rglob("*.flo"))
    assert flows == ["frame_0001.flo", "frame_0002.flo"]
    closed = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    again = subprocess.run(command, text=True, check=True, **closed)
    assert again.stdout == "call\ncall\n"
    assert len(list((tmp_path / "flow").rglob("frame_*.flo"))) == 4


def test_the_key_follows_what_decides_flow(tmp_path, monkeypatch):
    """Else 04_infer keeps the old flow when it is run again for another network or processor."""
    converted = {"model_sha256": "0", "backend": "torch", "precision": "float32", "device": "CPU"}
    shutil.copytree(PACKAGE, tmp_path / "gma_lib")
    monkeypatch.setattr(means, "PACKAGE", tmp_path / "gma_lib")
    key = inference.inference_key(converted)
    network = tmp_path / "gma_lib/network/model.py"
    network.write_text(network.read_text() + "# a comment\n")
    (tmp_path / "gma_lib/report/index.py").unlink()  # decides nothing
    assert inference.inference_key(converted) == key
    assert inference.inference_key(converted | {"precision": "bfloat16"}) != key
    with monkeypatch.context() as patch:
        patch.setattr(means, "identify_processor", lambda: "another")
        assert inference.inference_key(converted) != key
    with monkeypatch.context() as patch:
        patch.setattr(means, "find_versions", lambda names: {"torch": "1"})
        assert inference.inference_key(converted) != key
    network.write_text(network.read_text() + "EPSILON = 1e-3\n")
    assert inference.inference_key(converted) != key


@pytest.mark.parametrize(("precision", "computed"), [("float32", 0), ("bfloat16", 8)])
def test_flow_of_other_threads_is_kept_where_it_is_the_same(
    pairs, tmp_path, monkeypatch, precision, computed
):
    """In bfloat16 their number moves flow by up to 0.21 px."""
    monkeypatch.setattr(StoredModel, "load", lambda model: FakeBackend(first_value))
    model = StoredModel("openvino", tmp_path, precision, {}, "CPU", threads=2)
    infer = partial(inference.infer, pairs, folder=tmp_path / "flow", batch_size=1, key="k")
    assert infer(backend=model).computed == 8
    assert infer(backend=model).computed == 0
    assert infer(backend=replace(model, threads=1)).computed == computed


@pytest.mark.parametrize("when", ["before", "while", "never"])
def test_flow_that_is_replaced_until_it_has_been_read_is_refused(
    pairs, tmp_path, monkeypatch, when
):
    inference.infer(pairs[:2], FakeBackend(), tmp_path, batch_size=1, key="k")
    stored = inference.StoredFlow(tmp_path, inference.read_hashes(tmp_path))

    def replace_it():
        write_flow(stored.locate(pairs[0]), np.full((2, 128, 160), 40, np.float32))

    def read(path):
        flow = read_flow(path)
        if when == "while":
            replace_it()
        return flow

    if when == "before":
        replace_it()
    monkeypatch.setattr(inference, "read_flow", read)
    with (
        nullcontext() if when == "never" else pytest.raises(ValueError, match="run 04_infer again")
    ):
        assert not stored.read(pairs[0]).any()
    with pytest.raises(ValueError, match="run 04_infer again"):
        stored.read(pairs[2])  # nobody recorded it


def test_flow_that_is_not_finite_is_refused(pairs, tmp_path):
    def broken(image1, image2):
        return np.full((len(image1), 2, *image1.shape[2:]), np.nan, np.float32)

    with pytest.raises(ValueError, match=r"clean/alley/frame_0001.*finite"):
        inference.infer(pairs, FakeBackend(broken), tmp_path / "flow", batch_size=1, key="k")
    assert not list(tmp_path.glob("flow/**/*.flo"))


def test_flow_of_another_shape_is_refused(pairs, tmp_path):
    with pytest.raises(ValueError, match="answered with shape"):
        inference.infer(
            pairs,
            FakeBackend(lambda a, b: np.zeros((1, 2, 8, 8), np.float32)),
            tmp_path / "f",
            batch_size=1,
            key="k",
        )


def test_a_truncated_frame_is_named(pairs, tmp_path):
    pairs[0].image2.write_bytes(pairs[0].image2.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"(?i)alley/frame_0002\.png.*truncated"):
        inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    assert not list(tmp_path.glob("flow/**/*.flo"))


def test_a_missing_frame_is_named_with_the_stage_that_lists_it(pairs, tmp_path):
    pairs[-1].image2.unlink()
    with pytest.raises(FileNotFoundError, match=f"{pairs[-1].image2.name}.*01_data"):
        inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")


def test_a_frame_that_changes_before_it_is_read_is_refused(tiny_sintel, tmp_path):
    """The ledger would name the one that was there when the call began."""
    shutil.copytree(tiny_sintel, tmp_path / "sintel")
    pairs = sintel.find_pairs(tmp_path / "sintel", pass_name="clean")

    def answer(image1, image2):
        write_frame(pairs[-1].image2, np.zeros_like(image1[0]))
        return np.zeros_like(image1[:, :2])

    with pytest.raises(ValueError, match=f"{pairs[-1].image2.name} has changed"):
        inference.infer(pairs, FakeBackend(answer), tmp_path / "a", batch_size=1, key="a")
    assert not inference.flow_path(tmp_path / "a", pairs[-1]).exists()


def test_a_full_disk_leaves_nothing_that_looks_like_a_result(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="are free"):
        inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    assert not (tmp_path / "flow").exists()


@pytest.mark.slow
def test_neither_inference_nor_evaluation_needs_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import gma_lib.infer.inference, gma_lib.infer.estimator, gma_lib.evaluate.evaluation\n"
        "import gma_lib.perf.timing, gma_lib.report.figures\n"
        "import gma_lib.backends, gma_lib.report.index\n"
        "from gma_lib.backends.openvino import OpenVinoBackend"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
