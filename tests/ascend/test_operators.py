"""What a version of CANN can read."""

import onnx
import pytest

from gma_lib.ascend import operators

pytestmark = pytest.mark.slow


def _graph(tmp_path, operator, opset):
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [], []),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


@pytest.mark.parametrize(
    ("operator", "opset", "cann", "words"),
    [
        ("Gather", 13, "6.0.1", ("fine", "fine")),
        ("Gather", 13, "8.0.RC1", ("fine", "fine")),
        ("Gather", 14, "6.0.1", ("refused", "unknown")),
        ("Gather", 18, "7.0.0", ("fine", "fine")),
        ("Gather", 9, "8.0", ("refused", "fine")),
        ("Gather", 19, "8.0", ("refused", "refused")),
        ("GridSample", 16, "8.0", ("fine", "fine")),
        ("GridSample", 13, "8.0", ("fine", "refused")),
        ("GridSample", 11, "6.0.1", ("fine", "refused")),
        ("Loop", 13, "8.5", ("fine", "refused")),
        ("Conv", 13, "8.0", ("fine", "fine")),
        ("Round", 13, "6.0.1", ("fine", "fine")),
        ("Round", 14, "6.0.1", ("refused", "unknown")),
        ("StringNormalizer", 13, "9.2.0", ("fine", "unknown")),
        ("Conv", 13, None, ("unknown", "unknown")),
        ("Conv", 13, "12.0", ("unknown", "unknown")),
    ],
)
def test_what_a_version_can_read(tmp_path, operator, opset, cann, words):
    verdicts = operators.check_operators(_graph(tmp_path, operator, opset), cann)
    assert tuple(verdict.word for verdict in verdicts) == words
    assert ("[hyp]" in verdicts[1].why) == ((operator, words[1]) == ("GridSample", "fine"))
    if "refused" in words:
        with pytest.raises(ValueError, match="cannot be converted"):
            operators.refuse_impossible(verdicts)
    else:
        operators.refuse_impossible(verdicts)


def test_a_loop_within_a_body_is_found(tmp_path):
    """Loop and Scan are always refused."""
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Loop", ["n", "c"], ["o"])], "inner", [], []
    )
    node = onnx.helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [], []),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
    )
    onnx.save(model, tmp_path / "g.onnx")
    words = {
        verdict.what: verdict.word
        for verdict in operators.check_operators(tmp_path / "g.onnx", "8.5")
    }
    assert words == {"opset 13": "fine", "If": "fine", "Loop": "refused"}


@pytest.mark.parametrize(
    ("lookup", "cann", "opset", "refused"),
    [
        ("matmul", "6.0.1", "fine", set()),
        ("matmul", "7.0.0", "fine", set()),
        ("matmul", "8.0.RC1", "fine", set()),
        ("gather", "6.0.1", "fine", set()),
        ("gather", "7.0.0", "fine", set()),
        ("gather", "8.0.RC1", "fine", set()),
        ("grid_sample", "6.0.1", "refused", {"GridSample"}),
        ("grid_sample", "7.0.0", "fine", set()),
        ("grid_sample", "8.0.RC1", "fine", set()),
    ],
)
def test_the_graph_that_goes_to_atc(exported, lookup, cann, opset, refused):
    """Nothing of our graphs is refused but GridSample where it was absent; what
    nobody wrote down is unknown.
    """
    first, *rest = operators.check_operators(exported / f"{lookup}.onnx", cann)
    assert first.word == opset
    words = {verdict.what: verdict.word for verdict in rest}
    assert {name for name, word in words.items() if word == "refused"} == refused
    assert words["Conv"] == ("fine" if opset == "fine" else "unknown")
    assert words["Softmax"] == words["Conv"]  # the guide's own graph has both
    if lookup == "matmul":  # nothing is unknown that a real unknown could drown in
        assert set(words.values()) == {"fine"}
    assert set(words) == {
        node.op_type for node in onnx.load(exported / f"{lookup}.onnx").graph.node
    }
