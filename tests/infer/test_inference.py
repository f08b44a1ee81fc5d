"""Pairs become flow files: each once, whole, of the right pair, whatever interrupts."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gma_lib import export
from gma_lib.backends import BACKENDS, FakeBackend, SplitBackend, load_backend
from gma_lib.convert.conversion import convert
from gma_lib.data import sintel
from gma_lib.flow.files import read_flow, read_frame, read_tensor, write_frame
from gma_lib.flow.metrics import Deviation
from gma_lib.infer import inference

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


@pytest.fixture
def pairs(tiny_sintel):
    return [
        pair
        for pass_name in ("clean", "final")
        for pair in sintel.find_pairs(tiny_sintel, pass_name=pass_name)
    ]


@pytest.mark.parametrize(("batch_size", "filled"), [(1, 0), (3, 1), (8, 0), (16, 8)])
def test_every_pair_gets_its_own_flow(pairs, tmp_path, batch_size, filled):
    backend = FakeBackend(first_value)
    summary = inference.infer(pairs, backend, tmp_path / "flow", batch_size=batch_size, key="k")
    assert (summary.pairs, summary.computed, summary.reused, summary.filled) == (8, 8, 0, filled)
    assert backend.calls == -(-8 // batch_size)
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


@pytest.mark.parametrize("name", RUNTIMES)
def test_along_a_sequence_as_pair_by_pair(name, pairs, tmp_path, seeded):
    size = {"height": 128, "width": 160, "batch_size": 2, "checkpoint": seeded[1]}
    export.export_whole(seeded[0], tmp_path / "gma.onnx", **size)
    export.export_split(seeded[0], tmp_path, **size)
    convert(name, tmp_path, checkpoint="seeded", num_updates=6, attention="content")
    with load_backend(name, tmp_path, precision="float32") as backend:
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
    inference.infer(pairs[:5], FakeBackend(first_value), folder, batch_size=2, key="k")
    backend = FakeBackend(first_value)
    summary = inference.infer(pairs, backend, folder, batch_size=2, key="k")
    assert (summary.computed, summary.reused, backend.calls) == (3, 5, 2)


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


SLOW = """
import sys, time
import numpy as np
from pathlib import Path
from gma_lib import export
from gma_lib.infer import inference
from gma_lib.data import sintel
from gma_lib.backends import BACKENDS, FakeBackend, SplitBackend, load_backend
from gma_lib.convert.conversion import convert

def slow(image1, image2):
    print("call", flush=True)
    time.sleep(0.15)
    return np.zeros((len(image1), 2, *image1.shape[2:]), np.float32)

inference.infer(sintel.find_pairs(Path(sys.argv[1])), FakeBackend(slow), Path(sys.argv[2]), batch_size=1, key="k")
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_started_again(tiny_sintel, tmp_path, how):
    """A real process, stopped for real in the middle: no stored pair is computed twice, none is
    missing.
    """
    command = [sys.executable, "-c", SLOW, str(tiny_sintel), str(tmp_path / "flow")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for _ in range(3):
        assert process.stdout.readline() == "call\n"
    time.sleep(0.05)
    process.send_signal(how)
    process.wait(timeout=30)
    stored = inference.stored_hashes(tmp_path / "flow")
    assert len(stored) == 2
    assert not [
        path
        for path in (tmp_path / "flow").rglob("*.flo")
        if path.name.startswith(".") and how == signal.SIGINT
    ]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.count("call") == 4 - 2
    assert len(list((tmp_path / "flow").rglob("frame_*.flo"))) == 4


def test_flow_that_is_not_finite_is_refused(pairs, tmp_path):
    def broken(image1, image2):
        return np.full((len(image1), 2, *image1.shape[2:]), np.nan, np.float32)

    with pytest.raises(
        ValueError, match=r"clean/alley/frame_0001 holds values that are not finite"
    ):
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
    with pytest.raises(ValueError, match=r"alley/frame_0002\.png.*truncated"):
        inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    assert not list(tmp_path.glob("flow/**/*.flo"))


def test_a_full_disk_leaves_nothing_that_looks_like_a_result(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sintel.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})()
    )
    with pytest.raises(OSError, match="are free"):
        inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    assert not (tmp_path / "flow").exists()


def test_the_guides_tensors(pairs, tmp_path):
    folder = inference.write_guide_tensors(pairs, tmp_path / "tensors")
    stems = json.loads((folder / "pairs.json").read_text())
    assert stems["final/alley/frame_0001"] == "0"
    found = read_tensor(folder / "final/image1/0.bin", (1, 3, 128, 160))[0]
    np.testing.assert_array_equal(found, read_frame(pairs[4].image1))
    assert read_tensor(folder / "clean/gt/0.bin", (128, 160, 2))[0, 0].tolist() == [3, 4]
    assert sorted(path.stem for path in (folder / "clean/gt").iterdir()) == ["0", "1", "2"]


def test_many_pairs_get_stems_of_one_length(pairs):
    """1041 pairs are numbered 0000 to 1040: then sorting by name and by number agree."""
    many = [sintel.FramePair("clean", "scene", number, None, None) for number in range(1041)]
    stems = list(inference._guide_stems(many).values())
    assert (stems[0], stems[-1]) == ("0000", "1040")
    assert stems == sorted(stems)


def test_the_guides_tensors_byte_for_byte(sintel_sample, tmp_path):
    """Hashes of what the guide's own preprocessing wrote for frames 2 and 3 of both scenes, clean
    pass.
    """
    pairs = [pair for pair in sintel.find_pairs(sintel_sample) if pair.number == 2]
    folder = inference.write_guide_tensors(pairs, tmp_path) / "clean"
    hashes = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.bin")
    }
    assert hashes == {
        "gt/0.bin": "22897c9919ac44f82b7460a1c3f2f87ec45775087ac21ef96373358efbc442a3",
        "gt/1.bin": "c927a1511c30296046f4816defe4a31af661782fa432bedeaf4a3c77b5c712ed",
        "image1/0.bin": "a8098aaefb8f8c2e8e613f46e9d68a09c9f79d82b65075dc9efcbba27596fb6f",
        "image1/1.bin": "b51865cafc527d9fbe3b406889c8264a969ef99e20455e04be4b6af17425f3d2",
        "image2/0.bin": "792bbb4215421eef97249e680b04aef457a2f82a2da9712fb3c99e1006ce7ed3",
        "image2/1.bin": "d7f733e7504ab2ddcecd92d820a93962c09d60c33a8c0206695186fc67b25197",
    }


def test_neither_inference_nor_evaluation_needs_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import gma_lib.infer.inference, gma_lib.evaluate.evaluation, gma_lib.perf.timing, gma_lib.report.figures\n"
        "import gma_lib.backends, gma_lib.report.index\n"
        "from gma_lib.backends.openvino import OpenVinoBackend"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
