"""Files are rewritten where needed, and only if the result is the same."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import gma
from onnx import helper
from small_graphs import FLOAT, INT32, INT64, make

from gma_lib.ascend import rewrite
from gma_lib.ascend import verify as verification
from gma_lib.ascend.narrowing import narrow_model
from gma_lib.ascend.rewrite import rewrite_file
from gma_lib.ascend.verify import RewriteError


def test_nothing_is_written_when_the_runtime_has_no_such_kernel(tmp_path):
    """The schema allows OneHot of int32; should ONNX Runtime not have it, the user can leave it
    out.
    """
    model = make(
        [
            helper.make_node("ArgMax", ["x"], ["a"], axis=0),
            helper.make_node("OneHot", ["a", "depth", "off_on"], ["i"]),
            helper.make_node("Cast", ["i"], ["y"], to=FLOAT),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [1, 4])],
        [("depth", np.array(4)), ("off_on", np.array([0, 1]))],
    )
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(RewriteError, match=r"leave="):
        rewrite_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]
    report = rewrite_file(tmp_path / "in.onnx", tmp_path / "out.onnx", leave=frozenset({"OneHot"}))
    assert any("was to be left" in reason for reason in report.refused.values())


@pytest.mark.slow
def test_the_guide_s_graph(exported, tmp_path):
    """The vendor's tool leaves 155 int64 values in it and adds 151 casts."""
    guide_style = exported / "gather.onnx"
    assert rewrite.list_wide_activations(guide_style)
    report = rewrite_file(guide_style, tmp_path / "out.onnx")
    assert not rewrite.list_wide_activations(tmp_path / "out.onnx")
    assert report.wide_before > 200
    assert (report.casts_added, report.casts_removed) == (0, 0)
    assert report.refused == {}
    assert all(" at opset 12" in reason for reason in report.left.values())
    after = onnx.load(tmp_path / "out.onnx")
    computed = {name for node in after.graph.node for name in node.output}
    assert not computed & set(
        report.left
    )  # what remains are constants: shapes that Reshape, Expand and the like demand


@pytest.mark.slow
def test_the_default_graph_needs_none(exported):
    path = exported / "matmul.onnx"
    assert not rewrite.list_wide_activations(path)
    before = onnx.load(path)
    after, report = narrow_model(before)
    assert report.casts_added == report.casts_removed == 0
    assert all("reads int64 at opset 13" in reason for reason in report.left.values())
    assert len(after.graph.node) == sum(n.op_type != "Constant" for n in before.graph.node)


def test_a_large_batch_is_compared_in_a_small_one(tmp_path, monkeypatch):
    """A batch of a card's size may not fit here; nothing but inputs and outputs mentions it, or
    ONNX Runtime refuses.
    """
    seen = []
    monkeypatch.setattr(verification, "make_feeds", _noting(seen))

    def graph(reshaped):
        return make(
            [
                helper.make_node("Gather", ["x", "n"], ["g"], axis=1),
                helper.make_node("Reshape", ["g", "to"], ["y"]),
            ],
            [("x", FLOAT, [16, 4])],
            [("y", FLOAT, [16, 1])],
            [("n", np.array([1])), ("to", np.array([reshaped, 1]))],
        )

    onnx.save(graph(-1), tmp_path / "in.onnx")
    rewrite_file(tmp_path / "in.onnx", tmp_path / "out.onnx", largest_batch=2)
    assert seen == [2]
    assert (
        onnx.load(tmp_path / "out.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value
        == 16
    )
    onnx.save(graph(16), tmp_path / "fixed.onnx")
    with pytest.raises(Exception, match="reshape"):
        rewrite_file(tmp_path / "fixed.onnx", tmp_path / "never.onnx", largest_batch=2)
    assert not (tmp_path / "never.onnx").exists()


def _noting(seen):
    original = verification.make_feeds

    def noting(model, sizes):
        seen.append(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)
        return original(model, sizes)

    return noting


@pytest.fixture
def vendor(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "standins" / "python"))
    monkeypatch.delenv("STANDIN_FAULT", raising=False)
    return monkeypatch


@pytest.fixture
def gather(tmp_path):
    model = make(
        [helper.make_node("Gather", ["x", "n"], ["y"])],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [2])],
        [("n", np.array([2, 1]))],
        domains=["people"],
    )
    onnx.save(model, tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


@pytest.mark.slow
def test_the_vendor_s_tool_is_believed_when_it_is_right(vendor, gather, tmp_path):
    rewrite.rewrite_with_vendor_tool(gather, tmp_path / "out.onnx", python=sys.executable)
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0].data_type == INT32


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("opt-mapping", r"wrote nothing \(exit code 1\).*No module named 'onnx.mapping'"),
        ("opt-nothing", r"wrote nothing \(exit code 0\).*no knowledges matched"),
        ("opt-payload", "not valid|does not load|other values"),
        ("opt-clip", "has other values"),
    ],
)
def test_the_vendor_s_tool_says_success_and_is_not_believed(
    vendor, gather, tmp_path, fault, message
):
    """The tool always exits with 0, also with a result that is not valid."""
    vendor.setenv("STANDIN_FAULT", fault)
    with pytest.raises(RewriteError, match=message):
        rewrite.rewrite_with_vendor_tool(gather, tmp_path / "out.onnx", python=sys.executable)
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_the_vendor_s_tool_is_not_there(gather, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(RewriteError, match="No module named auto_optimizer"):
        rewrite.rewrite_with_vendor_tool(gather, tmp_path / "out.onnx", python=sys.executable)
    with pytest.raises(RewriteError, match="did not run"):
        rewrite.rewrite_with_vendor_tool(gather, tmp_path / "out.onnx", python="/no/python")


def test_the_command_line(vendor, gather, tmp_path):
    files = [gather, tmp_path / "out.onnx"]
    assert "1 values of 64 bits before, 0 after" in gma("rewrite", *files)
    assert "Gather was to be left as it is" in gma("rewrite", *files, "--leave", "Gather")
    ask = ["--vendor-python", sys.executable]
    assert "it leaves 0 values" in gma("rewrite", *files, *ask)
    assert "--leave" in gma("rewrite", *files, *ask, "--leave", "Gather", exit_code=2)
    vendor.setenv("STANDIN_FAULT", "opt-nothing")
    said = gma("rewrite", gather, tmp_path / "other.onnx", *ask, exit_code=1)
    assert "wrote nothing" in said


def test_what_computes_nothing_wide_is_copied(gather, tmp_path):
    """A constant of 64 bits is no reason; a node that computes one is."""
    assert rewrite.rewrite_where_needed(gather, tmp_path / "same.onnx").startswith(
        "no rewrite needed"
    )
    assert (tmp_path / "same.onnx").read_bytes() == gather.read_bytes()
    model = make(
        [
            helper.make_node("Cast", ["x"], ["i"], to=INT64),
            helper.make_node("Cast", ["i"], ["y"], to=FLOAT),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [4])],
    )
    onnx.save(model, tmp_path / "wide.onnx")
    assert "64 bits before" in rewrite.rewrite_where_needed(
        tmp_path / "wide.onnx", tmp_path / "out.onnx"
    )


def _damage(path, how):
    model = onnx.load(path)
    node = model.graph.node[0]
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
        return
    if how == "no graph":
        path.write_bytes(b"not a graph")
        return
    if how == "future opset":
        model.opset_import[0].version = 99
    elif how == "cycle":
        model.graph.node.append(helper.make_node("Neg", ["b"], ["a"]))
        model.graph.node.append(helper.make_node("Neg", ["a"], ["b"]))
    elif how == "name used twice":
        model.graph.node.append(node)
    elif how == "output of unknown type":
        node.domain = "people"
        model.graph.output[0].ClearField("type")
    onnx.save(model, path)


@pytest.mark.parametrize(
    "how",
    ["truncated", "no graph", "future opset", "cycle", "name used twice", "output of unknown type"],
)
def test_what_is_no_valid_graph_is_refused_in_one_line(gather, tmp_path, how):
    _damage(gather, how)
    assert gma("rewrite", gather, tmp_path / "out.onnx", exit_code=1).count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_open_axes_and_feeds_on_the_command_line(tmp_path):
    """The second axis must be four: a size for it, or feeds, and the comparison runs."""
    model = make(
        [
            helper.make_node("Gather", ["x", "n"], ["g"]),
            helper.make_node("Add", ["g", "four"], ["y"]),
        ],
        [("x", FLOAT, ["k", "wide"])],
        [("y", FLOAT, [1, "out"])],
        [("n", np.array([0])), ("four", np.ones([4], np.float32))],
    )
    files = [str(tmp_path / name) for name in ("in.onnx", "out.onnx")]
    onnx.save(model, files[0])
    np.savez(tmp_path / "feed.npz", x=np.ones([3, 4], np.float32))
    np.savez(tmp_path / "wrong.npz", x=np.ones([3, 5], np.float32))
    gma("rewrite", *files, "--size", "wide", 4)
    gma("rewrite", *files, "--feeds", tmp_path / "feed.npz")
    gma("rewrite", *files, "--feeds", tmp_path / "wrong.npz", exit_code=1)
    both = [f"--feeds={tmp_path / name}.npz" for name in ("feed", "wrong")]
    gma("rewrite", *files, *both, exit_code=1)  # what is given has to be compared


def test_weights_in_a_file_of_their_own_stay_there(tmp_path):
    """As of a graph above 2 GB: numbers of 64 bits are read, weights copied beside the target."""
    weights = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    model = make(
        [
            helper.make_node("Gather", ["weights", "n"], ["g"]),
            helper.make_node("Add", ["g", "x"], ["y"]),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [3, 4])],
        [("weights", weights), ("n", np.array([999, 0, 5]))],
    )
    (tmp_path / "from").mkdir()
    source = tmp_path / "from" / "in.onnx"
    onnx.save(model, source, save_as_external_data=True, location="data.bin", size_threshold=0)
    report = rewrite_file(source, tmp_path / "to" / "out.onnx")
    assert report.wide_after == 0
    model_file, data = sorted((tmp_path / "to").iterdir())
    assert data.stat().st_size >= weights.nbytes > model_file.stat().st_size
    tensors = {tensor.name: tensor for tensor in onnx.load(model_file).graph.initializer}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors["weights"]), weights)
    (tmp_path / "from" / "data.bin").write_bytes(b"cut short")
    with pytest.raises(RewriteError):
        rewrite_file(source, tmp_path / "to" / "other.onnx")
