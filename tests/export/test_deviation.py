"""The graph computes the network's flow, alone and in a batch."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gma_lib import export
from gma_lib.network.checkpoints import load_model
from gma_lib.network.deploy import to_deploy_form
from gma_lib.network.model import GMAConfig

pytestmark = pytest.mark.slow


def test_one_pair_is_computed_by_the_exported_file_itself(exported, small_frames, tmp_path):
    """Whatever batch it was exported for."""
    _, path, model = exported
    pair = [frames[:1] for frames in small_frames]
    reference = export.compute_reference(model, *pair)
    assert export.measure_deviation(path, reference, *pair).max < 1e-3
    damaged = onnx.load(path)
    weight = max(damaged.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    weight.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(weight), weight.name))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    assert export.measure_deviation(tmp_path / "damaged.onnx", reference, *pair).max > 0.01


def test_every_pair_of_a_batch_is_computed(shallow):
    model, checkpoint = shallow
    assert export.measure_deviation_in_batch(to_deploy_form(model), model, 3, checkpoint).max < 1e-3
    other, _ = load_model("gma-procedural", GMAConfig(num_updates=2))
    assert (
        export.measure_deviation_in_batch(other, model, 3, checkpoint).max > 1
    )  # another network is noticed
