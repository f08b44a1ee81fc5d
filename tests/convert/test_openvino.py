"""What the conversion for OpenVINO marks, on any processor: bfloat16 itself only some have."""

import numpy as np
import openvino
import pytest

from gma_lib import export
from gma_lib.convert import convert
from gma_lib.network.deploy import to_deploy_form
from gma_lib.network.sizes import STRIDE

MARKS = "precise", "DisablePrecisionConversion"  # as older and newer versions store it
HEIGHT, WIDTH = 128, 160


def list_marked(path):
    """Operations that are computed in float32 in every precision."""
    return [
        operation
        for operation in openvino.Core().read_model(path).get_ordered_ops()
        if any(name.startswith(MARKS) for name in operation.get_rt_info())
    ]


@pytest.mark.slow
def test_coordinates_are_marked_to_stay_in_float32_and_sums_of_products_are_not(shallow, tmp_path):
    model, checkpoint = shallow
    size = {"height": HEIGHT, "width": WIDTH, "batch_size": 1, "checkpoint": checkpoint}
    export.export_whole(to_deploy_form(model), tmp_path / "gma.onnx", **size)
    convert("openvino", tmp_path, checkpoint="seeded")
    marked = list_marked(tmp_path / "gma.xml")
    kinds = {operation.get_type_name() for operation in marked}
    assert {"Add", "Multiply"} <= kinds
    assert not kinds & {"MatMul", "Convolution", "MVN", "Softmax"}
    assert max(np.prod(one.output(0).shape) for one in marked) == 2 * HEIGHT * WIDTH // STRIDE**2
    assert not list_marked(tmp_path / "gma.onnx")
