"""A rewritten graph that is not the same is refused."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from small_graphs import FLOAT, make

from gma_lib.ascend import verify as verification
from gma_lib.ascend.narrowing import narrow_model
from gma_lib.ascend.verify import RewriteError, verify


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


def test_inputs_without_a_shape_ask_for_feeds():
    model = make(
        [helper.make_node("Gather", ["x", "n"], ["y"])],
        [("x", FLOAT, ["k"])],
        [("y", FLOAT, [1])],
        [("n", np.array([0]))],
    )
    with pytest.raises(ValueError, match="no fixed shape"):
        verification.make_random_feeds(model)
