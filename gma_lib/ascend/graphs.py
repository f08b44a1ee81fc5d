"""Walking through ONNX graphs and the bodies of If, Loop and Scan within them."""

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, defs

NARROW: dict[int, int] = {
    TensorProto.INT64: TensorProto.INT32,
    TensorProto.DOUBLE: TensorProto.FLOAT,
}
UNKNOWN = TensorProto.UNDEFINED
OTHER = -1  # sequences, optionals, maps and sparse tensors
NAMES: dict[int, str] = {
    UNKNOWN: "an unknown type",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT: "float32",
}
SCHEMA_NAMES: dict[int, str] = {
    TensorProto.INT64: "tensor(int64)",
    TensorProto.INT32: "tensor(int32)",
    TensorProto.DOUBLE: "tensor(double)",
    TensorProto.FLOAT: "tensor(float)",
}
# Outputs whose type an attribute decides, and which attribute; any other such operator is left as
# it is.
TYPE_ATTRIBUTE = {"Cast": "to", "ConstantOfShape": "value"}


@dataclass(frozen=True)
class Slot:
    """An input or output of a node.

    Attributes
    ----------
    is_input, index
        Where it is.
    value
        Name of the value there.
    variable
        Type variable of the operator's schema; None where the type is fixed or no schema is known.
    allowed
        Types that the schema allows for the variable.
    """

    is_input: bool
    index: int
    value: str
    variable: str | None = None
    allowed: frozenset[str] = frozenset()


def list_slots(node: NodeProto, opsets: dict[str, int]) -> list[Slot]:
    """List the inputs and outputs of a node that are there; no variables for operators without a
    schema.
    """
    places = [
        (is_input, index, value)
        for is_input, values in ((True, node.input), (False, node.output))
        for index, value in enumerate(values)
        if value
    ]
    plain = [Slot(*place) for place in places]
    try:
        schema = defs.get_schema(
            node.op_type, max_inclusive_version=opsets[node.domain], domain=node.domain
        )
    except (defs.SchemaError, KeyError):
        return plain
    constraints = {
        constraint.type_param_str: frozenset(constraint.allowed_type_strs)
        for constraint in schema.type_constraints
    }
    slots = []
    for is_input, index, value in places:
        formals = schema.inputs if is_input else schema.outputs
        variable = formals[min(index, len(formals) - 1)].type_str
        known = (variable, constraints[variable]) if variable in constraints else ()
        slots.append(Slot(is_input, index, value, *known))
    read = {slot.variable for slot in slots if slot.is_input}
    wide = {SCHEMA_NAMES[kind] for kind in NARROW}
    decided_elsewhere = any(
        not slot.is_input and slot.variable not in read and wide & slot.allowed for slot in slots
    )
    return plain if decided_elsewhere and node.op_type not in TYPE_ATTRIBUTE else slots


def walk_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield the graph and every body within it."""
    yield graph
    for node in graph.node:
        for body in list_bodies(node):
            yield from walk_graphs(body)


def list_bodies(node: NodeProto) -> list[GraphProto]:
    """List the graphs that a node of control flow runs."""
    return [
        body
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs)
    ]


def find_captured(node: NodeProto) -> set[str]:
    """Find the names that the bodies of a node may read from outside."""
    graphs = [graph for body in list_bodies(node) for graph in walk_graphs(body)]
    read = {name for graph in graphs for part in graph.node for name in part.input if name}
    return read | {value.name for graph in graphs for value in graph.output}


def collect_names(graph: GraphProto) -> set[str]:
    """Collect every name in a graph and its bodies."""
    names: set[str] = set()
    for part in walk_graphs(graph):
        names |= {name for node in part.node for name in [node.name, *node.input, *node.output]}
        names |= set(read_value_types(part))
    return names


def read_value_types(graph: GraphProto) -> dict[str, int]:
    """Map each value that is declared to the type of its elements, or to OTHER."""
    types = {
        value.name: value.type.tensor_type.elem_type
        if value.type.HasField("tensor_type")
        else OTHER
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.WhichOneof("value")
    }
    return (
        types
        | {tensor.name: tensor.data_type for tensor in graph.initializer}
        | {tensor.values.name: OTHER for tensor in graph.sparse_initializer}
    )


def find_wide_values(graph: GraphProto) -> dict[str, int]:
    """Map each value of 64 bits, computed or constant, to its type; an unknown type counts."""
    types: dict[str, int] = {}
    used: set[str] = set()
    for part in walk_graphs(graph):
        types |= read_value_types(part)
        used |= {name for node in part.node for name in [*node.input, *node.output] if name}
    kinds = {name: types.get(name, UNKNOWN) for name in used}
    return {name: kind for name, kind in kinds.items() if kind in NARROW or kind == UNKNOWN}
