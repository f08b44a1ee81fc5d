"""Which 64-bit values of a graph become 32-bit ones, and how.

Four steps: what is constant becomes a constant; what each value can be is derived (``facts``);
nodes that can compute in 32 bits do so where that leaves fewer values of 64 bits; the graph is
written anew, with Casts where both meet.
"""

import copy
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from gma_lib.ascend.facts import Facts
from gma_lib.ascend.graphs import (
    NAMES,
    NARROW,
    SCHEMA_NAMES,
    UNKNOWN,
    Slot,
    collect_names,
    find_captured,
    find_wide_values,
    list_bodies,
    list_slots,
    walk_graphs,
)
from gma_lib.ascend.ranges import INT32_ENDS, UNDERSTOOD, Range, list_needs
from gma_lib.ascend.verify import RewriteError, in_a_sentence
from gma_lib.ascend.writing import Group, RewriteReport, Writing, find_kept

# "To the end" is written as the largest or smallest int64; any bound beyond the axis means the
# same, and no axis has 2^31 entries.
SLICE_BOUNDS = (1, 2)


def narrow_model(
    model: ModelProto, *, leave: frozenset[str] = frozenset()
) -> tuple[ModelProto, RewriteReport]:
    """Return the same computation in 32 bits where the values are proven to fit, and what was
    changed.

    ``model`` stays as it is. Operators named in ``leave`` do, too.

    Raises
    ------
    RewriteError
        When the graph is not valid, or of an opset that this onnx does not know.
    """
    source = _normalise(model)
    report = RewriteReport(wide_before=len(find_wide_values(source.graph)))
    result = _fold(source)
    opsets = {entry.domain: entry.version for entry in result.opset_import}
    facts = Facts(result, result.graph, {})
    limited = {} if "Cast" in leave or opsets.get("", 1) < 11 else _find_limits(facts)
    while True:
        facts = Facts(result, result.graph, limited)
        graphs = [(known, _decide(known, opsets, leave)) for known in _walk(facts)]
        narrow = {
            group.slots[0].value
            for _, groups in graphs
            for group in groups
            if group.narrow and not group.slots[0].is_input
        }
        if limited.keys() <= narrow:
            break
        limited = {name: limits for name, limits in limited.items() if name in narrow}
    names = collect_names(result.graph)
    for known, groups in reversed(graphs):  # bodies before the nodes that hold them are copied
        Writing(known, groups, names, report).run()
    result = onnx.shape_inference.infer_shapes(result, strict_mode=False)
    wide = find_wide_values(result.graph)
    for kept, declared in (
        (result.graph.input, model.graph.input),
        (result.graph.output, model.graph.output),
    ):
        del kept[:]  # inference fills in shapes that were left open
        kept.extend(declared)
    report.wide_after = len(wide)
    report.left = _explain_wide_values(result.graph, opsets, wide)
    return result, report


# --- what is constant -----------------------------------------------------------------------------


def _normalise(model: ModelProto) -> ModelProto:
    """A copy with inferred types, in which ONNX's own domain has one name."""
    result = copy.deepcopy(model)
    for entry in result.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
        known = onnx.defs.onnx_opset_version()
        if not entry.domain and entry.version > known:
            raise RewriteError(f"opset {entry.version} is newer than this onnx knows ({known})")
    for node in (node for graph in walk_graphs(result.graph) for node in graph.node):
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    with in_a_sentence("the graph is not valid to begin with"):
        return onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True)


def _walk(facts: Facts) -> Iterator[Facts]:
    yield facts
    for body in facts.bodies:
        yield from _walk(body)


def _fold(model: ModelProto) -> ModelProto:
    """Make initializers of all values that are constant; shapes that follow can make more."""
    while True:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graphs = list(_walk(Facts(model, model.graph, {})))
        if not sum(_fold_graph(known) for known in reversed(graphs)):
            return model


def _fold_graph(known: Facts) -> int:
    graph, constants = known.graph, known.constants.maps[0]
    outputs = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    folded: list[NodeProto] = []
    for node in graph.node:
        made = {*node.output} - {""}
        constant = made and made <= constants.keys() and not made & outputs
        (folded if constant else kept).append(node)
    if folded:
        used = outputs.union(*(find_captured(node) for node in kept))
        living = []
        for node in reversed(kept):
            if used & {*node.output}:
                used |= {*node.input}
                living.append(node)
        new = {name for node in folded for name in node.output} & used - {""}
        tensors = [numpy_helper.from_array(constants[name], name) for name in sorted(new)]
        copies = [copy.deepcopy(node) for node in reversed(living)]
        del graph.node[:]
        graph.node.extend(copies)
        graph.initializer.extend(tensors)
    return len(folded)


# --- what may change, and what should -------------------------------------------------------------


def _find_limits(facts: Facts) -> dict[str, Range]:
    """Casts from float32 to int64 that every path leaves through a clamp: first output -> how far
    the Cast's result matters, rounded outward to what float32 can say.
    """
    graphs = list(_walk(facts))
    made = Counter(name for known in graphs for node in known.graph.node for name in node.output)
    limits = {}
    for known in graphs:
        needs = list_needs(known.graph, known)
        for node in known.graph.node:
            name = node.output[0] if node.output else ""
            cast = node.op_type == "Cast" and known.is_own(node) and made[name] == 1
            low, high = needs.get(name, (-np.inf, np.inf))
            types = cast and (known.types.get(node.input[0]), known.types.get(name))
            if types == (TensorProto.FLOAT, TensorProto.INT64) and (
                INT32_ENDS[0] <= low <= high <= INT32_ENDS[1]
            ):
                found = Range.between(*(int(end) for end in _round_outward(low, high)))
                if found.is_within(INT32_ENDS):
                    limits[name] = found
    return limits


def _round_outward(low: float, high: float) -> tuple[np.float32, np.float32]:
    ends = np.float32(low), np.float32(high)
    return (  # as Python numbers, because numpy would round the other side as well
        ends[0] if float(ends[0]) <= low else np.nextafter(ends[0], np.float32(-np.inf)),
        ends[1] if float(ends[1]) >= high else np.nextafter(ends[1], np.float32(np.inf)),
    )


def _decide(known: Facts, opsets: dict[str, int], leave: frozenset[str]) -> list[Group]:
    """Group the 64-bit slots of a graph, and choose those that become narrow."""
    groups = []
    for number, node in enumerate(known.graph.node):
        mine: dict[object, list[Slot]] = {}
        for slot in list_slots(node, opsets):
            if known.types.get(slot.value, UNKNOWN) in (*NARROW, UNKNOWN):
                mine.setdefault(slot.variable or slot, []).append(slot)
        groups += [
            Group(number, node, slots, _refuse(node, slots, known, leave))
            for slots in mine.values()
        ]
    _choose(groups, known)
    return groups


def _refuse(node: NodeProto, slots: list[Slot], known: Facts, leave: frozenset[str]) -> str | None:
    """Why a node cannot compute in 32 bits here, if so."""
    op = node.op_type
    kinds = {known.types.get(slot.value, UNKNOWN) for slot in slots}
    kind = kinds.pop()
    if kinds or kind not in NARROW or SCHEMA_NAMES[NARROW[kind]] not in slots[0].allowed:
        return ""
    reasons = (
        (op in leave, f"{op} was to be left as it is"),
        (list_bodies(node), f"what {op} shares with its body keeps its type"),
        (
            op not in UNDERSTOOD or not known.is_own(node),
            f"what {op} makes of 32 bits is not known",
        ),
    )
    sizes = (
        _explain_size(slot.value, known)
        for slot in slots
        if not known.fits(slot.value)
        and not (
            # the end of a Slice that means all that follow
            op == "Slice"
            and slot.is_input
            and slot.index in SLICE_BOUNDS
            and slot.value in known.constants
        )
    )
    return next((reason for holds, reason in reasons if holds), None) or next(sizes, None)


def _explain_size(name: str, known: Facts) -> str:
    narrow = NAMES[NARROW[known.types[name]]]
    if name not in known.constants:
        return f"{name} is not known to fit in {narrow}"
    array = known.constants[name]
    with np.errstate(over="ignore"):
        same = array.astype(narrow) == array
    return f"constant {name} holds {array[~same].flat[0]}, which {narrow} cannot"


def _choose(groups: list[Group], known: Facts) -> None:
    """Keep 64 bits wherever 32 would not make values of 64 bits fewer, or the Casts."""
    kept = find_kept(known.graph)
    touching: dict[str, list[Group]] = {}
    for group in groups:
        for slot in group.slots:
            touching.setdefault(slot.value, []).append(group)
    makers = {slot.value: group for group in groups for slot in group.slots if not slot.is_input}

    def cost(name: str) -> tuple[int, int]:
        maker = makers.get(name)
        reads = {group.narrow for group in touching[name] if group is not maker}
        wide_read = name in kept or False in reads
        if name in known.constants:
            return int(wide_read), 0
        narrow = maker is not None and maker.narrow
        return int(not narrow or wide_read), int(wide_read if narrow else True in reads)

    def total(group: Group) -> tuple[int, ...]:
        costs = [cost(name) for name in {slot.value for slot in group.slots}]
        return tuple(map(sum, zip(*costs, strict=True)))

    changed = True
    while changed:
        changed = False
        for group in groups:
            if group.narrow:
                before = total(group)
                group.narrow = False
                group.narrow = total(group) >= before
                changed |= not group.narrow


# --- what is left ---------------------------------------------------------------------------------


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
            bodies = list_bodies(node)
            shared = [value.name for body in bodies for value in [*body.input, *body.output]]
            for name in [*node.input, *node.output, *shared] if bodies else ():
                reasons.setdefault(name, f"what {node.op_type} shares with its body keeps its type")
            for slot in list_slots(node, opsets) if node.op_type != "Cast" else ():
                kind = wide.get(slot.value, UNKNOWN)
                if kind in NARROW and SCHEMA_NAMES[NARROW[kind]] not in slot.allowed:
                    verb = "reads" if slot.is_input else "gives"
                    version = opsets.get(node.domain)
                    reasons.setdefault(
                        slot.value, f"{node.op_type} {verb} {NAMES[kind]} at opset {version}"
                    )
    return {name: reasons.get(name, "refused, see there") for name in wide}
