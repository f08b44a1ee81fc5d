"""One recipe for every converted model, and what it refuses."""

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

from gma_lib.backends import load_backend
from gma_lib.convert import ModelSpec, convert, prepare_model
from gma_lib.export import compute_reference, read_description
from gma_lib.flow.metrics import Deviation
from gma_lib.network import load_model
from gma_lib.network.deploy import HoistedGRU
from gma_lib.network.model import GMAConfig, SeparableGRU
from gma_lib.runs.files import PROJECT

pytestmark = pytest.mark.slow

SPEC = ModelSpec("seeded", 128, 160, backend="onnxruntime", num_updates=2, batch_size=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return folder, prepare_model(SPEC, folder)


def test_a_prepared_model_computes_the_flow(prepared, small_frames):
    folder, conversion = prepared
    assert conversion.files == (folder / "gma_onnxruntime.onnx",)
    model, _ = load_model("seeded", GMAConfig(num_updates=2))
    with load_backend("onnxruntime", folder, precision="float32") as backend:
        found = backend.predict(*small_frames)
        assert backend.at_once == 1
    assert Deviation.between(found, compute_reference(model, *small_frames)).max < 1e-3


def test_every_choice_arrives_in_the_file(tmp_path):
    spec = dataclasses.replace(
        SPEC, lookup="gather", attention="position", opset=12, parts=True, at_once=None, steps=()
    )
    conversion = prepare_model(spec, tmp_path)
    about = read_description(tmp_path / "gma.onnx")
    made = {key: about[key] for key in ("lookup", "attention", "num_updates", "batch_size")}
    assert made == {
        "lookup": "gather",
        "attention": "position",
        "num_updates": "2",
        "batch_size": "2",
    }
    assert len(conversion.files) == 4
    assert "in parts of 2 pairs" in conversion.changes


@pytest.mark.parametrize(
    ("backend", "lookup", "opset"), [("openvino", "rows", 13), ("cuda", "grid_sample", 16)]
)
def test_lookup_and_opset_of_none_are_the_backends(tmp_path, backend, lookup, opset):
    folder = tmp_path / "one, two"  # OpenVINO's converter takes a path apart at commas
    folder.mkdir()
    prepare_model(dataclasses.replace(SPEC, backend=backend), folder)
    assert read_description(folder / "gma.onnx")["lookup"] == lookup
    assert onnx.load(folder / "gma.onnx").opset_import[0].version == opset


@pytest.mark.parametrize(
    ("lookup", "steps", "gru"),
    [("gather", (), SeparableGRU), ("rows", ("context hoisted",), HoistedGRU)],
)
def test_pytorch_runs_the_form_of_the_exported_file(tmp_path, small_frames, lookup, steps, gru):
    spec = dataclasses.replace(
        SPEC, backend="torch", attention="position_and_content", lookup=lookup, steps=steps
    )
    prepare_model(spec, tmp_path)
    model, _ = load_model("seeded", GMAConfig(num_updates=2, attention="position_and_content"))
    with load_backend("torch", tmp_path, precision="float32") as backend:
        found = backend.predict(*small_frames)
        assert (backend._model.config.lookup, backend._model.steps) == (lookup, steps)
        assert type(backend._model.update_block.gru) is gru
    reference = compute_reference(model, *small_frames)
    assert Deviation.between(found, reference).max < 1e-3
    assert np.abs(reference).max() > 0.5


def test_pytorch_takes_no_other_weights_than_the_exported(prepared):
    folder, _ = prepared
    with pytest.raises(ValueError, match="gma-procedural: not the weights"):
        convert("torch", folder, checkpoint="gma-procedural")
    assert not (folder / "gma.safetensors").exists()


def test_what_cannot_be_converted(prepared, tmp_path):
    folder, _ = prepared
    with pytest.raises(FileNotFoundError, match=r"gma\.onnx is missing: run 02_export"):
        convert("onnxruntime", tmp_path, checkpoint="seeded")
    with pytest.raises(ValueError, match=r"at_once=3.* 2"):
        convert("onnxruntime", folder, checkpoint="seeded", at_once=3)
    with pytest.raises(ValueError, match=r"onnxruntime.*bfloat16"):
        convert("onnxruntime", folder, checkpoint="seeded", precision="bfloat16")
    with pytest.raises(ValueError, match="unknown backend"):
        convert("tensorrt", folder, checkpoint="seeded")


def test_an_export_that_does_not_say_its_form(prepared, tmp_path):
    model = onnx.load(prepared[0] / "gma.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "gma.onnx")
    with pytest.raises(ValueError, match="another version: run 02_export again"):
        convert("torch", tmp_path, checkpoint="seeded")


def test_parts_of_an_older_export_are_never_run(tmp_path, small_frames):
    """They may be of other weights than the network that lies beside them."""
    spec = dataclasses.replace(SPEC, num_updates=1)
    prepare_model(dataclasses.replace(spec, parts=True), tmp_path)
    assert len(prepare_model(dataclasses.replace(spec, num_updates=2), tmp_path).files) == 1
    with (
        load_backend("onnxruntime", tmp_path, precision="float32") as network,
        pytest.raises(FileNotFoundError, match="_features"),
    ):
        network.features(small_frames[0])


def test_parts_of_another_export_are_not_converted(prepared, tmp_path):
    prepare_model(dataclasses.replace(SPEC, num_updates=1, parts=True), tmp_path)
    shutil.copy(prepared[0] / "gma.onnx", tmp_path)
    with pytest.raises(ValueError, match=r"gma_features\.onnx is of another export"):
        convert("onnxruntime", tmp_path, checkpoint="seeded")


def test_the_same_graph_is_the_same_file(prepared):
    """Also the second time in a process, as where a notebook is run again."""
    folder, _ = prepared
    first, again = (convert("openvino", folder, checkpoint="seeded").digests for _ in range(2))
    assert first == again


def test_a_missing_extra_is_named_before_anything_is_exported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.delitem(sys.modules, "gma_lib.convert.int8", raising=False)
    with pytest.raises(ModuleNotFoundError, match="int8"):
        prepare_model(dataclasses.replace(SPEC, backend="openvino", precision="int8"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_runtime_reports_what_it_does(tmp_path):
    """They do so unless refused, with an identifier in the home folder, but never in CI."""
    code = (
        "import gma_lib, nncf, onnx, onnxruntime, openvino;"
        "from onnx import parser; graph = '<ir_version: 8, opset_import: [\"\": 13]>'"
        "'g (float[1] x) => (float[1] y) {y = Relu(x)}';"
        "onnx.save(parser.parse_model(graph), 'm.onnx'); openvino.convert_model('m.onnx');"
        "onnxruntime.InferenceSession('m.onnx')"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(PROJECT)}
    for name in ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY"):
        environment.pop(name, None)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    written = [path.name for path in home.rglob("*") if path.is_file()]
    assert not written
