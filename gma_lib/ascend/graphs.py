"""Walking through ONNX graphs and the bodies of If, Loop and Scan within them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, defs, helper, numpy_helper

NARROW: dict[int, int] = {
    TensorProto.INT64: TensorProto.INT32,
    TensorProto.DOUBLE: TensorProto.FLOAT,
}
NAMES: dict[int, str] = {
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
        Name of the value there; empty where an optional one is left out.
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
    """List every input and output of a node; no variables for operators without a schema."""
    places = [
        *((True, index, value) for index, value in enumerate(node.input)),
        *((False, index, value) for index, value in enumerate(node.output)),
    ]
    try:
        schema = defs.get_schema(
            node.op_type, max_inclusive_version=opsets[node.domain], domain=node.domain
        )
    except (defs.SchemaError, KeyError):
        return [Slot(*place) for place in places]
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
    if decided_elsewhere and node.op_type not in TYPE_ATTRIBUTE:
        return [Slot(*place) for place in places]
    return slots


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
    read: set[str] = set()
    for body in list_bodies(node):
        for graph in walk_graphs(body):
            read |= {name for inner in graph.node for name in inner.input if name} | {
                value.name for value in graph.output
            }
    return read


def collect_names(graph: GraphProto) -> set[str]:
    """Collect every name in a graph and its bodies."""
    names: set[str] = set()
    for part in walk_graphs(graph):
        names |= {name for node in part.node for name in [node.name, *node.input, *node.output]}
        names |= set(read_value_types(part))
    return names


def count_nodes(graph: GraphProto) -> int:
    """Count the nodes of a graph and its bodies, constants left out."""
    return sum(1 for part in walk_graphs(graph) for node in part.node if node.op_type != "Constant")


def read_value_types(graph: GraphProto) -> dict[str, int]:
    """Map each value with a known type to it."""
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in itertools.chain(graph.input, graph.value_info, graph.output)
        if value.type.HasField("tensor_type")
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def find_wide_values(graph: GraphProto) -> dict[str, int]:
    """Map each 64-bit value, computed or constant, to its type."""
    wide = {
        name: kind
        for part in walk_graphs(graph)
        for name, kind in read_value_types(part).items()
        if kind in NARROW
    }
    used = {
        name
        for part in walk_graphs(graph)
        for node in part.node
        for name in [*node.input, *node.output]
    }
    return {name: kind for name, kind in wide.items() if name in used}


def turn_constants_into_initializers(graph: GraphProto) -> None:
    """Put what Constant nodes hold among the initializers, where constants are looked for."""
    kept = []
    for node in graph.node:
        tensor = _read_constant(node)
        if tensor is None or node.output[0] in {value.name for value in graph.output}:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(tensor, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def _read_constant(node: NodeProto) -> np.ndarray | None:
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    numbers = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    return (
        np.array(helper.get_attribute_value(attribute), numbers[attribute.name])
        if attribute.name in numbers
        else None
    )
