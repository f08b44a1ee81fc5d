"""Eight-bit integers: calibrated on scenes of their own, everything else left alone, refused where
they would be something else.
"""

import dataclasses

import numpy as np
import onnx
import openvino
import pytest
import torch
from nncf.openvino.engine import OVCompiledModelEngine
from nncf.openvino.statistics.aggregator import OVStatisticsAggregator
from nncf.openvino.statistics.collectors import OV_REDUCERS_MAP, OVQuantileReducer
from nncf.quantization.range_estimator import StatisticsType

from gma_lib import export
from gma_lib.backends import load_backend
from gma_lib.backends import openvino as openvino_backend
from gma_lib.backends.openvino import OpenVinoOptions, is_quantized
from gma_lib.convert import convert
from gma_lib.convert import int8 as quantization
from gma_lib.flow.metrics import Deviation
from gma_lib.network.checkpoints import load_model
from gma_lib.network.deploy import to_deploy_form
from gma_lib.network.model import GMAConfig
from gma_lib.perf.comparison import draw_demo_frames
from gma_lib.runs import progress
from gma_lib.runs.files import PROJECT
from gma_lib.runs.machine import has_bf16
from gma_lib.training.pairs import HELD_OUT

pytestmark = pytest.mark.slow
computed_here = pytest.mark.skipif(not has_bf16(), reason="needs a processor with bfloat16")
UPDATES = 1
IN_USE = OV_REDUCERS_MAP[StatisticsType.QUANTILE]


@pytest.fixture(scope="module")
def trained():
    return load_model("gma-procedural", GMAConfig(num_updates=UPDATES))


@pytest.fixture(scope="module")
def frames():
    return [np.repeat(frame, 2, axis=0) for frame in draw_demo_frames(128, 160, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    """The network and its parts in int8, for batches of two."""
    place = tmp_path_factory.mktemp("int8")
    model, checkpoint = trained
    size = {"height": 128, "width": 160, "batch_size": 2, "checkpoint": checkpoint}
    export.export_whole(to_deploy_form(model), place / "gma.onnx", **size)
    export.export_split(to_deploy_form(model), place, **size)
    with pytest.MonkeyPatch.context() as patch:  # int8 models can be made on any processor
        patch.setattr("gma_lib.backends.openvino.list_precisions", lambda: ("float32", "int8"))
        conversion = convert("openvino", place, checkpoint="gma-procedural", precision="int8")
    assert "8-bit integers" in conversion.changes
    return place


def test_the_feature_encoder_stays_as_it_is(folder):
    """Features are told apart by small differences."""
    made = {path.stem: is_quantized(path) for path in folder.glob("*.xml")}
    assert made == {"gma": True, "gma_features": False, "gma_context": True, "gma_refine": True}


@computed_here
def test_int8_is_near_and_is_not_float32(folder, trained, frames):
    reference = export.compute_reference(trained[0], *frames)
    with load_backend("openvino", folder, precision="int8") as backend:
        assert backend.precision == "int8"
        whole = backend.predict(*frames)
        features1, features2, context = (
            backend.features(frames[0]),
            backend.features(frames[1]),
            backend.context(frames[0]),
        )
        parts, _ = backend.refine(features1, features2, context)
    assert 1e-4 < Deviation.between(whole, reference).mean < 0.05
    assert 1e-4 < Deviation.between(parts, reference).mean < 0.05
    np.testing.assert_array_equal(whole[0], whole[1])  # the same pair twice in the batch


@computed_here
@pytest.mark.parametrize(("is_fast", "features"), [(True, "bf16"), (False, "f32")])
def test_the_feature_encoder_is_float32_where_that_is_faster(
    folder, monkeypatch, frames, is_fast, features
):
    """On Intel's processors with AVX-512 BF16 and without AMX; the other parts are 8-bit."""
    monkeypatch.setattr(openvino_backend, "is_bfloat16_fast", lambda: is_fast)
    with load_backend("openvino", folder, precision="int8") as backend:
        backend.features(frames[0])
        backend.context(frames[0])
        hints = {
            part: loaded.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            for part, loaded in backend._loaded.items()
        }
    assert hints == {"features": features, "context": "bf16"}


def test_progress_is_ours_also_where_rich_believes_in_a_terminal(monkeypatch, capsys):
    """Jupyter's kernels set FORCE_COLOR; rich then catches what others print."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("GMA_HEADLESS", "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    progress.show_messages()
    model = openvino.convert_model(
        torch.nn.Conv2d(3, 8, 3), example_input=torch.zeros(1, 3, 16, 16), input=[1, 3, 16, 16]
    )
    samples = [
        {model.input(0).any_name: np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)}
    ] * 3
    quantization.quantize(model, samples, label="8-bit integers for a layer")
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith("8-bit integers for a layer: ") for line in lines)


def _calibrate(monkeypatch, reducer):
    """Ranges of two convolutions, the most numbers in one output of the model that took them, and
    what kinds of operations OpenVINO computed for them, in its order.
    """
    kept, computed = [], []
    begin = OVCompiledModelEngine.__init__

    def look(self, compiled, stateful):
        operations = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
        operations.sort(key=lambda about: int(about["execOrder"].astype(str)))
        computed.append([about["layerType"].astype(str) for about in operations])
        begin(self, compiled, stateful)

    process = OVStatisticsAggregator._process_outputs

    def measure(outputs):
        kept.extend(value.size for value in outputs.values())
        return process(outputs)

    monkeypatch.setattr(OVStatisticsAggregator, "_process_outputs", staticmethod(measure))
    monkeypatch.setattr(OVCompiledModelEngine, "__init__", look)
    monkeypatch.setitem(OV_REDUCERS_MAP, StatisticsType.QUANTILE, reducer)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3), torch.nn.AvgPool2d(60)
    )
    model = openvino.convert_model(
        layers, example_input=torch.zeros(1, 3, 64, 64), input=[1, 3, 64, 64]
    )
    draw = np.random.default_rng(0)
    name = model.input(0).any_name
    samples = [{name: draw.random((1, 3, 64, 64), dtype=np.float32) ** 9} for _ in range(3)]
    made = quantization.quantize(model, samples, label="8-bit integers for two layers")
    ranges = [
        operation.input_value(port).get_node().data.ravel()
        for operation in made.get_ordered_ops()
        if operation.get_type_name() == "FakeQuantize"
        for port in range(1, 5)
    ]
    monkeypatch.undo()
    return ranges, max(kept), computed[0]


def test_ranges_are_nncfs_own_without_its_copies(monkeypatch):
    expected, kept, _ = _calibrate(monkeypatch, OVQuantileReducer)
    assert kept == 8 * 62 * 62  # what flows from one convolution into the other
    found, kept, computed = _calibrate(monkeypatch, IN_USE)
    assert kept <= 8  # means of channels
    assert computed.count("Reference") == 4  # two ends of two ranges,
    rest = computed[len(computed) - computed[::-1].index("Reference") :]
    assert rest.count("Convolution") == 1  # taken before the second convolution
    assert len(found) == len(expected) >= 8
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_calibration_that_would_not_fit_is_refused(monkeypatch):
    """A convolution that reads 0.27 GB, held five times beside 1.3 GB: 2.6 GB."""
    model = openvino.convert_model(
        torch.nn.Conv2d(1, 1, 3), example_input=torch.zeros(1, 1, 16, 16), input=[1, 1, 8192, 8192]
    )
    monkeypatch.setenv("GMA_MEMORY_BYTES", "3000000000")
    quantization.require_memory_to_calibrate(model)
    monkeypatch.setenv("GMA_MEMORY_BYTES", "2800000000")
    with pytest.raises(MemoryError, match=r"2\.6 GB.*2\.8 GB"):
        quantization.quantize(model, [], label="8-bit integers")


@computed_here
def test_a_warm_start_is_not_cut_off(folder, trained, frames):
    """Ranges that were seen from zero flow only would be far too small for a start that is not
    zero.
    """
    start = np.full((2, 2, 16, 20), 0.5, np.float32)
    with load_backend("openvino", folder, precision="int8") as backend:
        encoded = (
            backend.features(frames[0]),
            backend.features(frames[1]),
            backend.context(frames[0]),
        )
        found, _ = backend.refine(*encoded, start)
    with torch.inference_mode():
        exact = (
            trained[0].refine(*map(torch.from_numpy, encoded), torch.from_numpy(start))[0].numpy()
        )
    assert Deviation.between(found, exact).mean < 0.1


def test_what_rounds_and_never_between_a_product_and_its_reshapes(folder):
    model = openvino.Core().read_model(folder / "gma.xml")
    rounded, float_layers, products = 0, set(), []
    for operation in model.get_ordered_ops():
        inputs = [
            operation.input_value(port).get_node() for port in range(operation.get_input_size())
        ]
        if operation.get_type_name() == "FakeQuantize":
            assert inputs[0].get_type_name() != "MatMul"
        if operation.get_type_name() == "Convolution":
            quantised = _rounds(inputs[0])
            rounded += quantised
            name = operation.get_friendly_name()
            if "fnet/" in name or "cnet/conv1/" in name or "convf1" in name:
                assert not quantised, name
                float_layers.add(name.split("/")[1])
        if operation.get_type_name() == "MatMul":
            products.append((operation.get_friendly_name(), [_rounds(node) for node in inputs]))
        if operation.get_type_name() in ("MVN", "Softmax", "ReduceSum"):
            assert not any(node.get_type_name() == "FakeQuantize" for node in inputs)
    assert float_layers == {"fnet", "cnet", "update_block"}
    assert rounded > 25
    # the four levels of the correlation, attention's scores and the aggregation; the lookup's
    # products stay as they are
    in_integers = [name for name, both in products if all(both)]
    assert sorted(in_integers) == [
        "/MatMul",
        "/MatMul_1",
        "/MatMul_2",
        "/MatMul_3",
        "/att/MatMul",
        "/update_block/aggregator/MatMul",
    ]
    assert len(products) == 6 + 2 * 4 * UPDATES
    assert not any(any(both) for name, both in products if name not in in_integers)


def _rounds(node) -> bool:
    """Whether what flows from here was rounded, reshaping aside."""
    while node.get_type_name() in ("Reshape", "Transpose", "Concat"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize"


@computed_here
def test_a_model_is_what_it_was_made_as(folder, tmp_path, trained):
    with pytest.raises(ValueError, match=r"float32.*03_convert"):
        load_backend("openvino", folder, precision="float32")
    model, checkpoint = trained
    export.export_whole(
        to_deploy_form(model),
        tmp_path / "gma.onnx",
        height=128,
        width=160,
        batch_size=1,
        checkpoint=checkpoint,
    )
    convert("openvino", tmp_path, checkpoint="gma-procedural")
    with pytest.raises(ValueError, match=r"int8.*03_convert"):
        load_backend("openvino", tmp_path, precision="int8")


def test_another_seed_of_training_makes_no_other_models(monkeypatch):
    frames = quantization.render_calibration_frames(128, 128, pairs=3)
    other = dataclasses.replace(quantization.load_config(PROJECT / "params" / "train.yaml"), seed=5)
    monkeypatch.setattr(quantization, "load_config", lambda _: other)
    again = quantization.render_calibration_frames(128, 128, pairs=3)
    np.testing.assert_array_equal(again, frames)
    # grey levels, as at commit 3629ad4, when training had this seed
    means = [frame.mean() for pair in frames[::2] for frame in pair]
    known = [23.949, 19.233, 65.363, 65.519, 120.194, 132.414]
    assert means == pytest.approx(known, abs=2e-3)


def test_calibration_frames_are_in_both_orders_and_of_scenes_of_their_own():
    frames = quantization.render_calibration_frames(128, 128, pairs=3)
    assert len(frames) == 6
    assert quantization.FIRST_SCENE > HELD_OUT + 10**6
    np.testing.assert_array_equal(frames[0], frames[1][::-1])
    assert np.abs(frames[0][0] - frames[2][0]).mean() > 1


def test_int8_is_refused_where_float32_would_run_around_it(monkeypatch, tmp_path):
    """Before any model is read, so that a graph of one operation serves."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "gma.onnx")

    def allow(*precisions):
        monkeypatch.setattr("gma_lib.backends.openvino.list_precisions", lambda: precisions)

    allow("float32", "int8")
    OpenVinoOptions(precision="int8").require()
    allow("float32")
    with pytest.raises(ValueError, match=r"openvino.*int8"):
        load_backend("openvino", tmp_path, precision="int8")
    with pytest.raises(ValueError, match=r"openvino.*int8"):
        convert("openvino", tmp_path, checkpoint="gma-procedural", precision="int8")
