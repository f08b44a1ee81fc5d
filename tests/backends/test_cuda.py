"""What runs on an NVIDIA GPU: its form of the network on the CPU, its recording on a stand-in, and
all of it where there is a GPU.
"""

import copy
import pickle
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from standins import cuda as standin
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gma_lib import export
from gma_lib.backends import cuda, find_backend, load_backend
from gma_lib.backends.cuda import CudaOptions
from gma_lib.convert import ModelSpec, convert, prepare_model
from gma_lib.flow.metrics import Deviation
from gma_lib.infer.inference import infer
from gma_lib.infer.shards import StoredModel
from gma_lib.network import model
from gma_lib.network.checkpoints import load_model
from gma_lib.network.deploy import DEPLOY_STEPS, to_deploy_form
from gma_lib.network.model import GMA, GMAConfig
from gma_lib.perf.comparison import draw_demo_frames
from gma_lib.runs.clusters import open_cluster
from gma_lib.runs.devices import Devices
from gma_lib.runs.run import DoesNotFit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory, shallow):
    """What 03 makes for a batch of two small pairs, computed one after the other."""
    folder = tmp_path_factory.mktemp("gpu")
    network, checkpoint = shallow
    drawn = GMA(replace(network.config, lookup="grid_sample"))
    drawn.load_state_dict(network.state_dict())
    export.export_whole(
        to_deploy_form(drawn),
        folder / "gma.onnx",
        height=128,
        width=160,
        batch_size=2,
        checkpoint=checkpoint,
    )
    convert("cuda", folder, checkpoint="seeded", at_once=1)
    return folder


@pytest.fixture(scope="module")
def reference(shallow, small_frames):
    return export.compute_reference(shallow[0], *small_frames)


@pytest.fixture(scope="module")
def pair(small_frames):
    """One pair, where its place in a batch is not what a test is about."""
    return [frames[:1] for frames in small_frames]


def on_the_cpu(network, frames, precision):
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=getattr(torch, precision), enabled=precision != "float32"),
    ):
        return network(*map(torch.from_numpy, frames)).numpy()


# --- the form of the network ----------------------------------------------------------------------


def test_the_form_for_a_gpu_computes_the_same(shallow, pair, reference):
    network = cuda.rearrange_for_gpu(shallow[0], "float32")
    assert network.cnet.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert Deviation.between(on_the_cpu(network, pair, "float32"), reference[:1]).max < 1e-3
    network.cnet.conv1.bias.data[0] += 1  # noticed
    assert Deviation.between(on_the_cpu(network, pair, "float32"), reference[:1]).max > 1e-2


def test_in_half_precision_everything_keeps_channels_last(shallow, pair, monkeypatch):
    assert not_channels_last(shallow[0], pair) == {
        "fnet.conv1",
        "cnet.conv1",
    }  # the frames themselves
    monkeypatch.setattr(cuda, "replace_instance_norm", lambda encoder: None)
    assert "fnet.layer1.0.conv2" in not_channels_last(shallow[0], pair)  # the look notices


def not_channels_last(model, frames):
    """The convolutions that are given something else for one pair."""
    network = cuda.rearrange_for_gpu(model, "bfloat16")
    other = set()

    def look(name):
        def at(module, given, result):
            if not given[0].is_contiguous(memory_format=torch.channels_last):
                other.add(name)

        return at

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look(name))
    on_the_cpu(network, frames, "bfloat16")
    return other


def test_batch_norms_of_weights_that_see_are_folded(pair):
    encoder = load_model("gma-procedural")[0].cnet
    folded = copy.deepcopy(encoder)
    cuda.fold_batch_norm(folded)
    image = torch.from_numpy(pair[0]) / 128 - 1
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), encoder(image), rtol=1e-4, atol=1e-4)
        folded.layer2[0].downsample[0].bias.data += 1e-2
        assert (folded(image) - encoder(image)).abs().max() > 1e-3


def test_half_precision_costs_weights_that_see_next_to_nothing():
    trained = load_model("gma-procedural", GMAConfig(lookup="grid_sample", num_updates=2))[0]
    frames = draw_demo_frames(128, 160, count=2)
    exact = export.compute_reference(trained, *frames)
    off = {}
    for name in ("bfloat16", "float16"):
        network = cuda.rearrange_for_gpu(trained, name)
        assert network.fnet.conv1.weight.dtype == getattr(torch, name)
        off[name] = Deviation.between(on_the_cpu(network, frames, name), exact).mean
    assert 1e-5 < off["float16"] < 0.002 < off["bfloat16"] < 0.02


@pytest.mark.parametrize("attention", ["content", "position", "position_and_content"])
def test_attention_recomputed_or_stored(attention, pair):
    torch.manual_seed(3)
    whole = GMA(GMAConfig(num_updates=2, attention=attention)).eval()
    whole.update_block.aggregator.gamma.data[:] = 0.8  # or aggregation would not be noticed
    network = cuda.rearrange_for_gpu(whole, "bfloat16").float()
    assert isinstance(network.att, cuda.QueriesAndKeys) == (attention == "content")
    found, expected = (on_the_cpu(one, pair, "float32") for one in (network, whole))
    rounded = on_the_cpu(to_deploy_form(whole).to(torch.bfloat16).float(), pair, "float32")
    assert Deviation.between(found, expected).mean < 2 * Deviation.between(rounded, expected).mean
    with torch.no_grad():
        network.att.to_qk.weight *= 0
    assert Deviation.between(on_the_cpu(network, pair, "float32"), expected).mean > 1e-3


# --- nothing that a recording refuses -------------------------------------------------------------


class FromTheHost(TorchDispatchMode):
    """Notes operations that bring numbers from the host to the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        result = operation(*given, **(named or {}))
        devices = {
            tensor.device.type
            for tensor in tree_leaves((given, named))
            if isinstance(tensor, torch.Tensor)
        }
        arrived = {
            tensor.device.type for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)
        }
        if "cpu" in devices and arrived != {"cpu"}:
            self.found.append(str(operation))
        return result


@pytest.fixture(
    params=[
        ("float32", tuple(DEPLOY_STEPS)),
        ("float16", tuple(DEPLOY_STEPS)),
        ("float16", ()),
    ]
)
def away(request):
    """The network on PyTorch's device without numbers: what comes from the host shows, and asking
    for a value raises.
    """
    precision, steps = request.param
    network = cuda.rearrange_for_gpu(GMA(GMAConfig(lookup="grid_sample")), precision, steps)
    yield network.float().to("meta")
    model._constant.cache_clear()


@pytest.mark.parametrize("part", ["_flow", "_features", "_context", "_refine"])
def test_recording_needs_nothing_from_the_host(part, away, monkeypatch):
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: nullcontext()
    )  # knows no device without numbers
    backend = object.__new__(cuda.CudaBackend)
    backend._network = away
    shapes = {
        "_flow": [(1, 3, 128, 160)] * 2,
        "_refine": [(1, 256, 16, 20)] * 3 + [(1, 2, 16, 20)],
    }.get(part, [(1, 3, 128, 160)])
    given = [torch.empty(shape, device="meta") for shape in shapes]
    with torch.inference_mode():
        getattr(backend, part)(*given)  # as the warm-up does, which keeps the constants
        with FromTheHost() as spy:
            results = getattr(backend, part)(*given)
    assert all(result.device.type == "meta" for result in results)
    assert not spy.found


def test_what_comes_from_the_host_is_noticed():
    with FromTheHost() as spy:
        torch.from_numpy(np.ones(3, np.float32)).to("meta")
    assert spy.found
    with pytest.raises(RuntimeError, match="meta tensors"):
        torch.empty(1, device="meta").item()


def test_constants_are_kept_and_serve_training_too():
    model._constant.cache_clear()
    with torch.inference_mode():
        first = model._constant(model._grid, 16, 20, device=torch.device("cpu"))
    assert model._constant(model._grid, 16, 20, device=torch.device("cpu")) is first
    (torch.ones(1, requires_grad=True) * first).sum().backward()


# --- recording and replaying ----------------------------------------------------------------------


@pytest.fixture
def stood_in(monkeypatch, models):
    """The backend on the stand-in for a GPU, which has no algorithms to choose among."""
    standin.install(monkeypatch)
    monkeypatch.setattr(cuda, "WARM_UP_CALLS", 1)
    with cuda.CudaBackend(models / "gma.safetensors", CudaOptions(device="cpu")) as backend:
        yield backend


def test_it_runs_the_form_that_was_exported(monkeypatch, tmp_path, pair):
    spec = ModelSpec("seeded", 128, 160, backend="cuda", num_updates=1, steps=("context hoisted",))
    prepare_model(spec, tmp_path)
    standin.install(monkeypatch)
    monkeypatch.setattr(cuda, "WARM_UP_CALLS", 1)
    plain = load_model("seeded", GMAConfig(num_updates=1))[0]
    with cuda.CudaBackend(tmp_path / "gma.safetensors", CudaOptions(device="cpu")) as backend:
        assert backend._network.steps == spec.steps
        exact = export.compute_reference(plain, *pair)
        assert Deviation.between(backend.predict(*pair), exact).max < 1e-3
    prepare_model(replace(spec, lookup="rows"), tmp_path)
    with pytest.raises(ValueError, match=r"lookup rows.*grid_sample only"):
        cuda.CudaBackend(tmp_path / "gma.safetensors", CudaOptions(device="cpu"))


def test_aggregation_as_published_stores_its_attention(pair):
    """Whatever other steps the network took."""
    trained = load_model("gma-procedural", GMAConfig(num_updates=2))[0]
    network = cuda.rearrange_for_gpu(trained, "float16", ("context hoisted",))
    assert not isinstance(network.att, cuda.QueriesAndKeys)
    image1, image2 = map(torch.from_numpy, pair)
    with torch.inference_mode():
        encoded = trained.features(image1), trained.features(image2), trained.context(image1)
        exact, _ = trained.refine(*encoded)
        with torch.autocast("cpu", dtype=torch.float16):
            found, _ = network.refine(*encoded)
    assert Deviation.between(found.numpy(), exact.numpy()).mean < 0.05


def test_replayed_on_other_frames(stood_in, small_frames, reference):
    assert stood_in.at_once == 1
    assert Deviation.between(stood_in.predict(*small_frames), reference).max < 1e-3
    assert len(stood_in._recorded) == 1  # one shape, recorded once for two pairs


def test_replaying_runs_no_python():
    calls = []

    def twice(x):
        calls.append(x)
        return (2 * x,)

    with pytest.MonkeyPatch.context() as monkeypatch:
        standin.install(monkeypatch)
        recorded = cuda.Recorded(twice, (torch.ones(2),))
        before = len(calls)
        assert [recorded(torch.full((2,), float(value)))[0].tolist() for value in (3, 5)] == [
            [6, 6],
            [10, 10],
        ]
    assert before == len(calls) == cuda.WARM_UP_CALLS + 1


def test_answers_are_not_overwritten_by_the_next_call(stood_in, pair):
    first = stood_in.predict(*pair)
    features = stood_in.features(pair[0])
    kept = first.copy(), features.clone()
    stood_in.predict(*pair[::-1])
    stood_in.features(pair[1])
    np.testing.assert_array_equal(first, kept[0])
    assert torch.equal(features, kept[1])


def test_split_is_the_whole_and_starts_warm(stood_in, small_frames, reference):
    features1, features2 = (stood_in.features(frames) for frames in small_frames)
    context = stood_in.context(small_frames[0])
    flow, flow_low = stood_in.refine(features1, features2, context)
    assert Deviation.between(flow, reference).max < 1e-3
    warm, _ = stood_in.refine(features1, features2, context, flow_low)
    assert Deviation.between(warm, reference).max > 1e-2  # six updates more


def test_what_does_not_fit_says_so(stood_in, small_frames, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 95.00 GiB.\nMore lines")

    monkeypatch.setattr(stood_in._network, "refine", full)
    with pytest.raises(
        DoesNotFit,
        match=r"^[^\n]*stand-in[^\n]*95\.00 GiB\.$",
    ):
        stood_in.predict(*small_frames)


def test_the_settings_of_the_process_are_left_as_they_were(stood_in, small_frames):
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )
    with stood_in._set_arithmetic():
        assert not torch.backends.cuda.matmul.allow_tf32
    stood_in.precision = "bfloat16"
    with stood_in._set_arithmetic():
        assert torch.backends.cuda.matmul.allow_tf32
    assert before == (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )


def test_without_a_gpu_it_says_what_to_do(models):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU .* nvidia-smi"):
        load_backend("cuda", models, precision="float32")
    with pytest.raises(ValueError, match="float32 or bfloat16 or float16, not int8"):
        load_backend("cuda", models, precision="int8")


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_a_gpu(precision, models, small_frames, reference):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    with load_backend("cuda", models, precision=precision) as backend:
        for order in (slice(None), slice(None, None, -1)):
            found = backend.predict(*(frames[order] for frames in small_frames))
            deviation = Deviation.between(found, reference[order])
            assert deviation.max < 1e-2 if precision == "float32" else 1e-4 < deviation.mean < 0.3
        features = [backend.features(frames) for frames in small_frames]
        flow, _ = backend.refine(*features, backend.context(small_frames[0]))
        assert Deviation.between(flow, backend.predict(*small_frames)).mean < (
            1e-3 if precision == "float32" else 0.3
        )
        assert backend.device_bytes() > 0


# --- for worker processes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "count", "found"),
    [
        (None, 2, ["0", "1"]),
        ("3,5", 2, ["3", "5"]),
        ("GPU-1a, GPU-2b", 2, ["GPU-1a", "GPU-2b"]),
        ("0,7", 1, ["0"]),
        ("1,-1,0", 1, ["1"]),
    ],
)
def test_gpus_for_worker_processes(monkeypatch, visible, count, found):
    """As CUDA counts them in the list of those that may be seen."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name in ("cuda", "eager_cuda"):
        devices = pickle.loads(pickle.dumps(find_backend(name).devices()))
        assert devices.variable == "CUDA_VISIBLE_DEVICES"
        assert devices.find() == found


def test_no_gpu_for_worker_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=7"):
        open_cluster("processes:1", find_backend("cuda").devices()).__enter__()


@pytest.mark.exhaustive
def test_a_gpu_that_a_worker_cannot_see_is_one_sentence(models, pairs, tmp_path):
    """Though this process was told of it."""
    unseen = Devices("CUDA_VISIBLE_DEVICES", lambda: ["1000"])
    model = StoredModel("cuda", models, "float32", {}, "GPU")
    with open_cluster("processes:1", unseen) as workers:
        more = {"batch_size": 2, "key": "k", "executor": workers.executor}
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=1000") as refused:
            infer(pairs, model, tmp_path / "flow", **more)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "flow").exists()
