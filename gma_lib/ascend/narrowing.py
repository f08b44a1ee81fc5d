"""How 64-bit values of a graph become 32-bit ones."""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from gma_lib.ascend.graphs import (
    NAMES,
    NARROW,
    SCHEMA_NAMES,
    TYPE_ATTRIBUTE,
    Slot,
    collect_names,
    count_nodes,
    find_captured,
    find_wide_values,
    list_bodies,
    list_slots,
    read_value_types,
    turn_constants_into_initializers,
    walk_graphs,
)
from gma_lib.ascend.verify import RewriteError, get_first_line

# "To the end" is written as the largest or smallest int64; any bound beyond the axis means the
# same.
SLICE_BOUNDS = (1, 2)


@dataclass
class RewriteReport:
    """What a rewrite changed.

    Attributes
    ----------
    nodes_before, nodes_after
        Number of nodes, bodies of If, Loop and Scan included.
    casts_added, casts_removed
        Cast nodes put in at borders, and those that had nothing left to convert.
    initializers
        Constants that got a 32-bit copy.
    wide_before, wide_after
        Values of 64-bit type, constants included.
    left
        Each 64-bit value that remains -> why.
    refused
        Node -> why it was left as it is although its operator would allow 32 bits.
    """

    nodes_before: int = 0
    nodes_after: int = 0
    casts_added: int = 0
    casts_removed: int = 0
    initializers: int = 0
    wide_before: int = 0
    wide_after: int = 0
    left: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return bool(
            self.casts_added
            or self.casts_removed
            or self.initializers
            or self.wide_before != self.wide_after
        )

    def to_sentence(self) -> str:
        if not self.wide_before:
            return "no rewrite needed: the graph holds no int64 and no float64 value."
        text = (
            f"int64 -> int32, float64 -> float32: {self.wide_before} values of 64 bits before, "
            f"{self.wide_after} after; {self.casts_added} casts added, {self.casts_removed} "
            f"removed, {self.initializers} constants converted."
        )
        left = "; ".join(f"{n} x {reason}" for reason, n in Counter(self.left.values()).items())
        return f"{text} What is left: {left}." if left else text


def narrow_model(
    model: ModelProto, *, leave: frozenset[str] = frozenset()
) -> tuple[ModelProto, RewriteReport]:
    """Return the same computation in 32 bits where the schemas allow it, and what was changed.

    ``model`` stays as it is.
    """
    try:
        result = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise RewriteError(
            f"the graph is not valid to begin with: {get_first_line(error)}"
        ) from error
    report = RewriteReport(
        nodes_before=count_nodes(result.graph), wide_before=len(find_wide_values(result.graph))
    )
    opsets = {entry.domain: entry.version for entry in result.opset_import}
    names = collect_names(result.graph)
    _Narrowing(result.graph, opsets, {}, names, leave, report).run()
    result = onnx.shape_inference.infer_shapes(result, strict_mode=False)
    wide = find_wide_values(result.graph)
    for kept, declared in (
        (result.graph.input, model.graph.input),
        (result.graph.output, model.graph.output),
    ):
        del kept[:]  # inference fills in shapes that were left open
        kept.extend(declared)
    report.nodes_after, report.wide_after = count_nodes(result.graph), len(wide)
    report.left = {
        name: report.left.get(name, reason)
        for name, reason in _explain_wide_values(result.graph, opsets, wide).items()
    }
    return result, report


class _Narrowing:
    """Narrows one graph: decides slot by slot, then writes the nodes anew.

    Bodies of control flow are narrowed first, each by itself.
    """

    def __init__(
        self,
        graph: GraphProto,
        opsets: dict[str, int],
        outer_types: dict[str, int],
        names: set[str],
        leave: frozenset[str],
        report: RewriteReport,
    ):
        self.graph, self.opsets, self.names = graph, opsets, names
        self.leave, self.report = leave, report
        turn_constants_into_initializers(graph)
        self.types = outer_types | read_value_types(graph)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.kept = {value.name for value in graph.output} | set().union(
            *(find_captured(node) for node in graph.node)
        )
        self.wants: dict[tuple[int, int], bool] = {}  # (node, input) -> reads 32 bits
        self.gives: dict[str, bool] = {}  # value -> its node computes 32 bits

    def run(self) -> None:
        for node in self.graph.node:
            for body in list_bodies(node):
                _Narrowing(body, self.opsets, self.types, self.names, self.leave, self.report).run()
        for number, node in enumerate(self.graph.node):
            self._decide(number, node)
        self._decide_casts()
        self._write()

    def _decide(self, number: int, node: NodeProto) -> None:
        """All slots of one type variable change together, or none does."""
        slots = [slot for slot in list_slots(node, self.opsets) if slot.value]
        flexible: dict[str | None, bool] = {}
        for variable, allowed in {slot.variable: slot.allowed for slot in slots}.items():
            mine = [slot for slot in slots if slot.variable == variable]
            wide = {kind for slot in mine if (kind := self.types.get(slot.value)) in NARROW}
            # a variadic input that may mix types, as of Loop, has more than one type here
            flexible[variable] = (
                len(wide) == 1
                and SCHEMA_NAMES[NARROW[wide.pop()]] in allowed
                and self._allows(node, mine)
            )
        for slot in slots:
            if self.types.get(slot.value) not in NARROW:
                continue
            if slot.is_input:
                self.wants[number, slot.index] = flexible[slot.variable]
            else:
                self.gives[slot.value] = flexible[slot.variable]

    def _allows(self, node: NodeProto, slots: list[Slot]) -> bool:
        """Whether nothing but the schema decides; notes the reason where there is one."""
        label = node.name or f"{node.op_type} -> {node.output[0]}"
        if node.op_type in self.leave:
            self.report.refused[label] = f"{node.op_type} was to be left as it is"
            return False
        if list_bodies(node):
            self.report.refused[label] = f"what {node.op_type} shares with its body keeps its type"
            return False
        for slot in slots:
            clipped = node.op_type == "Slice" and slot.index in SLICE_BOUNDS
            if slot.is_input and slot.value in self.constants and not clipped:
                why = _explain_overflow(numpy_helper.to_array(self.constants[slot.value]))
                if why:
                    self.report.refused[label] = f"constant {slot.value} {why}"
                    return False
        return True

    def _decide_casts(self) -> None:
        """A Cast reads whatever is there, and computes 32 bits where somebody wants them."""
        readers: dict[str, list[tuple[NodeProto, tuple[int, int]]]] = {}
        for number, node in enumerate(self.graph.node):
            for index, name in enumerate(node.input):
                readers.setdefault(name, []).append((node, (number, index)))
        for number, node in enumerate(self.graph.node):
            if node.op_type != "Cast" or node.domain or "Cast" in self.leave:
                continue
            source, result = node.input[0], node.output[0]
            if (number, 0) in self.wants:
                self.wants[number, 0] = self.gives.get(
                    source, source in self.constants and source not in self.inputs
                )
            if self.gives.get(result):
                self.gives[result] = any(
                    reader.op_type != "Cast" and self.wants.get(slot)
                    for reader, slot in readers.get(result, [])
                )

    def _write(self) -> None:
        old = list(self.graph.node)
        self.nodes: list[NodeProto] = []
        self.made: dict[tuple[str, bool], str] = {}  # (value, 32 bits?) -> the name it has
        self.same: dict[str, str] = {}  # output of a Cast that is gone -> what it would have copied
        for name in self.types:
            self.made[name, self.gives.get(name, False) and name not in self.kept] = name
        for number, node in enumerate(old):
            new = NodeProto()
            new.CopyFrom(node)
            for index, name in enumerate(node.input):
                if (number, index) in self.wants:
                    clip = node.op_type == "Slice" and index in SLICE_BOUNDS
                    new.input[index] = self._name(name, self.wants[number, index], clip=clip)
                new.input[index] = self.same.get(new.input[index], new.input[index])
            self._outputs(node, new, reads_narrow=self.wants.get((number, 0), False))
        used = {
            name for node in self.nodes for name in [*node.input, *find_captured(node)]
        } | self.kept
        constants = [
            tensor
            for tensor in self.graph.initializer
            if tensor.name in used or tensor.name in self.inputs
        ]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(constants)

    def _outputs(self, node: NodeProto, new: NodeProto, *, reads_narrow: bool) -> None:
        restored = []
        for index, name in enumerate(node.output):
            if name and self.gives.get(name):
                narrow = NARROW[self.types[name]]
                self._set_type_attribute(new, narrow)
                if name in self.kept:
                    new.output[index] = self.made[name, True] = self._fresh(
                        f"{name}_{NAMES[narrow]}"
                    )
                    restored.append(name)
        is_cast = node.op_type == "Cast" and not node.domain and new.output[0] not in self.kept
        read = self.types.get(node.input[0]) if node.input else None
        if is_cast and [one.i for one in new.attribute if one.name == "to"] == [
            NARROW[read] if read and reads_narrow else read
        ]:
            self.same[new.output[0]] = new.input[0]
            self.report.casts_removed += 1
        else:
            self.nodes.append(new)
        for name in restored:
            self._cast(self.made[name, True], name, self.types[name])

    def _set_type_attribute(self, node: NodeProto, narrow: int) -> None:
        wanted = TYPE_ATTRIBUTE.get(node.op_type)
        for attribute in node.attribute if wanted and not node.domain else ():
            if attribute.name == "to" == wanted:
                attribute.i = narrow
            elif attribute.name == "value" == wanted:
                value = numpy_helper.to_array(attribute.t).astype(
                    helper.tensor_dtype_to_np_dtype(narrow)
                )
                attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))

    def _name(self, name: str, narrow: bool, *, clip: bool) -> str:
        """What the value is called in this type; made where it does not exist yet."""
        if (name, narrow) not in self.made:
            wide = self.types[name]
            target = NARROW[wide] if narrow else wide
            fresh = self.made[name, narrow] = self._fresh(f"{name}_{NAMES[target]}")
            if narrow and name in self.constants and name not in self.inputs:
                array = numpy_helper.to_array(self.constants[name])
                if clip:
                    limits = np.iinfo(np.int32)
                    array = np.clip(array, limits.min, limits.max)
                self.graph.initializer.append(
                    numpy_helper.from_array(
                        array.astype(helper.tensor_dtype_to_np_dtype(target)), fresh
                    )
                )
                self.report.initializers += 1
            else:
                self._cast(self.made[name, not narrow], fresh, target)
        return self.made[name, narrow]

    def _cast(self, source: str, target: str, to: int) -> None:
        source = self.same.get(source, source)
        self.nodes.append(
            helper.make_node("Cast", [source], [target], name=self._fresh(f"{target}_cast"), to=to)
        )
        self.report.casts_added += 1

    def _fresh(self, wanted: str) -> str:
        name = next(
            name
            for name in itertools.chain([wanted], (f"{wanted}_{n}" for n in itertools.count(2)))
            if name not in self.names
        )
        self.names.add(name)
        return name


def _explain_overflow(array: np.ndarray) -> str | None:
    """Why 32 bits cannot hold a constant."""
    if array.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        outside = array[(array < limits.min) | (array > limits.max)]
        return f"holds {outside.flat[0]}, which int32 cannot" if outside.size else None
    outside = array[np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)]
    return f"holds {outside.flat[0]}, which float32 cannot" if outside.size else None


def _explain_wide_values(
    graph: GraphProto, opsets: dict[str, int], wide: dict[str, int]
) -> dict[str, str]:
    """Why each 64-bit value is still there."""
    reasons = {
        value.name: "input or output of the graph"
        for value in [*graph.input, *graph.output]
        if value.name in wide
    }
    for part in walk_graphs(graph):
        for node in part.node:
            shared = {*node.input, *node.output} | {
                value.name for body in list_bodies(node) for value in [*body.input, *body.output]
            }
            for name in shared & set(wide) if list_bodies(node) else ():
                reasons.setdefault(name, f"what {node.op_type} shares with its body keeps its type")
            for slot in list_slots(node, opsets) if node.op_type != "Cast" else ():
                kind = wide.get(slot.value)
                if kind and SCHEMA_NAMES[NARROW[kind]] not in slot.allowed:
                    verb = "reads" if slot.is_input else "gives"
                    version = opsets.get(node.domain)
                    reasons.setdefault(
                        slot.value, f"{node.op_type} {verb} {NAMES[kind]} at opset {version}"
                    )
    return {name: reasons.get(name, "refused, see there") for name in wide}
