"""What stays float32: ascend.md 2.7."""

import onnx
import pytest

from gma_lib.ascend import atc, keep

pytestmark = pytest.mark.slow


def test_what_stays_float32(exported, standins, tmp_path):
    """ascend.md 2.7, 7.42: by the guide's line, or the coordinates as well by name; and the report
    says it in a few words.
    """
    source = exported / "matmul.onnx"
    assert keep.choose_options("310P3", "float16", source).keep_dtype == ("OpType::InstanceNorm",)
    assert keep.choose_options("310P3", "float32", source).keep_dtype == ()
    options = keep.choose_options("310P3", "float16", source, keep="coordinates")
    products = {node.name for node in onnx.load(source).graph.node if node.op_type == "MatMul"}
    assert options.keep_dtype[0] == "OpType::InstanceNorm"
    assert len(options.keep_dtype) > 50
    assert not products & set(options.keep_dtype)
    manifest = atc.convert_to_om(
        source, tmp_path / "gma.om", options
    )  # every line names a node of the graph
    assert (
        keep.describe_kept(manifest["options"]["keep_dtype"])
        == f"InstanceNorm and {len(options.keep_dtype) - 1} nodes by name"
    )
    with pytest.raises(ValueError, match="KEEP is one of guide, coordinates, not 'everything'"):
        keep.choose_options("310P3", "float16", source, keep="everything")
