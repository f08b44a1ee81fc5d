"""A rewritten graph that is not the same is refused."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from small_graphs import FLOAT, make

from gma_lib.ascend.narrowing import narrow_model
from gma_lib.ascend.verify import RewriteError, make_feeds, verify


@pytest.mark.parametrize("damage", ["value", "type", "input"])
def test_a_wrong_result_is_refused(damage):
    model = make(
        [helper.make_node("Gather", ["x", "n"], ["y"])],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1])],
        [("n", np.array([0]))],
    )
    after, _ = narrow_model(model)
    if damage == "value":
        after.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.array([1], np.int32), after.graph.initializer[0].name)
        )
    elif damage == "type":
        after.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.array([0], np.float32), after.graph.initializer[0].name)
        )
    else:
        after.graph.input[0].name = "z"
        after.graph.node[0].input[0] = "z"
    with pytest.raises(
        RewriteError,
        match={"value": "other values", "type": "not valid", "input": "other inputs"}[damage],
    ):
        verify(model, after)


def test_open_axes_get_several_sizes_or_those_that_are_named():
    model = make(
        [helper.make_node("Gather", ["x", "n"], ["y"], axis=1)],
        [("x", FLOAT, ["k", 4])],
        [("y", FLOAT, ["k", 1])],
        [("n", np.array([0]))],
    )
    assert [feed["x"].shape for feed in make_feeds(model, {})] == [(2, 4), (3, 4), (1, 4)]
    assert {feed["x"].shape for feed in make_feeds(model, {"k": 7})} == {(7, 4)}
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(RewriteError, match="hand over feeds"):
        make_feeds(model, {})


def scaled(factor, axis_length=4):
    return make(
        [
            helper.make_node("Slice", ["x", "start", "end"], ["s"]),
            helper.make_node("Mul", ["s", "factor"], ["y"]),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, ["n"])],
        [
            ("start", np.array([0])),
            ("end", np.array([axis_length])),
            ("factor", np.float32(factor)),
        ],
    )


def test_small_numbers_count_by_their_own_scale_and_shapes_do_not_broadcast():
    verify(scaled(1e-9), scaled(1.00001e-9))
    for other in (scaled(2e-9), scaled(1e-9, 1), scaled(1e-9, 0)):
        with pytest.raises(RewriteError, match="other values"):
            verify(scaled(1e-9), other)


def branching(factor, condition):
    bodies = [
        helper.make_graph(
            [
                helper.make_node("Constant", [], ["f"], value_float=value),
                helper.make_node("Mul", ["x", "f"], ["o"]),
            ],
            "body",
            [],
            [helper.make_tensor_value_info("o", FLOAT, [4])],
        )
        for value in (1.0, factor)
    ]
    return make(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Less", ["most", "limit"], ["low"]),
            helper.make_node("If", ["low"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [4])],
        [("limit", np.float32(condition))],
    )


def test_both_sides_of_an_if_are_compared():
    """No input here takes the second branch by itself."""
    assert verify(branching(2.0, np.inf), branching(2.0, np.inf)) == []
    with pytest.raises(RewriteError, match="other values"):
        verify(branching(2.0, np.inf), branching(3.0, np.inf))


def test_a_branch_that_cannot_run_is_named():
    model = branching(2.0, np.inf)
    body = next(one.g for one in model.graph.node[2].attribute if one.name == "else_branch")
    body.initializer.append(numpy_helper.from_array(np.array([3]), "three"))
    body.node[1].CopyFrom(helper.make_node("Reshape", ["x", "three"], ["o"]))
    body.output[0].type.tensor_type.shape.dim[0].dim_param = "k"
    body.output[0].type.tensor_type.shape.dim[0].ClearField("dim_value")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "k"
    assert verify(model, model) == ["else_branch of y"]
