"""Every backend computes the network's flow, says what it computes in, and refuses what it cannot
do.
"""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gma_lib import backends, export
from gma_lib.backends import BACKENDS, FakeBackend, load_backend
from gma_lib.backends.openvino import OpenVinoBackend, OpenVinoOptions
from gma_lib.backends.torch import load_network, name_device
from gma_lib.convert import convert
from gma_lib.data.padding import Padding
from gma_lib.flow.images import read_frame
from gma_lib.flow.metrics import Deviation
from gma_lib.infer.estimator import Estimator
from gma_lib.network.checkpoints import load_model
from gma_lib.network.deploy import to_deploy_form
from gma_lib.network.model import GMA, GMAConfig
from gma_lib.runs.machine import has_bf16

pytestmark = pytest.mark.slow

# What computes on any machine; the GPU and the card, by their stand-ins, have tests of their own.
RUNTIMES = tuple(
    name for name, kind in BACKENDS.items() if name != "ascend" and kind.computes_on == "cpu"
)
SMALL = {"height": 128, "width": 160}


def prepare(folder, network, *, height, width, batch_size, backends=RUNTIMES, parts=True):
    model, checkpoint = network
    size = {"height": height, "width": width, "batch_size": batch_size}
    export.export_whole(to_deploy_form(model), folder / "gma.onnx", **size, checkpoint=checkpoint)
    if parts:
        export.export_split(to_deploy_form(model), folder, **size, checkpoint=checkpoint)
    for name in backends:
        convert(name, folder, checkpoint="seeded")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, shallow):
    """Every backend's files for batches of two small pairs."""
    return prepare(tmp_path_factory.mktemp("models"), shallow, **SMALL, batch_size=2)


@pytest.fixture(scope="module")
def reference(shallow, small_frames):
    return export.compute_reference(shallow[0], *small_frames)


@pytest.mark.parametrize("name", RUNTIMES)
def test_same_flow(name, models, small_frames, reference):
    with load_backend(name, models, precision="float32") as backend:
        found = backend.predict(*small_frames)
        assert (backend.precision, backend.at_once) == ("float32", 1)
    assert found.dtype == np.float32
    assert found.shape == (2, 2, 128, 160)
    assert Deviation.between(found, reference).max < 1e-3
    assert (
        Deviation.between(found[::-1], reference).max > 1
    )  # the order of the batch matters, and is noticed


@pytest.fixture(scope="module")
def whole_batches(tmp_path_factory, models):
    """Of the same export as ``models``, but the pairs of a batch are computed together."""
    place = tmp_path_factory.mktemp("whole")
    shutil.copy(models / "gma.onnx", place)
    for name in RUNTIMES:
        convert(name, place, checkpoint="seeded", at_once=None)
    return place


@pytest.mark.parametrize("name", RUNTIMES)
def test_two_batches_whose_pairs_are_computed_together(
    name, whole_batches, small_frames, reference
):
    with load_backend(name, whole_batches, precision="float32") as together:
        assert together.at_once == 2
        more = [np.concatenate([frames, frames[::-1]]) for frames in small_frames]
        both = np.concatenate([reference, reference[::-1]])
        assert Deviation.between(together.predict(*more), both).max < 1e-3


def test_parts_that_do_not_fill_a_batch_are_refused(models):
    with pytest.raises(ValueError, match="at_once=3 does not divide the batch size, 2"):
        convert("openvino", models, checkpoint="seeded", at_once=3)


@pytest.mark.parametrize("name", RUNTIMES)
def test_split_is_the_whole(name, models, small_frames, reference):
    with load_backend(name, models, precision="float32") as backend:
        features1, features2 = (backend.features(frames) for frames in small_frames)
        context = backend.context(small_frames[0])
        flow, flow_low = backend.refine(features1, features2, context)
    assert features1.shape == context.shape == (2, 256, 16, 20)
    assert flow_low.shape == (2, 2, 16, 20)
    assert Deviation.between(flow, reference).max < 1e-3


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_reduced_precision_is_reduced(name, models, small_frames, reference):
    if name == "openvino" and not has_bf16():  # PyTorch emulates it, slowly
        with pytest.raises(ValueError, match="not bfloat16"):
            load_backend(name, models, precision="bfloat16")
        return
    with load_backend(name, models, precision="float32") as backend:
        encoded = [backend.features(frames) for frames in small_frames]
        encoded.append(backend.context(small_frames[0]))
    with load_backend(name, models, precision="bfloat16") as backend:
        found, _ = backend.refine(*encoded)
        assert backend.precision == "bfloat16"
    # another flow than float32, by rounding and not by half a pixel
    assert 1e-4 < Deviation.between(found, reference).mean < 0.3


def test_coordinates_stay_in_float32(tmp_path):
    """Where a frame is 128 cells wide, bfloat16 coordinates would lie half a cell apart; weights
    that see notice.
    """
    if not has_bf16():
        pytest.skip("needs a processor with bfloat16")
    trained = load_model("gma-procedural", GMAConfig(num_updates=3))
    size = {"height": 128, "width": 1024, "batch_size": 1}
    folder = prepare(tmp_path, trained, **size, backends=("openvino",), parts=False)
    rng = np.random.default_rng(2)
    image1 = (
        rng.integers(0, 256, (1, 3, 16, 128)).astype(np.float32).repeat(8, axis=2).repeat(8, axis=3)
    )
    image2 = np.roll(image1, (2, 5), axis=(2, 3))
    reference = export.compute_reference(trained[0], image1, image2)
    deviations = []
    for file in ("gma.xml", "gma.onnx"):  # converted, with its coordinates marked, and as exported
        with OpenVinoBackend(folder / file, OpenVinoOptions(precision="bfloat16")) as backend:
            deviations.append(Deviation.between(backend.predict(image1, image2), reference).mean)
    assert deviations[0] < 0.5 * deviations[1], deviations


COMPILING = "openvino", "onnxruntime"  # what they compile is kept beside the model


@pytest.fixture(scope="module")
def one_pair(tmp_path_factory, shallow):
    """Their files for one pair, which nothing has compiled yet."""
    place = tmp_path_factory.mktemp("one")
    return prepare(place, shallow, **SMALL, batch_size=1, backends=COMPILING, parts=False)


@pytest.fixture(scope="module")
def other_pair(tmp_path_factory):
    """The same of other weights, with their network."""
    place = tmp_path_factory.mktemp("other")
    other = load_model("gma-procedural", GMAConfig(num_updates=1))
    prepare(place, other, **SMALL, batch_size=1, backends=COMPILING, parts=False)
    return place, other[0]


@pytest.mark.parametrize("name", COMPILING)
def test_the_second_start_finds_what_the_first_compiled(
    name, one_pair, other_pair, tmp_path, small_frames
):
    folder = shutil.copytree(one_pair, tmp_path / "models")
    image1, image2 = (frames[:1] for frames in small_frames)
    flows, stored = [], []
    for _ in range(2):
        with load_backend(name, folder, precision="float32") as backend:
            flows.append(backend.predict(image1, image2))
        stored.append(
            {
                path: path.stat().st_mtime_ns
                for path in (folder / "compiled").rglob("*")
                if path.is_file()
            }
        )
    assert stored[0]
    assert stored[0] == stored[1]
    np.testing.assert_array_equal(*flows)
    # another model is never mistaken for it
    shutil.copytree(other_pair[0], folder, dirs_exist_ok=True)
    with load_backend(name, folder, precision="float32") as backend:
        found = backend.predict(image1, image2)
    reference = export.compute_reference(other_pair[1], image1, image2)
    assert Deviation.between(found, reference).max < 1e-3


@pytest.mark.parametrize("name", COMPILING)
def test_a_damaged_compiled_model_is_made_again_with_one_line(
    name, one_pair, tmp_path, small_frames, messages
):
    folder = shutil.copytree(one_pair, tmp_path / "models")
    pair = [frames[:1] for frames in small_frames]

    def compute():
        with load_backend(name, folder, precision="float32") as backend:
            return backend.predict(*pair)

    flow = compute()
    (compiled,) = (folder / "compiled").glob("*/*[!json]")
    whole = compiled.read_bytes()
    middle = len(whole) // 2
    flipped = bytes(byte ^ 255 for byte in whole[middle : middle + 4096])
    for damaged in (whole[:middle] + flipped + whole[middle + 4096 :], whole[:middle]):
        compiled.write_bytes(damaged)
        messages.clear()
        np.testing.assert_array_equal(compute(), flow)
        assert [compiled.name in line for line in messages] == [True]


@pytest.mark.parametrize("name", RUNTIMES)
def test_answers_are_not_overwritten_by_the_next_call(name, models, small_frames, reference):
    """Whose frames may lie in memory in any order."""
    strided = [np.asfortranarray(frames[::-1]) for frames in small_frames]
    with load_backend(name, models, precision="float32") as backend:
        first = backend.predict(*small_frames)
        kept = first.copy()
        assert Deviation.between(backend.predict(*strided), reference[::-1]).max < 1e-3
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", RUNTIMES)
def test_what_is_no_frame_is_refused(name, models, small_frames):
    image1, image2 = small_frames
    with load_backend(name, models, precision="float32") as backend:
        for wrong in (
            image2[:1],
            image2[:, :, :120],
            image2.astype(np.float64),
            image2[:, :1],
            image2[:0],
            image2[0],
        ):
            with pytest.raises(ValueError, match=r"image2 is float32|has shape|differ in shape"):
                backend.predict(image1, wrong)
        with pytest.raises(ValueError, match=r"\(0, 3, 128, 160\)"):
            backend.predict(image1[:0], image2[:0])


@pytest.mark.parametrize(
    ("name", "precision"),
    [("onnxruntime", "bfloat16"), ("onnxruntime", "int8"), ("torch", "float16")],
)
def test_precisions_that_would_run_as_another(name, precision, models):
    with pytest.raises(ValueError, match=f"{name} here computes in .*, not {precision}"):
        load_backend(name, models, precision=precision)


def test_a_provider_that_is_not_there(models):
    with pytest.raises(ValueError, match=r"no CANNExecutionProvider; it has .*CPU"):
        load_backend("onnxruntime", models, precision="float32", provider="CANNExecutionProvider")


def test_a_device_that_is_not_there(models):
    import torch

    if torch.cuda.is_available():
        with load_backend("torch", models, precision="float32", device="cuda") as backend:
            assert backend.device != "CPU"
    else:
        with pytest.raises(ValueError, match="finds no CUDA device"):
            load_backend("torch", models, precision="float32", device="cuda")


def test_the_device_that_computes_is_named(models, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", {"cuda": "first", "cuda:1": "second"}.get)
    assert [name_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["first", "second", "CPU"]
    with load_backend("torch", models, precision="float32", device="meta") as backend:
        assert backend.device == "META"  # PyTorch's device without numbers, as one that is no GPU


def test_float32_whatever_the_process_was_told(models, small_frames):
    """oneDNN would compute products in bfloat16, and only an AMX or AVX512 processor show it."""
    import torch

    computations = (
        lambda: load_backend("torch", models, precision="float32"),
        lambda: export.compute_reference(torch.add, *small_frames),
    )
    for compute in computations:
        torch.set_float32_matmul_precision("medium")
        compute()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32


def test_an_unknown_backend_lists_the_known(models):
    with pytest.raises(ValueError, match=r"'tensorrt'; there are: openvino, onnxruntime, torch"):
        load_backend("tensorrt", models, precision="float32")


FACES = {
    "openvino": ("OpenVinoBackend", "gma-lib"),
    "onnxruntime": ("OnnxRuntimeBackend", "gma-lib[notebooks]"),
    "torch": ("TorchBackend", "gma-lib"),
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_missing_package_says_what_to_install(name, models, monkeypatch):
    face, wanted = FACES[name]
    of_the_backend = (f"{name}.", f"gma_lib.backends.{name}.")
    for module in [module for module in sys.modules if f"{module}.".startswith(of_the_backend)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(vars(backends), face, raising=False)  # it keeps what it has loaded
    for call in (
        lambda: load_backend(name, models, precision="float32"),
        lambda: Estimator("seeded", backend=name),
    ):
        with pytest.raises(ModuleNotFoundError, match=re.escape(f"pip install '{wanted}'")) as one:
            call()
        assert one.value.name == name


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_missing_model_says_what_to_run(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run 0[23]_"):
        load_backend(name, tmp_path, precision="float32")


def test_a_relative_model_starts_where_one_works(models, tmp_path, monkeypatch):
    monkeypatch.chdir(models.parent)
    network, _, _ = load_network(Path(models.name) / "gma.safetensors")
    assert isinstance(network, GMA)


def test_the_fake_answers(small_frames):
    with FakeBackend() as backend:
        assert not backend.predict(*small_frames).any()
        assert backend.calls == 1


@pytest.fixture(scope="module")
def real_pair(tmp_path_factory, shallow, sintel_sample):
    """At 440x1024, the real pair with the largest motion: every runtime's files, frames, flow."""
    folder = prepare(tmp_path_factory.mktemp("real"), shallow, height=440, width=1024, batch_size=1)
    paths = [sintel_sample / f"training/clean/cave_2/frame_000{number}.png" for number in (2, 3)]
    frames = [Padding.for_size(436, 1024).pad(read_frame(path))[None] for path in paths]
    return folder, frames, export.compute_reference(shallow[0], *frames)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_real_pair(name, real_pair):
    folder, frames, reference = real_pair
    with load_backend(name, folder, precision="float32") as backend:
        found = backend.predict(*frames)
    assert Deviation.between(found, reference).max < 1e-3


def test_along_a_sequence_the_whole_network_is_not_loaded(models, small_frames, monkeypatch):
    """It would take half of a worker's start, and memory; ``prepare`` loads it for who asks."""
    loaded = []
    load = OpenVinoBackend._load
    monkeypatch.setattr(
        OpenVinoBackend, "_load", lambda *args: loaded.append(args[1].stem) or load(*args)
    )
    with load_backend("openvino", models, precision="float32") as backend:
        backend.features(small_frames[0])
        assert loaded == ["gma_features"]
        backend.prepare()
        backend.predict(*small_frames)
    assert loaded == ["gma_features", "gma"]


def test_another_precision_than_asked_for_is_no_result(models):
    with load_backend("openvino", models, precision="float32") as backend:
        backend.precision = "bfloat16"  # as if it had been asked for
        with pytest.raises(RuntimeError, match=r"bfloat16 .* f32"):
            backend.prepare()
