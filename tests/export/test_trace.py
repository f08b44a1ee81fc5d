"""The exported file is the network: same flow, names of the guide, any batch size."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import onnx
import pytest
import torch

from gma_lib import export
from gma_lib.backends.onnxruntime import OnnxRuntimeBackend
from gma_lib.export import trace
from gma_lib.export.trace import set_batch_size
from gma_lib.flow.metrics import Deviation
from gma_lib.network.checkpoints import load_model
from gma_lib.network.model import GMAConfig

pytestmark = pytest.mark.slow

SMALL = {"height": 128, "width": 160}


def test_same_flow(exported, small_frames):
    _, path, model = exported
    with OnnxRuntimeBackend(path) as backend:
        found = backend.predict(*small_frames)
    assert Deviation.between(found, export.compute_reference(model, *small_frames)).max < 1e-3


def test_names_and_opset_of_the_guide(exported):
    lookup, path, _ = exported
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == ["image1", "image2"]
    assert [value.name for value in model.graph.output] == ["out1"]
    assert model.opset_import[0].version == {"grid_sample": 16, "gather": 12}.get(lookup, 13)
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [
        2,
        2,
        128,
        160,
    ]


def test_the_file_says_what_made_it(exported, shallow):
    lookup, path, _ = exported
    about = export.read_description(path)
    assert about["weights_sha256"] == shallow[1].sha256
    assert (about["lookup"], about["num_updates"], about["attention"]) == (lookup, "2", "content")
    assert (about["height"], about["width"], about["batch_size"]) == ("128", "160", "2")


def test_batch_size_changes_only_the_declared_shapes(tmp_path, shallow):
    model, checkpoint = shallow
    one, sixteen = (
        onnx.load(
            export.export_whole(
                model, tmp_path / f"{size}.onnx", **SMALL, batch_size=size, checkpoint=checkpoint
            )
        )
        for size in (1, 16)
    )
    assert list(one.graph.node) == list(sixteen.graph.node)
    assert list(one.graph.initializer) == list(sixteen.graph.initializer)
    assert sixteen.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 16


def test_split_is_the_whole(tmp_path, shallow, small_frames):
    model, checkpoint = shallow
    export.export_whole(model, tmp_path / "gma.onnx", **SMALL, batch_size=2, checkpoint=checkpoint)
    export.export_split(model, tmp_path, **SMALL, batch_size=2, checkpoint=checkpoint)
    with OnnxRuntimeBackend(tmp_path / "gma.onnx") as backend:
        whole = backend.predict(*small_frames)
        features1, features2 = (backend.features(frames) for frames in small_frames)
        context = backend.context(small_frames[0])
        flow, flow_low = backend.refine(features1, features2, context)
        warm, _ = backend.refine(features1, features2, context, flow_low)
    assert Deviation.between(flow, whole).max < 1e-4
    assert Deviation.between(warm, whole).max > 0.1  # a warm start does change the result


def test_a_batch_that_a_graph_cannot_take_is_noticed(shallow):
    """A reshape that still holds the traced batch contradicts the declared shapes, and must not
    pass.
    """
    tensor = onnx.helper.make_tensor_value_info
    shape = onnx.numpy_helper.from_array(np.array([1, 6], np.int64), "shape")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "fixed",
        [tensor("x", onnx.TensorProto.FLOAT, [1, 2, 3])],
        [tensor("y", onnx.TensorProto.FLOAT, [1, 6])],
        [shape],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    with pytest.raises(onnx.shape_inference.InferenceError):
        set_batch_size(model, 4)


@pytest.mark.parametrize(("lookup", "opset"), [("matmul", 12), ("grid_sample", 13), ("gather", 20)])
def test_opsets_that_a_form_does_not_have(tmp_path, lookup, opset):
    model, checkpoint = load_model("seeded", GMAConfig(lookup=lookup))
    with pytest.raises(ValueError, match=f"'{lookup}' is exported at opset .* not {opset}"):
        export.export_whole(
            model, tmp_path / "gma.onnx", **SMALL, batch_size=1, checkpoint=checkpoint, opset=opset
        )
    assert not list(tmp_path.iterdir())


def test_sizes_that_the_network_cannot_take(tmp_path, shallow):
    with pytest.raises(ValueError, match="1024x436"):
        export.export_whole(
            shallow[0],
            tmp_path / "gma.onnx",
            height=436,
            width=1024,
            batch_size=1,
            checkpoint=shallow[1],
        )


@pytest.mark.exhaustive
def test_sixteen_pairs_are_exported_in_the_memory_of_one(tmp_path):
    """Peak below 3 GB at full size, in a process of its own."""
    code = f"""
from pathlib import Path
from gma_lib.perf.timing import measure_peak_rss
from gma_lib.network.checkpoints import load_model
from gma_lib.export.trace import export_whole
from gma_lib.network.model import GMAConfig
model, checkpoint = load_model("seeded", GMAConfig(num_updates=2))
size = {{"height": 440, "width": 1024, "batch_size": 16}}
export_whole(model, Path({str(tmp_path)!r}) / "gma.onnx", **size, checkpoint=checkpoint)
print(measure_peak_rss())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 3e9


def test_threads_export_one_after_the_other(monkeypatch):
    """PyTorch's exporter fails where two do."""
    meeting, met = threading.Barrier(2), []

    def meet(*args, **kwargs):
        with suppress(threading.BrokenBarrierError):  # the other one waits for its turn
            met.append(meeting.wait(0.3))

    monkeypatch.setattr(torch.onnx, "export", meet)
    monkeypatch.setattr(trace.onnx, "load", lambda file: None)
    with ThreadPoolExecutor(2) as threads:
        given = torch.nn.Identity(), (), [], []
        work = [threads.submit(trace._trace, *given, opset=13) for _ in range(2)]
        assert [one.result() for one in work] == [None, None]
    assert met == []
