"""A batch is compared on pairs that differ, so that places mixed up or computed wrongly show."""

from dataclasses import replace

import numpy as np
import pytest

from gma_lib import backends
from gma_lib.backends import FakeBackend, load_backend
from gma_lib.convert import batches
from gma_lib.convert.conversion import ModelSpec, prepare_model, read_spec
from gma_lib.data import sintel
from gma_lib.export import compute_reference
from gma_lib.flow.metrics import Deviation

pytestmark = pytest.mark.slow

SPEC = ModelSpec("seeded", 128, 160, num_updates=1, batch_size=3)
EACH_BACKEND = pytest.mark.parametrize(
    "backend",
    [
        "openvino",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("onnxruntime", "torch")),
    ],
)


@pytest.fixture
def pairs(tiny_sintel):
    return sintel.find_pairs(tiny_sintel, pass_name="clean")


@pytest.fixture
def reference():
    return np.full((2, 128, 160), 7, np.float32)


@pytest.mark.parametrize("places", [1, 3, 9])
def test_every_place_has_a_pair_and_a_reference_of_its_own(pairs, reference, places):
    spec = ModelSpec("seeded", 128, 160, num_updates=1, batch_size=places)
    frames = batches.read_different_pairs(pairs, spec, first=pairs[2].name)
    batch = batches.gather_batch(*frames, spec, reference, limit_s=600)
    assert batch.flow.shape == (places, 2, 128, 160)
    np.testing.assert_array_equal(batch.flow[0], reference)
    np.testing.assert_array_equal(batch.image1[0], pairs[2].load().frame1)
    assert len({frames.tobytes() for frames in batch.image1}) == places
    assert len({flow.tobytes() for flow in batch.flow}) == places
    pairs = "1 pair" if places == 1 else f"{places} different pairs"
    assert batch.what == f"{pairs} of 160x128 px"


def test_what_takes_too_long_or_too_much_memory_is_one_pair_and_says_so(
    pairs, reference, monkeypatch
):
    frames = batches.read_different_pairs(pairs, SPEC, first=pairs[0].name)
    batch = batches.gather_batch(*frames, SPEC, reference, limit_s=0)
    assert (batch.image1 == batch.image1[0]).all()
    assert (batch.flow == reference).all()
    assert "1 pair of 160x128 px in all 3 places" in batch.what
    monkeypatch.setenv("GMA_MEMORY_BYTES", "1000000")
    batch = batches.gather_batch(*frames, SPEC, reference)
    assert "PyTorch needs" in batch.what


@EACH_BACKEND
def test_a_small_batch_is_computed_together_and_gives_the_same_flow(backend, pairs, monkeypatch):
    opened = []
    monkeypatch.setattr(
        backends,
        "load_backend",
        lambda *args, **options: opened.append(load_backend(*args, **options)) or opened[-1],
    )
    spec = ModelSpec("seeded", 440, 1024, backend=backend, num_updates=1, batch_size=3)
    frames = batches.read_different_pairs(pairs, spec, first=pairs[0].name)
    [(what, found)] = batches.compare_together(*frames, spec).items()
    assert {"3", "160x128"} <= set(what.split())
    assert found.is_rounding
    assert opened[0].at_once == 3


def test_frames_narrower_than_the_detail_are_compared_whole(pairs):
    spec = ModelSpec("seeded", 128, 136, backend="openvino", num_updates=1, batch_size=2)
    image1, image2 = batches.read_different_pairs(pairs, spec, first=pairs[0].name)
    [(what, found)] = batches.compare_together(image1[..., :136], image2[..., :136], spec).items()
    assert {"2", "136x128"} <= set(what.split())
    assert found.is_rounding


def test_places_mixed_up_are_found(pairs, reference, tmp_path, monkeypatch):
    """The fault that a batch filled with one pair hides."""
    frames = batches.read_different_pairs(pairs, SPEC, first=pairs[0].name)
    batch = batches.gather_batch(*frames, SPEC, reference)
    prepare_model(SPEC, tmp_path)
    with load_backend("openvino", tmp_path, precision="float32") as network:
        flow = network.predict(batch.image1, batch.image2)
        mixed = network.predict(batch.image1[[0, 2, 1]], batch.image2[[0, 2, 1]])
    assert Deviation.between(flow[1:], batch.flow[1:]).is_rounding
    assert not Deviation.between(mixed[1:], batch.flow[1:]).is_rounding


@EACH_BACKEND
def test_the_parts_that_compute_a_sequence_are_compared(backend, pairs, tmp_path):
    """The whole network may be right where its parts are of other weights."""
    spec = replace(SPEC, backend=backend, parts=True)
    model, _ = spec.load_network()
    frames = batches.read_different_pairs(pairs, spec, first=pairs[0].name)
    reference = compute_reference(model, *(images[:1] for images in frames))
    batch = batches.Batch(*frames, np.repeat(reference, 3, axis=0), "three pairs")
    prepare_model(spec, tmp_path)
    with load_backend(backend, tmp_path, precision="float32") as network:
        pass
    [(what, found)] = batches.compare_along(network, batch, spec, tmp_path).items()
    assert {"1", "160x128"} <= set(what.split())
    assert found.is_rounding
    prepare_model(replace(spec, checkpoint="gma-procedural"), tmp_path)
    [found] = batches.compare_along(network, batch, spec, tmp_path).values()
    assert not found.is_rounding


def test_what_no_sequence_runs_is_compared_whole_only(pairs, tmp_path):
    """As a batch that is computed together: the parts then take whole batches."""
    spec = replace(SPEC, at_once=None, parts=True)
    prepare_model(spec, tmp_path)
    with load_backend("openvino", tmp_path, precision="float32") as network:
        assert batches.compare_along(network, None, spec, tmp_path) == {}
    assert batches.compare_along(FakeBackend(), None, spec, tmp_path) == {}


def test_the_specification_is_what_export_was_told():
    told = {"num_updates": 3, "attention": "position", "lookup": "rows", "opset": 16}
    size = {"height": 128, "width": 160, "batch_size": 2}
    exported = {**told, "size": size, "save_work": False, "checkpoint": {"source": "seeded"}}
    spec = read_spec(exported, backend="torch", precision="float32")
    assert {name: getattr(spec, name) for name in [*told, *size]} == told | size
    assert (spec.checkpoint, spec.backend, spec.steps) == ("seeded", "torch", ())
