"""Ranges of whole numbers: what an operator makes of them, and how far its inputs matter.

``derive_range`` goes forward, from what a node reads to what it gives. ``list_needs`` goes
backward: how far a value may be limited without any of its readers noticing.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from gma_lib.ascend.graphs import find_captured

if TYPE_CHECKING:
    from gma_lib.ascend.facts import Facts

Ends = tuple[float, float]  # the smallest and the largest
EVERYTHING: Ends = (-math.inf, math.inf)
INT32_ENDS: Ends = (-(2**31), 2**31 - 1)
FEW = 64  # elements whose ranges are kept one by one, as those of the dimensions that Shape gives

# Operators whose outputs hold elements of these inputs and nothing else.
MADE_OF: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Compress", "DepthToSpace", "Expand", "Flatten", "Gather"), (0,)),
    **dict.fromkeys(("GatherElements", "GatherND", "Identity", "ReduceMax", "ReduceMin"), (0,)),
    **dict.fromkeys(("Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split"), (0,)),
    **dict.fromkeys(("Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze"), (0,)),
    "Concat": (),  # all of them
    "OneHot": (2,),
    "Pad": (0, 2),  # and zero, where no value is given
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Where": (1, 2),
}
# How a value v that passes (v COMPARED WITH w) lies to w: the side, and by how much at least.
COMPARISONS = {
    "Less": (-1, 1),
    "LessOrEqual": (-1, 0),
    "Greater": (1, 1),
    "GreaterOrEqual": (1, 0),
    "Equal": (0, 0),
}


@dataclass(frozen=True)
class Range:
    """The smallest and the largest a whole number can be, as Python integers in arrays that
    broadcast to the value's shape.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def between(cls, low: object, high: object) -> "Range":
        """Make one of numbers or nested lists."""
        return cls(np.asarray(low, object), np.asarray(high, object))

    @property
    def ends(self) -> tuple[int, int]:
        return (int(self.low.min()), int(self.high.max())) if self.low.size else (0, 0)

    def is_within(self, ends: Ends) -> bool:
        return ends[0] <= self.ends[0] and self.ends[1] <= ends[1]


def get_type_range(kind: int) -> Range:
    """What a type of whole numbers can hold; that of int64 for every other type."""
    if kind == TensorProto.BOOL:
        return Range.between(0, 1)
    dtype = helper.tensor_dtype_to_np_dtype(kind) if kind > 0 else np.dtype(np.int64)
    limits = np.iinfo(dtype if dtype.kind in "iu" else np.int64)
    return Range.between(int(limits.min), int(limits.max))


def read_attribute(node: NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute."""
    return next(
        (helper.get_attribute_value(one) for one in node.attribute if one.name == name), default
    )


# --- forward --------------------------------------------------------------------------------------


def derive_range(node: NodeProto, facts: "Facts") -> Range | None:
    """The range of a node's first output, of whole numbers; None where nothing is known."""
    op, source, found = node.op_type, node.input[0] if node.input else "", None
    if op in MADE_OF:
        found = _derive_moved(node, facts)
    elif op in _FROM_SHAPE:
        found = _FROM_SHAPE[op](node, facts.shapes.get(source))
    elif op in _ARITHMETIC:
        found = _ARITHMETIC[op](*(facts.range(name) if name else None for name in node.input))
    elif op == "Cast":
        whole = facts.is_whole(source)
        found = facts.range(source) if whole else facts.limited.get(node.output[0])
    elif op == "ConstantOfShape" and node.attribute:
        found = Range.between(*[int(numpy_helper.to_array(node.attribute[0].t).flat[0])] * 2)
    elif op in ("ReduceSum", "CumSum") and count_elements(facts.shapes.get(source)) < math.inf:
        size = count_elements(facts.shapes.get(source))
        low, high = facts.range(source).ends
        found = Range.between(min(low * size, 0), max(high * size, 0))
    return found


def _hull(ends: Iterable[Ends]) -> Range | None:
    lows, highs = zip(*ends, strict=True)
    return Range.between(min(lows), max(highs))


def _list_data(node: NodeProto) -> list[int]:
    """The inputs of which a node passes on elements; none where it adds them up."""
    plain = read_attribute(node, "reduction", b"none") == b"none"
    indices = MADE_OF[node.op_type] or range(len(node.input))
    return [index for index in indices if plain and index < len(node.input) and node.input[index]]


def _derive_moved(node: NodeProto, facts: "Facts") -> Range | None:
    data = {index: facts.range(node.input[index]).ends for index in _list_data(node)}
    moved = facts.move_ends(node, {node.input[index] for index in data})
    if moved is not None or not data:
        return moved
    ends: list[Ends] = [*data.values()]
    if node.op_type == "Where":
        seen = [_see_branch(node, facts, index, one) for index, one in data.items()]
        ends = [one for one in seen if one[0] <= one[1]] or ends
    if node.op_type == "Pad" and len(data) == 1:
        ends.append((0, 0))
    return _hull(ends)


def _see_branch(node: NodeProto, facts: "Facts", index: int, ends: Ends) -> Ends:
    """Limit what a Where takes from one of its branches by its condition, where that compares the
    same value; the smaller end is then above the larger where nothing is ever taken.
    """
    holds, condition = index == 1, facts.makers.get(node.input[0])
    while condition is not None and condition.op_type == "Not":
        holds, condition = not holds, facts.makers.get(condition.input[0])
    value = node.input[index]
    if condition is None or condition.op_type not in COMPARISONS or value not in condition.input:
        return ends
    side, gap = COMPARISONS[condition.op_type]
    if value == condition.input[1]:
        side, other = -side, condition.input[0]
    else:
        other = condition.input[1]
    if not facts.is_whole(other) or (side == 0 and not holds):
        return ends
    low, high = facts.range(other).ends
    if not holds:
        side, gap = -side, 1 - gap
    return (
        max(ends[0], low + gap) if side >= 0 else ends[0],
        min(ends[1], high - gap) if side <= 0 else ends[1],
    )


def count_elements(shape: list[int | None] | None) -> float:
    """Elements of a shape; infinity where it is not known."""
    return math.inf if shape is None or None in shape else math.prod(dim or 0 for dim in shape)


def _derive_shape(node: NodeProto, shape: list[int | None] | None) -> Range | None:
    if shape is None:
        return Range.between(0, 2**63 - 1)
    ends = {one.name: one.i for one in node.attribute}
    part = slice(ends.get("start"), ends.get("end"))
    return Range.between(
        [dim or 0 for dim in shape[part]],
        [2**63 - 1 if dim is None else dim for dim in shape[part]],
    )


def _derive_position(node: NodeProto, shape: list[int | None] | None) -> Range | None:
    longest = math.inf if shape is None or None in shape else max([1, *filter(None, shape)])
    return Range.between(0, min(longest, 2**63) - 1)


_FROM_SHAPE: dict[str, Callable[[NodeProto, list[int | None] | None], Range | None]] = {
    "Shape": _derive_shape,
    "Size": lambda node, shape: (
        Range.between(*[count_elements(shape)] * 2) if count_elements(shape) < math.inf else None
    ),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero"), _derive_position),
}


def _at_corners(operate: Callable[..., np.ndarray]) -> Callable[[Range, Range], Range]:
    """An operator of two numbers whose extremes lie where its inputs have theirs."""

    def derive(one: Range, other: Range) -> Range:
        corners = [
            np.asarray(operate(a, b), object)
            for a in (one.low, one.high)
            for b in (other.low, other.high)
        ]
        return Range.between(
            functools.reduce(np.minimum, corners), functools.reduce(np.maximum, corners)
        )

    return derive


def _divide(one: Range, other: Range) -> Range | None:
    truncate = np.frompyfunc(
        lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1), 2, 1
    )
    low, high = other.ends
    return None if low <= 0 <= high else _at_corners(truncate)(one, other)


def _clip(value: Range, low: Range | None = None, high: Range | None = None) -> Range:
    for limit, pick in ((low, np.maximum), (high, np.minimum)):
        if limit is not None:
            value = Range.between(pick(value.low, limit.low), pick(value.high, limit.high))
    return value


def _magnitude(one: Range) -> int:
    return max(1, *map(abs, one.ends))


def _reduce_ends(pick: Callable[..., np.ndarray], *ranges: Range) -> Range:
    return Range.between(
        functools.reduce(pick, [one.low for one in ranges]),
        functools.reduce(pick, [one.high for one in ranges]),
    )


_ARITHMETIC: dict[str, Callable[..., Range | None]] = {
    "Add": lambda a, b: Range.between(a.low + b.low, a.high + b.high),
    "Sub": lambda a, b: Range.between(a.low - b.high, a.high - b.low),
    "Mul": _at_corners(lambda a, b: a * b),
    "Div": _divide,
    "Mod": lambda a, b: Range.between(1 - _magnitude(b), _magnitude(b) - 1),
    "Neg": lambda a: Range.between(-a.high, -a.low),
    "Abs": lambda a: Range.between(0, _magnitude(a)),
    "Sign": lambda a: Range.between(-1, 1),
    "Max": functools.partial(_reduce_ends, np.maximum),
    "Min": functools.partial(_reduce_ends, np.minimum),
    "Clip": _clip,
    "Range": lambda start, end, step: _hull([start.ends, end.ends]),
}

# Operators that compute the same in 32 bits, as long as these hold what they read and give.
UNDERSTOOD = {
    *MADE_OF,
    *COMPARISONS,
    *_FROM_SHAPE,
    *_ARITHMETIC,
    *("Cast", "Ceil", "ConstantOfShape", "CumSum", "Floor", "ReduceSum", "Relu", "Round"),
}


# --- backward -------------------------------------------------------------------------------------


def list_needs(graph: GraphProto, facts: "Facts") -> dict[str, Ends]:
    """How far each value of a graph matters: limited to these ends, it gives every reader the same.

    A value behind a clamp matters only as far as the clamp lets it through; one that is compared,
    only up to just beyond what it is compared with.
    """
    needs = {value.name: EVERYTHING for value in graph.output}
    for node in reversed(graph.node):
        outputs = [needs.get(name, (math.inf, -math.inf)) for name in node.output]
        given = min(low for low, _ in outputs), max(high for _, high in outputs)
        if given[0] > given[1] or not facts.is_own(node):
            given = EVERYTHING
        for index, name in enumerate(node.input):
            low, high = _need_of_input(node, index, given, facts)
            known = needs.get(name, (low, high))
            needs[name] = (min(low, known[0]), max(high, known[1])) if low <= high else EVERYTHING
        needs |= dict.fromkeys(find_captured(node), EVERYTHING)
    return needs


def _need_of_input(node: NodeProto, index: int, given: Ends, facts: "Facts") -> Ends:
    """How far an input matters, where the first output matters as far as ``given``."""
    (low, high), op, need = given, node.op_type, EVERYTHING
    others = [facts.range(name).ends for at, name in enumerate(node.input) if name and at != index]
    if not facts.is_own(node) or not facts.is_whole(node.input[index]):
        pass
    elif op == "Where" and index:
        seen = _see_branch(node, facts, index, given)
        need = seen if seen[0] <= seen[1] else given
    elif op in MADE_OF and op not in ("TopK", "Where") and index in _list_data(node):
        need = given
    elif op in COMPARISONS:
        need = others[0][0] - 1, others[0][1] + 1
    elif op in ("Add", "Sub") and INT32_ENDS[0] <= low and high <= INT32_ENDS[1]:
        smallest, largest = others[0]
        need = {
            ("Add", 0): (low - largest, high - smallest),
            ("Add", 1): (low - largest, high - smallest),
            ("Sub", 0): (low + smallest, high + largest),
            ("Sub", 1): (smallest - high, largest - low),
        }[op, index]
    elif op == "Max":
        need = max([low, *(other[0] for other in others)]), high
    elif op == "Min":
        need = low, min([high, *(other[1] for other in others)])
    elif op == "Clip" and index == 0:
        limits = [facts.range(name).ends if name else EVERYTHING for name in node.input[1:]]
        lows, highs = [*limits, EVERYTHING, EVERYTHING][:2]
        need = max(low, lows[0]), min(high, highs[1])
    return need
