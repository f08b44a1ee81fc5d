"""64 bits become 32 where ONNX allows it, nothing else changes, and what cannot be done has a
reason.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import DOUBLE, FLOAT, INT32, INT64, make

from gma_lib.ascend.narrowing import narrow_model
from gma_lib.ascend.verify import RewriteError, verify


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_index_arithmetic_becomes_int32():
    """float -> int64 -> + 1 -> Gather: the Cast changes its target, the constant is copied, no Cast
    is added.
    """
    model = make(
        [
            helper.make_node("Cast", ["x"], ["i"], to=INT64),
            helper.make_node("Add", ["i", "one"], ["j"]),
            helper.make_node("Gather", ["table", "j"], ["y"]),
        ],
        [("x", FLOAT, [3])],
        [("y", FLOAT, [3])],
        [("one", np.array([1])), ("table", np.arange(300, dtype=np.float32))],
    )
    after, report = narrow_model(model)
    verify(model, after)
    assert operators(after) == ["Cast", "Add", "Gather"]
    assert after.graph.node[0].attribute[0].i == INT32
    assert (report.wide_before, report.wide_after, report.casts_added, report.initializers) == (
        3,
        0,
        0,
        1,
    )
    assert model.graph.node[0].attribute[0].i == INT64  # the original is as it was


def test_what_onnx_demands_stays_with_its_reason():
    """Shape gives int64 and Reshape reads it: the arithmetic between is int32, one Cast at each
    border.
    """
    model = make(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "order"], ["t"]),
            helper.make_node("Reshape", ["x", "t"], ["y"]),
        ],
        [("x", FLOAT, [2, 3])],
        [("y", FLOAT, [3, 2])],
        [("order", np.array([1, 0]))],
    )
    after, report = narrow_model(model)
    verify(model, after)
    assert operators(after) == ["Shape", "Cast", "Gather", "Cast", "Reshape"]
    assert set(report.left.values()) == {
        "Shape gives int64 at opset 13",
        "Reshape reads int64 at opset 13",
    }
    assert report.refused == {}


@pytest.mark.parametrize("opset", [8, 11, 13])
def test_the_model_s_own_opset_decides(opset):
    """Max takes int32 from opset 12 on; with the newest schema in hand, one would break older
    models.
    """
    model = make(
        [helper.make_node("Max", ["x", "x"], ["y"])],
        [("x", DOUBLE, [2])],
        [("y", DOUBLE, [2])],
        opset=opset,
    )
    after, report = narrow_model(model)
    verify(model, after)
    whole = make(
        [
            helper.make_node("Cast", ["x"], ["i"], to=INT64),
            helper.make_node("Max", ["i", "i"], ["m"]),
            helper.make_node("Cast", ["m"], ["y"], to=FLOAT),
        ],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        opset=13,
    )
    assert narrow_model(whole)[1].wide_after == 0
    assert report.wide_after == 2  # the graph's own input and output


def test_one_cast_serves_all_readers():
    model = make(
        [
            helper.make_node("Add", ["x", "x"], ["a"]),
            helper.make_node("Mul", ["x", "a"], ["b"]),
            helper.make_node("Sub", ["b", "x"], ["y"]),
        ],
        [("x", INT64, [4])],
        [("y", INT64, [4])],
    )
    after, report = narrow_model(model)
    verify(model, after)
    assert operators(after) == ["Cast", "Add", "Mul", "Sub", "Cast"]
    assert [
        value.type.tensor_type.elem_type for value in (after.graph.input[0], after.graph.output[0])
    ] == [INT64, INT64]
    assert report.casts_added == 2


def test_a_constant_is_never_clipped_but_a_slice_s_end_is():
    biggest = np.iinfo(np.int64).max
    model = make(
        [
            helper.make_node("Cast", ["x"], ["i"], to=INT64),
            helper.make_node("Add", ["i", "big"], ["j"], name="sum"),
            helper.make_node("Slice", ["j", "start", "end"], ["k"]),
            helper.make_node("Cast", ["k"], ["y"], to=FLOAT),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [3])],
        [("big", np.array([2**40])), ("start", np.array([1])), ("end", np.array([biggest]))],
    )
    after, report = narrow_model(model)
    assert report.refused == {"sum": f"constant big holds {2**40}, which int32 cannot"}
    sliced = make(
        [helper.make_node("Slice", ["x", "start", "end"], ["y"])],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [3])],
        [("start", np.array([1])), ("end", np.array([biggest]))],
    )
    after, report = narrow_model(sliced)
    verify(sliced, after)
    assert {tuple(numpy_helper.to_array(tensor)) for tensor in after.graph.initializer} == {
        (1,),
        (2**31 - 1,),
    }
    assert report.refused == {}


def test_constant_of_shape_keeps_type_and_payload_together():
    """The vendor's tool changes the type and leaves eight bytes behind, which no checker sees."""
    value = numpy_helper.from_array(np.array([7]), "value")
    model = make(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["c"], value=value),
            helper.make_node("Cast", ["c"], ["f"], to=FLOAT),
            helper.make_node("Add", ["f", "x"], ["g"]),
            helper.make_node("Gather", ["x", "c"], ["h"]),
            helper.make_node("Add", ["g", "h"], ["y"]),
        ],
        [("x", FLOAT, [9])],
        [("y", FLOAT, [9])],
        [("shape", np.array([9]))],
    )
    after, report = narrow_model(model)
    verify(model, after)
    constant = (
        next(node for node in after.graph.node if node.op_type == "ConstantOfShape").attribute[0].t
    )
    assert numpy_helper.to_array(constant).tolist() == [7]
    assert constant.data_type == INT32
    assert list(report.left.values()) == ["ConstantOfShape reads int64 at opset 13"]


def test_a_constant_read_both_ways_exists_twice():
    model = make(
        [
            helper.make_node("Reshape", ["x", "n"], ["r"]),
            helper.make_node("Gather", ["r", "n"], ["a"]),
            helper.make_node("Gather", ["x", "n"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1])],
        [("n", np.array([-1]))],
    )
    after, report = narrow_model(model)
    verify(model, after)
    assert sorted(tensor.data_type for tensor in after.graph.initializer) == [INT32, INT64]
    assert (report.initializers, report.casts_added) == (1, 0)


def test_a_cast_with_nothing_left_to_do_goes():
    model = make(
        [
            helper.make_node("Cast", ["x"], ["i"], to=INT64),
            helper.make_node("Add", ["i", "i"], ["j"]),
            helper.make_node("Cast", ["j"], ["k"], to=INT32),
            helper.make_node("Neg", ["k"], ["y"]),
        ],
        [("x", FLOAT, [2])],
        [("y", INT32, [2])],
    )
    after, report = narrow_model(model)
    verify(model, after)
    assert operators(after) == ["Cast", "Add", "Neg"]
    assert report.casts_removed == 1


def test_double_and_other_people_s_operators():
    """float64 arithmetic, TopK, Where and an If whose bodies read from outside."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["d", "d"], ["o"])],
            op,
            [],
            [helper.make_tensor_value_info("o", DOUBLE, [4])],
        )
        for op in ("Add", "Mul")
    ]
    model = make(
        [
            helper.make_node("Cast", ["x"], ["c"], to=DOUBLE),
            helper.make_node("Mul", ["c", "half"], ["d"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["yes"]),
            helper.make_node("If", ["yes"], ["e"], then_branch=branch[0], else_branch=branch[1]),
            helper.make_node("Cast", ["e"], ["f"], to=FLOAT),
            helper.make_node("TopK", ["f", "two"], ["v", "i"]),
            helper.make_node("Less", ["i", "two"], ["mask"]),
            helper.make_node("Where", ["mask", "i", "two"], ["w"]),
            helper.make_node("Cast", ["w"], ["y"], to=FLOAT),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [2])],
        [
            ("half", np.array(0.5)),
            ("axes", np.array([0])),
            ("zero", np.array(0, np.float32)),
            ("two", np.array([2])),
        ],
    )
    after, report = narrow_model(model)
    verify(model, after)
    assert any("TopK gives int64" in reason for reason in report.left.values())
    assert not {"half"} & set(report.left)


def test_unknown_operators_are_left_alone_and_keep_their_domain():
    """The vendor's tool drops every domain but ONNX's own."""
    model = make(
        [
            helper.make_node("Strange", ["x"], ["i"], domain="people"),
            helper.make_node("Gather", ["x", "n"], ["y"]),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1]), ("i", INT64, [1])],
        [("n", np.array([0]))],
        domains=["people"],
    )
    after, _ = narrow_model(model)
    assert [entry.domain for entry in after.opset_import] == ["", "people"]
    assert operators(after) == ["Strange", "Gather"]


def test_twice_is_once():
    model = make(
        [helper.make_node("Gather", ["x", "n"], ["y"])],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1])],
        [("n", np.array([0]))],
    )
    once, first = narrow_model(model)
    twice, second = narrow_model(once)
    assert first.changed
    assert not second.changed
    assert (
        second.to_sentence() == "no rewrite needed: the graph holds no int64 and no float64 value."
    )
    assert twice.graph.node == once.graph.node


def test_an_invalid_graph_is_refused():
    model = make(
        [helper.make_node("Add", ["x", "n"], ["y"])],
        [("x", FLOAT, [1])],
        [("y", FLOAT, [1])],
        [("n", np.array([0]))],
    )
    with pytest.raises(RewriteError, match="not valid to begin with"):
        narrow_model(model)


def _other_graphs():
    """Small graphs as other exporters leave them, of operators that GMA does not use: name ->
    (model, what stays 64-bit).
    """

    def node(op, inputs, outputs, **attributes):
        return helper.make_node(op, inputs, outputs, **attributes)

    to_float = node("Cast", ["i"], ["y"], to=FLOAT)
    body = helper.make_graph(
        [
            node("Identity", ["go"], ["more"]),
            node("Add", ["sum", "number"], ["next"]),
            node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [
            helper.make_tensor_value_info(*value)
            for value in (("number", INT64, []), ("go", TensorProto.BOOL, []), ("sum", INT64, []))
        ],
        [
            helper.make_tensor_value_info(*value)
            for value in (("more", TensorProto.BOOL, []), ("next", INT64, []), ("seen", INT64, []))
        ],
    )
    x4, y4 = [("x", FLOAT, [4])], [("y", FLOAT, [4])]
    x22 = [("x", FLOAT, [2, 2])]
    return {
        "position code: Range, CumSum, Mod": make(
            [
                node("Range", ["zero", "four", "one"], ["r"]),
                node("CumSum", ["r", "zero"], ["c"]),
                node("Mod", ["c", "three"], ["i"]),
                node("Gather", ["x", "i"], ["y"]),
            ],
            x4,
            y4,
            [
                ("zero", np.array(0)),
                ("one", np.array(1)),
                ("four", np.array(4)),
                ("three", np.array(3)),
            ],
        ),
        "detection head: NonMaxSuppression": make(
            [
                node("Reshape", ["x", "boxes_shape"], ["boxes"]),
                node("NonMaxSuppression", ["boxes", "scores", "most"], ["chosen"]),
                node("Gather", ["chosen", "last"], ["i"], axis=1),
                to_float,
            ],
            x4,
            [("y", FLOAT, ["k", 1])],
            [
                ("boxes_shape", np.array([1, 1, 4])),
                ("scores", np.ones([1, 1, 1], "f4")),
                ("most", np.array(1)),
                ("last", np.array([2])),
            ],
        ),
        "classifier: ArgMax and OneHot": make(
            [
                node("ArgMax", ["x"], ["a"], axis=0),
                node("OneHot", ["a", "depth", "off_on"], ["i"]),
                to_float,
            ],
            x4,
            [("y", FLOAT, [1, 4])],
            [("depth", np.array(4)), ("off_on", np.array([0, 1]))],
        ),
        "mask: NonZero, Transpose, GatherND": make(
            [
                node("NonZero", ["x"], ["n"]),
                node("Transpose", ["n"], ["t"]),
                node("GatherND", ["x", "t"], ["y"]),
            ],
            x22,
            [("y", FLOAT, ["k"])],
        ),
        "resize with an empty input between": make(
            [node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest")],
            [("x", FLOAT, [1, 1, 2, 2])],
            [("y", FLOAT, [1, 1, 4, 4])],
            [("sizes", np.array([1, 1, 4, 4]))],
        ),
        "scatter, tile and expand": make(
            [
                node("ScatterND", ["x", "where", "what"], ["s"]),
                node("Tile", ["s", "twice"], ["t"]),
                node("Expand", ["t", "shape"], ["y"]),
            ],
            x4,
            [("y", FLOAT, [2, 8])],
            [
                ("where", np.array([[1]])),
                ("what", np.array([9], np.float32)),
                ("twice", np.array([2])),
                ("shape", np.array([2, 8])),
            ],
        ),
        "a loop that counts": make(
            [
                node("Loop", ["n", "yes", "zero"], ["total", "all"], body=body),
                node("Add", ["total", "one"], ["i"]),
                to_float,
            ],
            [],
            [("y", FLOAT, [])],
            [
                ("n", np.array(3)),
                ("yes", np.array(True)),
                ("zero", np.array(0)),
                ("one", np.array(1)),
            ],
        ),
        "double arithmetic: Einsum, ReduceMean, Sqrt": make(
            [
                node("Cast", ["x"], ["d"], to=DOUBLE),
                node("Einsum", ["d", "d"], ["e"], equation="ij,jk->ik"),
                node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
                node("Sqrt", ["m"], ["i"]),
                to_float,
            ],
            x22,
            [("y", FLOAT, [2])],
        ),
    }


@pytest.mark.parametrize(
    ("name", "left", "casts"),
    [
        ("position code: Range, CumSum, Mod", set(), 0),
        (
            "detection head: NonMaxSuppression",
            {"Reshape reads", "NonMaxSuppression reads", "NonMaxSuppression gives"},
            1,
        ),
        ("classifier: ArgMax and OneHot", {"ArgMax gives", "refused, see there"}, 0),
        ("mask: NonZero, Transpose, GatherND", {"NonZero gives", "GatherND reads"}, 2),
        ("resize with an empty input between", {"Resize reads"}, 0),
        ("scatter, tile and expand", {"ScatterND reads", "Tile reads", "Expand reads"}, 0),
        ("a loop that counts", {"what Loop shares with its body keeps its type"}, 5),
        ("double arithmetic: Einsum, ReduceMean, Sqrt", set(), 0),
    ],
)
def test_other_people_s_graphs(name, left, casts):
    """Whatever stays has the operator that demands it as its reason, Casts stand beside those only,
    and the numbers are the same.
    """
    model = _other_graphs()[name]
    leave = frozenset(
        {"OneHot"} if "OneHot" in name else ()
    )  # ONNX Runtime has none for int32, although the schema allows it
    after, report = narrow_model(model, leave=leave)
    verify(model, after)
    said = {reason.split(" int64")[0] for reason in report.left.values()}
    assert said == left
    assert report.casts_added == casts
    assert (report.wide_after == 0) == (not left)
    assert any("refused" in reason for reason in report.left.values()) == bool(leave)
    assert {reason for reason in report.refused.values() if "body" not in reason} == (
        {"OneHot was to be left as it is"} if leave else set()
    )


def test_two_graphs_with_the_same_names_do_not_disturb_each_other():
    """The vendor's tool remembers names from graph to graph, and leaves the second one mixed."""
    for _ in range(2):
        model = _other_graphs()["detection head: NonMaxSuppression"]
        after, report = narrow_model(model)
        verify(model, after)
        assert report.casts_added == 1


def test_a_constant_with_one_reader_that_demands_it_and_two_that_do_not():
    """The vendor's tool leaves the second of the two with 64 bits, and calls it success."""
    model = make(
        [
            helper.make_node("Reshape", ["x", "n"], ["r"]),
            helper.make_node("Gather", ["r", "n"], ["a"]),
            helper.make_node("Gather", ["x", "n"], ["b"]),
            helper.make_node("Gather", ["a", "n"], ["c"]),
            helper.make_node("Sum", ["a", "b", "c"], ["y"]),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1])],
        [("n", np.array([-1]))],
    )
    after, report = narrow_model(model)
    verify(model, after)
    reads = {node.op_type: node.input[1] for node in after.graph.node if node.op_type != "Sum"}
    assert reads == {"Reshape": "n", "Gather": "n_int32"}
    assert report.initializers == 1


def test_open_shapes_of_inputs_and_outputs_stay_open():
    model = _other_graphs()["mask: NonZero, Transpose, GatherND"]
    after, _ = narrow_model(model)
    assert after.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "k"
    assert after.graph.output == model.graph.output
