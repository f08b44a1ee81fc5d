"""What a version of CANN can read: opsets and operators, as its documents and sources say. What
they do not say is unknown, not fine.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import onnx

from gma_lib.ascend.graphs import walk_graphs

FINE, REFUSED, UNKNOWN = "fine", "refused", "unknown"

# CANN -> opsets that it documents: 6.0 and 7.0 as a range of the whole parser, 8 operator by
# operator.
OPSETS = {
    "5": range(9, 14),
    "6": range(9, 14),
    "7": range(9, 19),
    "8": range(11, 19),
    "9": range(11, 19),
}
# Operators whose registration in CANN's ONNX plugins was read: operator -> opsets.
REGISTERED = {
    "GridSample": {11, 16, 17, 18},
    "ScatterND": set(range(8, 19)),
    "GatherND": set(range(8, 19)),
    "GatherElements": set(range(8, 19)),
    "Gather": set(range(8, 19)),
    "InstanceNormalization": set(range(8, 19)),
    "LayerNormalization": {17, 18},
    "Col2Im": {18},
    "Einsum": set(range(12, 19)),
    "Resize": set(range(10, 19)),
    "If": set(range(8, 19)),
    **{
        f"Sequence{what}": set(range(11, 19))
        for what in ("At", "Construct", "Empty", "Erase", "Insert", "Length")
    },
}
# What the vendor's operator lists for 5.0.4 and for 8.0 both name (hiascend.com, canncommercial:
# 5046 operatorlist_0071, 800 operatorlist_00176). All of the guide's own graph is among them.
_LISTED = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift
Cast Ceil Celu Clip Compress Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
DepthToSpace Det Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements
GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid
HardSwish Hardmax Identity If InstanceNormalization LRN LSTM LeakyRelu Less LessOrEqual Log
LogSoftmax LpNormalization LpPool MatMul Max MaxPool MaxRoiPool MaxUnpool Mean
MeanVarianceNormalization Min Mod Mul Multinomial Neg NonMaxSuppression NonZero Not OneHot Or PRelu
Pad Pow RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Resize ReverseSequence RoiAlign Round Scatter ScatterElements ScatterND Selu Shape
Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze
Sub Sum Tanh TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Unsqueeze Where Xor
"""
LISTED = set(_LISTED.split())
NOTES = {
    "GridSample": "a 310P likely runs it on its AI CPU, slowly [hyp]",
    "Einsum": "in float16 it amplifies errors: name it in keep_dtype",
    "ScatterND": "with a reduction it becomes a PartitionedCall",
}
NEVER = {"Loop", "Scan"}
# Absent from the operator list of 5.0.4, which is the list for 6.0 as far as it was read
ABSENT_BEFORE_7 = {"GridSample", "Einsum"}


@dataclass(frozen=True)
class Support:
    """What is known of one operator (or of the opset) on one version: the word, and why."""

    what: str
    word: str
    why: str


def check_operators(path: Path, cann: str | None) -> list[Support]:
    """Judge a graph for a version of CANN: the opset first, then every operator once, those of the
    bodies of If and the like too.

    Parameters
    ----------
    cann
        ``6.0.1``, ``7.0.0``, ``8.0.RC1``, ...; None: not known, and then nothing is.
    """
    model = onnx.load(path, load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    major = (re.match(r"\d+", cann or "") or [""])[0]
    used = {
        (node.op_type, node.domain) for graph in walk_graphs(model.graph) for node in graph.node
    }
    return [
        _opset(opset, major, cann),
        *(_operator(name, domain, opset, major) for name, domain in sorted(used)),
    ]


def _opset(opset: int, major: str, cann: str | None) -> Support:
    what = f"opset {opset}"
    if opset >= 19:
        return Support(
            what,
            REFUSED,
            "no version registers a parser for opset 19 or newer: every operator would fail; "
            "export with opset 11 to 18",
        )
    if major not in OPSETS:
        return Support(
            what,
            UNKNOWN,
            f"nothing is known of CANN {cann}" if cann else "the version of CANN is not known",
        )
    allowed = OPSETS[major]
    if opset in allowed:
        return Support(what, FINE, f"CANN {major} reads opset {allowed[0]} to {allowed[-1]}")
    return Support(
        what,
        REFUSED,
        f"CANN {major} reads opset {allowed[0]} to {allowed[-1]}: export with one of those",
    )


def _operator(name: str, domain: str, opset: int, major: str) -> Support:
    if domain not in ("", "ai.onnx"):
        return Support(f"{domain}::{name}", UNKNOWN, "an operator of somebody's own domain")
    if name in NEVER:
        return Support(name, REFUSED, "no version has it: unroll the loop when exporting")
    return Support(name, *_judge(name, opset, major))


def _judge(name: str, opset: int, major: str) -> tuple[str, str]:
    """The word, and why."""
    opsets = REGISTERED.get(name)
    if name in ABSENT_BEFORE_7 and major in ("5", "6"):
        return REFUSED, "absent from the operator list of CANN 5.0.4; not seen in one of 6.0 either"
    if name in LISTED and opset in OPSETS.get(major, ()) and opset in (opsets or [opset]):
        why = "the vendor's lists for 5.0.4 and 8.0 name it"
        return FINE, "; ".join(filter(None, [why, NOTES.get(name)]))
    if opsets is None:
        return UNKNOWN, "the vendor's lists that were read do not name it"
    if opset not in opsets:
        known = ", ".join(map(str, sorted(opsets)))
        return REFUSED, f"registered for opset {known} only, not {opset}"
    if major not in ("8", "9"):
        return UNKNOWN, (
            "registered in today's plugins; the operator list of this version was not read"
        )
    return FINE, "; ".join(filter(None, [f"registered for opset {opset}", NOTES.get(name)]))


def refuse_impossible(found: list[Support]) -> None:
    """Raise ValueError with every refusal; atc would take minutes to say less."""
    refused = [f"{one.what}: {one.why}" for one in found if one.word == REFUSED]
    if refused:
        raise ValueError("this graph cannot be converted: " + "; ".join(refused))
