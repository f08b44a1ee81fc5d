"""Files are rewritten where needed, and only if the result is the same."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from small_graphs import FLOAT, INT32, INT64, make

from gma_lib.ascend import rewrite
from gma_lib.ascend import verify as verification
from gma_lib.ascend.narrowing import narrow_model
from gma_lib.ascend.rewrite import rewrite_file
from gma_lib.ascend.verify import RewriteError


def test_nothing_is_written_when_the_runtime_has_no_such_kernel(tmp_path):
    """The schema allows Unique of int32; should ONNX Runtime not have it, the user can leave it
    out.
    """
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
    with pytest.raises(
        RewriteError, match=r"ONNX Runtime does not load the rewritten graph.*leave="
    ):
        rewrite_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]
    report = rewrite_file(tmp_path / "in.onnx", tmp_path / "out.onnx", leave=frozenset({"Unique"}))
    assert any("was to be left" in reason for reason in report.refused.values())


@pytest.fixture(scope="module")
def guide_style(tmp_path_factory):
    from gma_lib import export
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.model import GMAConfig

    model, checkpoint = load_model("seeded", GMAConfig(lookup="gather"))
    path = tmp_path_factory.mktemp("guide") / "gma.onnx"
    return export.export_whole(
        model, path, height=128, width=160, batch_size=1, checkpoint=checkpoint, opset=12
    )


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
    assert not computed & set(
        report.left
    )  # what remains are constants: shapes that Reshape, Expand and the like demand


def test_the_default_graph_needs_none(tmp_path, seeded):
    from gma_lib import export

    model, checkpoint = seeded
    path = export.export_whole(
        model, tmp_path / "gma.onnx", height=128, width=160, batch_size=1, checkpoint=checkpoint
    )
    assert not rewrite.computes_wide(path)
    after, report = narrow_model(onnx.load(path))
    assert report.casts_added == report.casts_removed == 0
    assert all("reads int64 at opset 13" in reason for reason in report.left.values())
    assert len(after.graph.node) == report.nodes_before


def test_a_large_batch_is_compared_in_a_small_one(tmp_path, monkeypatch):
    """A batch of a card's size may not fit here; nothing but inputs and outputs mentions it, or
    ONNX Runtime refuses.
    """
    seen = []
    monkeypatch.setattr(verification, "make_random_feeds", _noting(seen))

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
    original = verification.make_random_feeds

    def noting(model):
        seen.append(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)
        return original(model)

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


def test_the_vendor_s_tool_is_believed_when_it_is_right(vendor, gather, tmp_path):
    """ascend.md 4.2."""
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
    """ascend.md 4.2: exit code 0 whatever happened; 4.3: results that are not valid."""
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
    done = CliRunner().invoke(rewrite.main, [str(gather), str(tmp_path / "out.onnx")])
    assert done.exit_code == 0
    assert "1 values of 64 bits before, 0 after" in done.output
    done = CliRunner().invoke(
        rewrite.main, [str(gather), str(tmp_path / "out.onnx"), "--leave", "Gather"]
    )
    assert "Gather was to be left as it is" in done.output
    done = CliRunner().invoke(
        rewrite.main, [str(gather), str(tmp_path / "out.onnx"), "--vendor-python", sys.executable]
    )
    assert "it leaves 0 values" in done.output
    vendor.setenv("STANDIN_FAULT", "opt-nothing")
    done = CliRunner().invoke(
        rewrite.main, [str(gather), str(tmp_path / "other.onnx"), "--vendor-python", sys.executable]
    )
    assert done.exit_code == 1
    assert "wrote nothing" in done.output


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
