"""Rounding to float16 where it was asked for, and only there."""

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gma_lib.ascend.keep import is_instance_norm, is_outside_modules, select_kept
from gma_lib.flow.images import write_frame
from gma_lib.perf import half_precision
from gma_lib.perf.half_precision import round_to_half, tabulate_study


@pytest.fixture
def model():
    """x + 0.03 outside any module, then times 1 in one."""
    nodes = [
        helper.make_node("Add", ["x", "c"], ["y"], name="/Add"),
        helper.make_node("Mul", ["y", "one"], ["z"], name="/net/Mul"),
    ]
    constants = [
        numpy_helper.from_array(np.array([value], np.float32), name)
        for name, value in (("c", 0.03), ("one", 1.0))
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xyz"]
    graph = helper.make_graph(nodes, "g", values[:1], values[2:], constants, value_info=values[1:2])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def compute(model, value):
    onnx.checker.check_model(model, full_check=True)
    return ReferenceEvaluator(model).run(None, {"x": np.array([value], np.float32)})[0][0]


def test_coordinates_beyond_64_lie_on_a_grid_of_a_sixteenth(model):
    assert compute(round_to_half(model, lambda node: False), 100) == 100.0
    assert compute(round_to_half(model, lambda node: True), 100) == np.float32(100.03)
    assert compute(round_to_half(model, lambda node: False), 100.05) == 100.0625


def test_a_kept_node_is_rounded_by_the_next_that_is_not(model):
    assert compute(round_to_half(model, is_outside_modules), 100) == 100.0


def test_beyond_the_range_is_infinite(model):
    assert np.isinf(compute(round_to_half(model, lambda node: False), 70000))


def test_the_original_is_left_alone(model):
    before = model.SerializeToString()
    round_to_half(model, lambda node: False)
    assert model.SerializeToString() == before


def test_lines_of_keep_cfg(model):
    assert select_kept(model, is_outside_modules) == ("/Add",)
    assert select_kept(model, is_instance_norm) == ()


def test_pairs_without_ground_truth_are_no_study(small_frames, tmp_path):
    for scene, pass_name in (("a", "clean"), ("a", "final")):
        for number in (1, 2, 3):
            name = f"training/{pass_name}/{scene}/frame_{number:04d}.png"
            write_frame(tmp_path / name, small_frames[0][0])
    with pytest.raises(ValueError, match="no pair has ground truth"):
        half_precision.choose_pairs(tmp_path, 8)


def test_the_table_says_what_is_not_finite():
    table = pd.DataFrame(
        {"a": dict.fromkeys("xyzuv", 1.0), "b": dict.fromkeys("xyzuv", float("nan"))}
    ).T
    assert "| a | 1.0000 |" in tabulate_study(table)
    assert "| b | not finite |" in tabulate_study(table)


def test_each_variant_keeps_its_kind_of_node():
    """The names are rows of a recorded study."""
    nodes = [
        helper.make_node(kind, ["x", "y"], ["z"], name=name)
        for kind, name in (
            ("InstanceNormalization", "/fnet/norm"),
            ("Conv", "/fnet/conv"),
            ("MatMul", "/MatMul"),
            ("Add", "/Add"),
        )
    ]
    kept = {
        name: [node.name for node in nodes if keep(node)]
        for name, keep in half_precision.VARIANTS.items()
    }
    assert kept == {
        "everything float16": [],
        "InstanceNorm float32 (the guide)": ["/fnet/norm"],
        "+ coordinates float32": ["/fnet/norm", "/Add"],
        "+ coordinates and correlation float32": ["/fnet/norm", "/MatMul", "/Add"],
        "only coordinates and correlation float32": ["/MatMul", "/Add"],
    }
