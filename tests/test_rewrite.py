"""64 bits become 32 where ONNX allows it, nothing else changes, and what cannot be done has a reason."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gma_lib import rewrite
from gma_lib.rewrite import RewriteError, narrowed, rewrite_file, verify

INT64, INT32, DOUBLE, FLOAT = TensorProto.INT64, TensorProto.INT32, TensorProto.DOUBLE, TensorProto.FLOAT


def make(nodes, inputs, outputs, constants=(), opset=13, domains=()):
    """A model from (name, type, shape) triples and named arrays."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_index_arithmetic_becomes_int32():
    """float -> int64 -> + 1 -> Gather: the Cast changes its target, the constant is copied, no Cast is added."""
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
    after, report = narrowed(model)
    verify(model, after)
    assert operators(after) == ["Cast", "Add", "Gather"]
    assert after.graph.node[0].attribute[0].i == INT32
    assert (report.wide_before, report.wide_after, report.casts_added, report.initializers) == (3, 0, 0, 1)
    assert model.graph.node[0].attribute[0].i == INT64  # the original is as it was


def test_what_onnx_demands_stays_with_its_reason():
    """Shape gives int64 and Reshape reads it: the arithmetic between is int32, one Cast at each border."""
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
    after, report = narrowed(model)
    verify(model, after)
    assert operators(after) == ["Shape", "Cast", "Gather", "Cast", "Reshape"]
    assert set(report.left.values()) == {"Shape gives int64 at opset 13", "Reshape reads int64 at opset 13"}
    assert report.refused == {}


@pytest.mark.parametrize("opset", [8, 11, 13])
def test_the_model_s_own_opset_decides(opset):
    """Max takes int32 from opset 12 on; with the newest schema in hand, one would break older models."""
    model = make([helper.make_node("Max", ["x", "x"], ["y"])], [("x", DOUBLE, [2])], [("y", DOUBLE, [2])], opset=opset)
    after, report = narrowed(model)
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
    assert narrowed(whole)[1].wide_after == 0
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
    after, report = narrowed(model)
    verify(model, after)
    assert operators(after) == ["Cast", "Add", "Mul", "Sub", "Cast"]
    assert [value.type.tensor_type.elem_type for value in (after.graph.input[0], after.graph.output[0])] == [INT64, INT64]
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
    after, report = narrowed(model)
    assert report.refused == {"sum": f"constant big holds {2**40}, which int32 cannot"}
    sliced = make(
        [helper.make_node("Slice", ["x", "start", "end"], ["y"])],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [3])],
        [("start", np.array([1])), ("end", np.array([biggest]))],
    )
    after, report = narrowed(sliced)
    verify(sliced, after)
    assert {tuple(numpy_helper.to_array(tensor)) for tensor in after.graph.initializer} == {(1,), (2**31 - 1,)}
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
    after, report = narrowed(model)
    verify(model, after)
    constant = next(node for node in after.graph.node if node.op_type == "ConstantOfShape").attribute[0].t
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
    after, report = narrowed(model)
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
    after, report = narrowed(model)
    verify(model, after)
    assert operators(after) == ["Cast", "Add", "Neg"]
    assert report.casts_removed == 1


def test_double_and_other_people_s_operators():
    """float64 arithmetic, TopK, Where and an If whose bodies read from outside."""
    branch = [
        helper.make_graph([helper.make_node(op, ["d", "d"], ["o"])], op, [], [helper.make_tensor_value_info("o", DOUBLE, [4])])
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
        [("half", np.array(0.5)), ("axes", np.array([0])), ("zero", np.array(0, np.float32)), ("two", np.array([2]))],
    )
    after, report = narrowed(model)
    verify(model, after)
    assert any("TopK gives int64" in reason for reason in report.left.values())
    assert not {"half"} & set(report.left)


def test_unknown_operators_are_left_alone_and_keep_their_domain():
    """The vendor's tool drops every domain but ONNX's own."""
    model = make(
        [helper.make_node("Strange", ["x"], ["i"], domain="people"), helper.make_node("Gather", ["x", "n"], ["y"])],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1]), ("i", INT64, [1])],
        [("n", np.array([0]))],
        domains=["people"],
    )
    after, _ = narrowed(model)
    assert [entry.domain for entry in after.opset_import] == ["", "people"]
    assert operators(after) == ["Strange", "Gather"]


def test_twice_is_once():
    model = make([helper.make_node("Gather", ["x", "n"], ["y"])], [("x", FLOAT, [4])], [("y", FLOAT, [1])], [("n", np.array([0]))])
    once, first = narrowed(model)
    twice, second = narrowed(once)
    assert first.changed
    assert not second.changed
    assert second.sentence() == "no rewrite needed: the graph holds no int64 and no float64 value."
    assert twice.graph.node == once.graph.node


@pytest.mark.parametrize("damage", ["value", "type", "input"])
def test_a_wrong_result_is_refused(damage):
    model = make([helper.make_node("Gather", ["x", "n"], ["y"])], [("x", FLOAT, [4])], [("y", FLOAT, [1])], [("n", np.array([0]))])
    after, _ = narrowed(model)
    if damage == "value":
        after.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1], np.int32), after.graph.initializer[0].name))
    elif damage == "type":
        after.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([0], np.float32), after.graph.initializer[0].name))
    else:
        after.graph.input[0].name = "z"
        after.graph.node[0].input[0] = "z"
    with pytest.raises(RewriteError, match={"value": "other values", "type": "not valid", "input": "other inputs"}[damage]):
        verify(model, after)


def test_nothing_is_written_when_the_runtime_has_no_such_kernel(tmp_path):
    """The schema allows Unique of int32; should ONNX Runtime not have it, the user can leave it out."""
    model = make(
        [
            helper.make_node("Cast", ["x"], ["i"], to=INT64),
            helper.make_node("Unique", ["i"], ["u"], sorted=1),
            helper.make_node("ReduceSum", ["u"], ["s"], keepdims=1),
            helper.make_node("Cast", ["s"], ["y"], to=FLOAT),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1])],
    )
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(RewriteError, match=r"ONNX Runtime does not load the rewritten graph.*leave="):
        rewrite_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]
    report = rewrite_file(tmp_path / "in.onnx", tmp_path / "out.onnx", leave=frozenset({"Unique"}))
    assert any("was to be left" in reason for reason in report.refused.values())


def test_an_invalid_graph_is_refused():
    model = make([helper.make_node("Add", ["x", "n"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [1])], [("n", np.array([0]))])
    with pytest.raises(RewriteError, match="not valid to begin with"):
        narrowed(model)


def test_inputs_without_a_shape_ask_for_feeds():
    model = make([helper.make_node("Gather", ["x", "n"], ["y"])], [("x", FLOAT, ["k"])], [("y", FLOAT, [1])], [("n", np.array([0]))])
    with pytest.raises(ValueError, match="no fixed shape"):
        rewrite.random_feeds(model)


@pytest.fixture(scope="module")
def guide_style(tmp_path_factory):
    from gma_lib import export
    from gma_lib.checkpoints import load_model
    from gma_lib.model import GMAConfig

    model, checkpoint = load_model("seeded", GMAConfig(lookup="gather"))
    path = tmp_path_factory.mktemp("guide") / "gma.onnx"
    return export.export_whole(model, path, height=128, width=160, batch_size=1, checkpoint=checkpoint, opset=12)


def test_the_guide_s_graph(guide_style, tmp_path):
    """ascend.md 9: the vendor's tool leaves 155 int64 values in it and adds 151 casts."""
    assert rewrite.computes_wide(guide_style)
    report = rewrite_file(guide_style, tmp_path / "out.onnx")
    assert not rewrite.computes_wide(tmp_path / "out.onnx")
    assert report.wide_before > 500
    assert (report.casts_added, report.casts_removed) == (0, 0)
    assert report.refused == {}
    assert all(" at opset 12" in reason for reason in report.left.values())
    after = onnx.load(tmp_path / "out.onnx")
    computed = {name for node in after.graph.node for name in node.output}
    assert not computed & set(report.left)  # what remains are constants: shapes that Reshape, Expand and the like demand


def test_the_default_graph_needs_none(tmp_path, seeded):
    from gma_lib import export

    model, checkpoint = seeded
    path = export.export_whole(model, tmp_path / "gma.onnx", height=128, width=160, batch_size=1, checkpoint=checkpoint)
    assert not rewrite.computes_wide(path)
    after, report = narrowed(onnx.load(path))
    assert report.casts_added == report.casts_removed == 0
    assert all("reads int64 at opset 13" in reason for reason in report.left.values())
    assert len(after.graph.node) == report.nodes_before
