"""Write a graph anew, its nodes, Casts and constants in the types that were chosen for them."""

import copy
import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from gma_lib.ascend.facts import Facts
from gma_lib.ascend.graphs import NAMES, NARROW, TYPE_ATTRIBUTE, Slot, find_captured
from gma_lib.ascend.ranges import INT32_ENDS, Range, read_attribute

BEYOND_INT64 = np.float32(2**63)


@dataclass
class RewriteReport:
    """What a rewrite changed.

    Attributes
    ----------
    casts_added, casts_removed
        Cast nodes put in at borders, and those that had nothing left to convert.
    clamps_moved
        Casts from float that got the clamp in front which every path behind them passes.
    initializers
        Constants that got a 32-bit copy.
    wide_before, wide_after
        Values of 64-bit type, constants included.
    left
        Each 64-bit value that remains -> why.
    refused
        Node -> why it was left as it is although its operator would allow 32 bits.
    not_compared
        Branches of If that no comparison could reach.
    """

    casts_added: int = 0
    casts_removed: int = 0
    clamps_moved: int = 0
    initializers: int = 0
    wide_before: int = 0
    wide_after: int = 0
    left: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    not_compared: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(
            self.casts_added
            or self.casts_removed
            or self.initializers
            or self.wide_before != self.wide_after
        )

    def sentence(self) -> str:
        if not self.wide_before:
            return "no rewrite needed: the graph holds no int64 and no float64 value."
        text = (
            f"int64 -> int32, float64 -> float32: {self.wide_before} values of 64 bits before, "
            f"{self.wide_after} after; {self.casts_added} casts added, {self.casts_removed} "
            f"removed, {self.initializers} constants converted."
        )
        left = "; ".join(f"{n} x {reason}" for reason, n in Counter(self.left.values()).items())
        text += f" What is left: {left}." if left else ""
        unseen = ", ".join(self.not_compared)
        return text + (f" Not compared: {unseen}." if unseen else "")


@dataclass(eq=False)
class Group:
    """The inputs and outputs of a node that change their type together, or not at all.

    ``refusal``: why they cannot, if so; empty where ONNX forbids it.
    """

    number: int
    node: NodeProto
    slots: list[Slot]
    refusal: str | None

    def __post_init__(self) -> None:
        self.narrow = self.refusal is None


def find_kept(graph: GraphProto) -> set[str]:
    """Values that somebody else reads by their name and type."""
    return {value.name for value in graph.output}.union(
        *(find_captured(node) for node in graph.node)
    )


class Writing:
    """Writes one graph anew, its nodes in the types that were chosen."""

    def __init__(self, known: Facts, groups: list[Group], names: set[str], report: RewriteReport):
        self.known, self.graph, self.names, self.report = known, known.graph, names, report
        self.kept = find_kept(known.graph)
        self.narrow = {
            (group.number, slot.is_input, slot.index): group.narrow
            for group in groups
            for slot in group.slots
        }
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.limits: dict[np.float32, str] = {}
        self.kinds = known.types.new_child()  # by the names that values have by now
        self.other: dict[tuple[str, bool], str] = {}  # (value, 32 bits?) -> its name in that type
        self.same: dict[str, str] = {}  # output of a Cast that is gone -> what it would have copied
        for group in groups:
            if group.refusal:
                label = group.node.name or f"{group.node.op_type} -> {group.node.output[0]}"
                report.refused[label] = group.refusal

    def run(self) -> None:
        for number, node in enumerate(self.graph.node):
            new = copy.deepcopy(node)
            for index, name in enumerate(node.input):
                if (number, True, index) in self.narrow:
                    new.input[index] = self._name(name, narrow=self.narrow[number, True, index])
                new.input[index] = self.same.get(new.input[index], new.input[index])
            restored = [
                (name, self._narrow_output(new, index))
                for index, name in enumerate(node.output)
                if self.narrow.get((number, False, index))
            ]
            if self._copies(new):
                self.same[new.output[0]] = new.input[0]
                self.report.casts_removed += 1
            else:
                self.nodes.append(new)
            for name, narrow in restored:
                if narrow != name:
                    self._cast(narrow, name, self.known.types[name])
        self._replace()

    def _replace(self) -> None:
        """Put what was written in place of the graph's content; unused constants go."""
        graph, nodes = self.graph, self.nodes
        used = self.kept.union(*([*node.input, *find_captured(node)] for node in nodes))
        used |= {value.name for value in graph.input}
        types = {name for node in nodes for name in node.output} - {*self.kinds.maps[0]}
        tensors = [
            *(tensor for tensor in graph.initializer if tensor.name in used),
            *(numpy_helper.from_array(array, name) for name, array in self.constants.items()),
        ]
        declared = [value for value in graph.value_info if value.name in types]
        for content, new in (
            (graph.node, nodes),
            (graph.initializer, tensors),
            (graph.value_info, declared),
        ):
            copies = [type(one).FromString(one.SerializeToString()) for one in new]
            del content[:]
            content.extend(copies)

    def _narrow_output(self, node: NodeProto, index: int) -> str:
        """Let a node compute 32 bits; the name of what it gives."""
        name = node.output[index]
        kind = NARROW[self.known.types[name]]
        if name in self.known.limited:
            node.input[0] = self._limit(node.input[0], self.known.limited[name])
        for attribute in node.attribute:
            if attribute.name == TYPE_ATTRIBUTE.get(node.op_type) == "to":
                attribute.i = kind
            elif attribute.name == TYPE_ATTRIBUTE.get(node.op_type) == "value":
                array = numpy_helper.to_array(attribute.t).astype(NAMES[kind])
                attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
        if name in self.kept:
            node.output[index] = self._fresh(f"{name}_{NAMES[kind]}")
        else:
            self.other[name, False] = ""
        given = self.other[name, True] = str(node.output[index])
        self.kinds[given] = kind
        return given

    def _copies(self, node: NodeProto) -> bool:
        """Whether a node is a Cast to the type that its input has."""
        return (
            node.op_type == "Cast"
            and self.known.is_own(node)
            and node.output[0] not in self.kept
            and read_attribute(node, "to") == self.kinds.get(node.input[0])
        )

    def _name(self, name: str, *, narrow: bool) -> str:
        """What a value is called in this type; made where it does not exist yet."""
        found = self.other.get((name, narrow), "" if narrow else name)
        if not found:
            wide = self.known.types[name]
            kind = NARROW[wide] if narrow else wide
            found = self.other[name, narrow] = self._fresh(f"{name}_{NAMES[kind]}")
            if narrow and name in self.known.constants:
                array = self.known.constants[name]
                if wide == TensorProto.INT64:
                    array = np.clip(array, *INT32_ENDS)  # nothing but ends of slices is beyond
                self.constants[found] = array.astype(NAMES[kind])
                self.report.initializers += 1
            else:
                self._cast(self.other.get((name, not narrow)) or name, found, kind)
        return found

    def _cast(self, source: str, target: str, to: int) -> None:
        self._add("Cast", [self.same.get(source, source)], target, to=to)
        self.kinds[target] = to
        self.report.casts_added += 1

    def _limit(self, name: str, limits: Range) -> str:
        """Clamp a number in front of its Cast, so that 32 bits hold it.

        What is no number, or beyond int64, becomes the smallest: there ONNX leaves the Cast's
        result open, and most processors give the smallest int64.
        """
        low, high, top = (
            self._constant(value) for value in (*map(np.float32, limits.ends), BEYOND_INT64)
        )
        number = self._add("Less", [name, top], self._fresh(f"{name}_is_number"))
        clipped = self._add("Clip", [name, low, high], self._fresh(f"{name}_clipped"))
        self.report.clamps_moved += 1
        return self._add("Where", [number, clipped, low], self._fresh(f"{name}_limited"))

    def _constant(self, value: np.float32) -> str:
        if value not in self.limits:
            self.limits[value] = self._fresh(f"limit_{value:.0f}")
            self.constants[self.limits[value]] = np.asarray(value)
        return self.limits[value]

    def _add(self, operator: str, inputs: list[str], output: str, to: int | None = None) -> str:
        name = self._fresh(f"{output}_{operator.lower()}")
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, to=to))
        return output

    def _fresh(self, wanted: str) -> str:
        candidates = itertools.chain([wanted], (f"{wanted}_{n}" for n in itertools.count(2)))
        name = next(name for name in candidates if name not in self.names)
        self.names.add(name)
        return name
