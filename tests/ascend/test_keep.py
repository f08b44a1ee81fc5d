"""What stays float32."""

import onnx
import pytest

from gma_lib.ascend import atc, keep
from gma_lib.backends.ascend import AscendBackend, AscendOptions

pytestmark = pytest.mark.slow


def test_what_stays_float32(exported, standins, tmp_path):
    """By the guide's line, or the coordinates as well by name; and the report
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


@pytest.mark.parametrize(
    ("mode", "precision", "kept"),
    [
        ("fp16", "float16", ("OpType::InstanceNorm",)),
        ("mixed_float16", "float16", ("OpType::InstanceNorm",)),
        ("origin", "float32", ()),
    ],
)
def test_the_precision_in_the_words_of_today(models, standins, tmp_path, mode, precision, kept):
    """Instead of precision_mode; read back from the manifest when it runs."""
    source = models / "GMA_m_1.onnx"
    options = keep.choose_options("310P3", precision, source, mode_v2=mode)
    assert (options.precision_mode, options.keep_dtype) == (None, kept)
    manifest = atc.convert_to_om(source, tmp_path / "gma.om", options)
    assert f"--precision_mode_v2={mode}" in manifest["command"]
    card = AscendOptions(precision)
    with AscendBackend(tmp_path / "gma.om", card) as backend:
        assert backend.precision == precision
    other = {"float16": "float32", "float32": "float16"}[precision]
    with pytest.raises(ValueError, match=f"computes in {precision}, not in {other}"):
        keep.choose_options("310P3", other, source, mode_v2=mode)
