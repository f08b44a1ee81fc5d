"""Flow for anybody's frames: shapes as people have them, one answer whatever the way in, a cache
that is used, scaling that is said.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gma_lib
from gma_lib.backends import FakeBackend, SplitBackend
from gma_lib.data.padding import Padding
from gma_lib.flow.refine import refine_flow
from gma_lib.infer import estimator
from gma_lib.infer.estimator import Estimator
from gma_lib.infer.views import View
from gma_lib.network.checkpoints import load_checkpoint, save_checkpoint
from gma_lib.network.memory import predict_memory
from gma_lib.network.model import GMAConfig
from gma_lib.runs import files
from gma_lib.runs.files import PROJECT, BadFile, hash_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for this module's models."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def seeded_estimator(cache):
    """Seeded weights, one update."""
    return gma_lib.load("seeded", num_updates=1)


@pytest.fixture(scope="module")
def images(small_frames):
    """Two photographs as libraries decode them: uint8 (120, 150, 3), which the network has to have
    padded.
    """
    image1, image2 = (
        frames[0, :, :120, :150].transpose(1, 2, 0).astype(np.uint8) for frames in small_frames
    )
    return image1, image2


@pytest.fixture
def expected(images):
    """What the network itself computes for them, by PyTorch."""
    from gma_lib.network.checkpoints import load_model

    model, _ = load_model("seeded", GMAConfig(num_updates=1))
    padding = Padding.for_size(120, 150)
    padded = [
        torch.from_numpy(padding.pad(image.transpose(2, 0, 1)[None].astype(np.float32)))
        for image in images
    ]
    with torch.inference_mode():
        return padding.unpad(model(*padded).numpy())[0]


def test_three_lines_give_the_networks_flow(seeded_estimator, images, expected):
    flow = seeded_estimator(*images)
    assert flow.dtype == np.float32
    assert flow.shape == (2, 120, 150)
    np.testing.assert_allclose(flow, expected, atol=2e-3)  # px; rounding in another order


def test_every_form_of_the_same_frames_gives_the_same_flow(seeded_estimator, images):
    flow = seeded_estimator(*images)
    channels_first = [image.transpose(2, 0, 1).astype(np.float32) for image in images]
    np.testing.assert_array_equal(seeded_estimator(*channels_first), flow)
    batch = seeded_estimator(*(np.stack([frame, frame]) for frame in channels_first))
    np.testing.assert_array_equal(batch, np.stack([flow, flow]))
    tensors = seeded_estimator(*map(torch.from_numpy, channels_first))
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_array_equal(tensors.numpy(), flow)


def test_along_a_sequence_each_frame_is_encoded_once(seeded_estimator, images, monkeypatch):
    frames = [*images, images[0]]
    flows = list(seeded_estimator.along(frames))
    for flow, pair in zip(flows, [(0, 1), (1, 2)], strict=True):
        alone = seeded_estimator(frames[pair[0]], frames[pair[1]])
        np.testing.assert_allclose(flow, alone, atol=2e-3)
    encoded = []
    network = seeded_estimator._load(seeded_estimator._view(120, 150), parts=True)
    monkeypatch.setattr(
        network,
        "features",
        lambda image, features=network.features: encoded.append(1) or features(image),
    )
    list(seeded_estimator.along(frames))
    assert len(encoded) == 3


def test_the_flow_of_a_call_does_not_depend_on_the_calls_before(seeded_estimator, images):
    """The whole network is the same, made alone or with its parts."""
    seeded_estimator.close()
    alone = seeded_estimator(*images)
    list(seeded_estimator.along(images))
    assert seeded_estimator._loaded[0] == (128, 152, True)
    np.testing.assert_array_equal(seeded_estimator(*images), alone)
    assert seeded_estimator._loaded[0] == (128, 152, True)


def test_a_warm_start_changes_every_pair_but_the_first(seeded_estimator, images):
    frames = [*images, images[0]]
    cold, warm = (
        list(seeded_estimator.along(frames)),
        list(seeded_estimator.along(frames, warm=True)),
    )
    np.testing.assert_array_equal(cold[0], warm[0])
    assert np.abs(cold[1] - warm[1]).max() > 0.01


@pytest.fixture(scope="module")
def refining_estimator(cache):
    return gma_lib.load("seeded", num_updates=1, refine="variational")


def test_refined_flow_is_the_networks_refined_on_the_frames(
    seeded_estimator, refining_estimator, images
):
    frames = [image.transpose(2, 0, 1).astype(np.float32) for image in images]
    expected = refine_flow(*frames, seeded_estimator(*images))
    assert np.abs(expected - seeded_estimator(*images)).max() > 0.1
    np.testing.assert_array_equal(refining_estimator(*images), expected)
    along = list(refining_estimator.along([*images, images[0]]))
    np.testing.assert_allclose(along[0], expected, atol=5e-2)  # rounding in another order, refined
    back = refining_estimator(images[1], images[0])
    np.testing.assert_allclose(along[1], back, atol=5e-2)
    records = seeded_estimator.to_record(), refining_estimator.to_record()
    assert [record["refine"] for record in records] == [None, "variational"]


@pytest.mark.parametrize(
    ("shape", "value", "complaint"),
    [((12, 40, 3), 7, "frame1 has 40x12 px"), ((40, 40, 3), 7.5, "frame1 .* 16 bits")],
)
def test_what_cannot_be_refined_is_refused_before_a_model_is_made(
    shape, value, complaint, refining_estimator, monkeypatch
):
    monkeypatch.setattr(refining_estimator, "_load", lambda *args, **kwargs: pytest.fail("loaded"))
    frame = np.full(shape, value)
    with pytest.raises(ValueError, match=complaint):
        refining_estimator(frame, frame)
    with pytest.raises(ValueError, match=complaint.replace("frame1", "frame 1")):
        next(refining_estimator.along([frame, frame]))


@pytest.mark.exhaustive
def test_a_model_is_made_once_for_all_processes_and_then_needs_no_pytorch(
    images, tmp_path, monkeypatch
):
    cache, said = tmp_path / "cache", []
    monkeypatch.setenv("GMA_CACHE", str(cache))
    for _ in range(2):
        estimator = gma_lib.load("seeded", num_updates=1, say=said.append)
        estimator(*images)
        list(estimator.along(images))  # in two parts, a model of its own
    assert len(said) == 2
    assert all("first call at 152x128 px" in sentence for sentence in said)
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert not any(name.startswith(".") for name in before)
    weights = PROJECT / "weights" / "gma-procedural.safetensors"
    code = (
        "import sys, numpy as np; from gma_lib import load; f = np.zeros((128, 160, 3), np.uint8)\n"
        f"load({str(weights)!r}, num_updates=1)(f, f); print('torch' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert "first call" in runs[0].stderr
    assert runs[0].stdout.strip() == "True"
    assert runs[1].stderr == ""
    assert runs[1].stdout.strip() == "False"
    assert (
        before.items() <= {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}.items()
    )


def shrinking(monkeypatch, answer):
    """An estimator whose network answers ``answer(image)``, and what it said."""
    said = []
    small = Estimator("seeded", max_pixels=128 * 160, say=said.append)
    fake = FakeBackend(lambda image1, image2: answer(image1))
    monkeypatch.setattr(Estimator, "_load", lambda self, view, parts: fake)
    return small, said


def test_large_frames_are_computed_smaller_and_it_is_said_with_the_factor(monkeypatch):
    sizes = []

    def one_pixel_right_two_down(image):
        sizes.append(image.shape[2] * image.shape[3])
        return np.stack([np.full(image.shape[2:], 1.0), np.full(image.shape[2:], 2.0)])[
            None
        ].astype(np.float32)

    small, said = shrinking(monkeypatch, one_pixel_right_two_down)
    frame = np.zeros((512, 640, 3), np.uint8)
    flow = small(frame, frame)
    assert flow.shape == (2, 512, 640)
    assert sizes[0] <= 128 * 160
    assert len(said) == 1
    assert "640x512 px, padded, are more than 20480 pixels" in said[0]
    assert "0.250 of the size" in said[0]
    np.testing.assert_allclose(flow[0], 4, atol=1e-5)  # pixels of the full frame
    np.testing.assert_allclose(flow[1], 8, atol=1e-5)


def test_a_backend_that_does_not_run_in_parts_computes_pairs_and_no_sequence(monkeypatch):
    one, _ = shrinking(monkeypatch, lambda image: np.zeros_like(image[:, :2]))
    frames = [np.zeros((128, 160, 3), np.uint8)] * 3
    assert one(*frames[:2]).shape == (2, 128, 160)
    with pytest.raises(ValueError, match=f"{one.backend} .* parts"):
        next(one.along(frames))


def test_a_calls_seconds_are_not_those_of_its_model(monkeypatch):
    clock = [0]

    def take(seconds, answer=None):
        clock[0] += seconds
        return answer

    network = FakeBackend(lambda image1, image2: take(3, np.zeros_like(image1[:, :2])))
    monkeypatch.setattr(network, "prepare", lambda: take(20))
    monkeypatch.setattr(Estimator, "_load", lambda self, view, parts: take(100, network))
    monkeypatch.setattr(estimator.time, "monotonic", lambda: clock[0])
    timed = Estimator("seeded")
    timed(*np.zeros((2, 128, 160, 3), np.uint8))
    assert timed.last_seconds == 3


def test_a_pairs_seconds_are_not_those_of_its_model_or_of_its_frames(monkeypatch):
    clock = [0]

    def take(seconds, answer=None):
        clock[0] += seconds
        return answer

    class Network(SplitBackend):
        def prepare(self, *parts):
            take(20 if parts == ("features", "context", "refine") else 0)

        def _compute(self, part, *given):
            shape = {"features": (1, 256, 16, 20), "context": (1, 256, 16, 20)}
            if part in shape:
                return (take(1, np.zeros(shape[part], np.float32)),)
            return np.zeros((1, 2, 128, 160)), take(5, np.zeros((1, 2, 16, 20)))

    network = Network()
    monkeypatch.setattr(Estimator, "_load", lambda self, view, parts: take(100, network))
    monkeypatch.setattr(estimator.time, "monotonic", lambda: clock[0])
    timed = Estimator("seeded")
    frames = (take(1000, np.zeros((128, 160, 3), np.uint8)) for _ in range(3))
    seconds = [timed.last_seconds for _ in timed.along(frames)]
    assert seconds == [1 + 1 + 1 + 5, 1 + 1 + 5]  # the second frame's features are kept


def test_memory_decides_how_large_a_frame_may_be(monkeypatch):
    assert estimator.affordable_pixels("openvino", "float32") == 1280 * 720
    side = int(estimator.affordable_pixels("onnxruntime", "float32") ** 0.5)
    assert (
        predict_memory("onnxruntime", "float32", 1, side, side)
        <= 4e9
        < predict_memory("onnxruntime", "float32", 1, side + 8, side + 8)
    )
    monkeypatch.setenv("GMA_MEMORY_BYTES", "100000000")
    frame = np.zeros((128, 160, 3), np.uint8)
    with pytest.raises(MemoryError, match=r"160x128 px.*lower --max-pixels"):
        Estimator("seeded", num_updates=7, say=lambda sentence: None)(frame, frame)


def test_frames_that_fit_are_not_scaled(monkeypatch):
    small, said = shrinking(
        monkeypatch, lambda image: np.zeros((1, 2, *image.shape[2:]), np.float32)
    )
    frame = np.zeros((120, 150, 3), np.uint8)
    assert small(frame, frame).shape == (2, 120, 150)
    assert said == []


@pytest.mark.parametrize(("height", "width"), [(100, 4000), (4000, 100), (2160, 3840)])
def test_a_scaled_frame_never_exceeds_the_limit(height, width):
    view = View.fit(height, width, 300_000)
    assert view.padded[0] * view.padded[1] <= 300_000
    assert view.height / view.width == pytest.approx(height / width, rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"precision": "int4"}, "openvino here computes in .* not int4"),
        (
            {"backend": "onnxruntime", "precision": "bfloat16"},
            "onnxruntime here computes in float32, not bfloat16",
        ),
        ({"backend": "cuda", "precision": "int8"}, "cuda here computes in .* not int8"),
        ({"backend": "tensorrt"}, "unknown backend 'tensorrt'"),
        ({"num_updates": 0}, "num_updates is a whole number from 1"),
        ({"num_updates": 2.5}, "num_updates is a whole number from 1"),
        ({"num_updates": True}, "num_updates is a whole number from 1"),
        ({"num_updates": 10**11}, "num_updates is a whole number from 1"),
        ({"max_pixels": "x"}, "max_pixels: a whole number from 16384"),
        ({"max_pixels": float("nan")}, "max_pixels: a whole number from 16384"),
    ],
)
def test_what_cannot_be_computed_is_refused_before_a_model_is_made(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        Estimator("seeded", **wrong)


def test_frames_of_two_sizes_are_refused(seeded_estimator):
    with pytest.raises(ValueError, match="30x20 px and 20x30 px"):
        seeded_estimator(np.zeros((20, 30, 3)), np.zeros((30, 20, 3)))
    with pytest.raises(ValueError, match="frame 2 has 30x20 px"):
        list(seeded_estimator.along([np.zeros((120, 150, 3)), np.zeros((20, 30, 3))]))


def test_weights_are_looked_for_where_one_works_alone(tmp_path, monkeypatch):
    """The project's file of the same name would be other weights."""
    monkeypatch.setattr(files, "PROJECT", tmp_path)
    save_checkpoint(tmp_path / "mine.safetensors", load_checkpoint("seeded").state)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not gma_lib.load("mine.safetensors").trained
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"elsewhere/mine\.safetensors: no such file"):
        gma_lib.load("mine.safetensors")


def test_a_file_beside_the_weights_is_never_taken_for_them(tmp_path):
    """As a conversion whose name is theirs and a suffix."""
    weights = tmp_path / "mine.pth"
    torch.save(load_checkpoint("seeded").state, weights)
    Path(f"{weights}.safetensors").write_bytes(b"another")
    assert not gma_lib.load(weights).trained
    trained = PROJECT / "weights" / "gma-procedural.safetensors"
    Path(f"{weights}.safetensors").write_bytes(trained.read_bytes())
    Path(f"{weights}.json").write_text(json.dumps({"sha256": hash_file(trained)}))
    assert not gma_lib.load(weights).trained
    assert load_checkpoint(weights).sha256 == hash_file(weights)


def test_unknown_weights_list_those_there_are():
    with pytest.raises(FileNotFoundError, match="gma-procedural"):
        gma_lib.load("gma-sintel")


def estimate(images):
    """The flow of a new estimator, and what was said."""
    said = []
    flow = gma_lib.load("seeded", num_updates=1, say=said.append)(*images)
    return flow, said


def _zero_in_the_middle(path):
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4096))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("gma.bin", _zero_in_the_middle),
        pytest.param("gma.bin", lambda path: os.truncate(path, 1000), marks=pytest.mark.exhaustive),
        pytest.param("gma.xml", Path.unlink, marks=pytest.mark.exhaustive),
    ],
)
def test_a_damaged_model_in_the_cache_is_built_again_with_one_line(
    images, seeded_estimator, cache, tmp_path, monkeypatch, name, damage
):
    seeded_estimator.close()  # or it would keep a model that is made with its parts
    flow = seeded_estimator(*images)
    copied = Path(shutil.copytree(cache, tmp_path / "cache"))
    monkeypatch.setenv("GMA_CACHE", str(copied))
    assert estimate(images)[1] == []
    for model in copied.rglob(name):
        damage(model)
    again, said = estimate(images)
    np.testing.assert_array_equal(again, flow)
    assert [name in sentence for sentence in said] == [True]
    assert estimate(images)[1] == []


def test_what_calibrates_int8_models_decides_them(monkeypatch, tmp_path, cache):
    """The configuration that the calibration frames are rendered from, and the processor."""
    opened = []
    monkeypatch.setattr(
        estimator, "open_sealed", lambda folder, made_from, *_, **__: opened.append(folder)
    )
    (tmp_path / "params").mkdir()
    model = Estimator("seeded", say=lambda sentence: None)
    monkeypatch.setattr(estimator, "RESOURCES", tmp_path)
    for precision, differ in [("int8", True), ("float32", False)]:
        model.precision = precision
        for text in ("textures: 24", "textures: 25"):
            (tmp_path / "params" / "train.yaml").write_text(text)
            model._prepare(128, 160, parts=False)
        assert (opened[-1] != opened[-2]) is differ


def test_an_interrupted_making_leaves_no_model(images, cache, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Estimator, "_build", interrupted)
    before = set(cache.iterdir())
    with pytest.raises(KeyboardInterrupt):
        gma_lib.load("seeded", num_updates=3, say=lambda sentence: None)(*images)
    assert set(cache.iterdir()) == before


def test_weights_that_were_replaced_before_the_first_call_are_refused(images, cache, tmp_path):
    """The cache would give their flow to whoever loads the weights that were there before."""
    weights = tmp_path / "last.safetensors"
    bundled = PROJECT / "weights" / "gma-procedural.safetensors"
    weights.write_bytes(bundled.read_bytes())
    net = gma_lib.load(weights, num_updates=1, say=lambda sentence: None)
    save_checkpoint(weights, load_checkpoint("seeded").state)
    before = set(cache.iterdir())
    with pytest.raises(ValueError, match=r"last\.safetensors has been replaced"):
        net(*images)
    assert set(cache.iterdir()) == before


def test_weights_of_a_run_with_another_attention_are_refused(images, cache, tmp_path):
    """Their flow was computed with content, 0.0045 px off on average, without a word."""
    about = {"attention": "position"}
    file = save_checkpoint(
        tmp_path / "gma.safetensors", load_checkpoint("seeded").state, metadata=about
    )
    before = set(cache.iterdir())
    with pytest.raises(BadFile, match=r"position.*content"):
        gma_lib.load(file, num_updates=1, say=lambda sentence: None)(*images)
    assert set(cache.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
def test_prepared_models_lie_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GMA_CACHE", str(tmp_path / "mine"))
    assert estimator.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("GMA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert estimator.cache_folder() == tmp_path / "gma"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert estimator.cache_folder() == tmp_path / ".cache" / "gma"


@pytest.mark.parametrize(
    ("backend", "precision", "is_fast", "is_told"),
    [
        ("torch", "bfloat16", False, True),
        ("torch", "float32", False, False),
        ("torch", "bfloat16", True, False),
    ],
)
def test_a_precision_that_is_slower_here_is_told_of(
    monkeypatch, backend, precision, is_fast, is_told
):
    said = []
    monkeypatch.setattr("gma_lib.infer.estimator.is_bfloat16_fast", lambda: is_fast)
    Estimator("seeded", backend=backend, precision=precision, say=said.append)
    assert any(precision in sentence for sentence in said) == is_told
