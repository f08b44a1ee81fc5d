"""What an exported file holds: its operators, and the work of each part of the network."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

PART_OF_MODULE = {
    "fnet": "feature encoder",
    "cnet": "context encoder",
    "att": "attention",
    "update_block/encoder": "motion encoder",
    "update_block/aggregator": "aggregation",
    "update_block/gru": "GRU",
    "context1": "GRU's context",  # computed once, before the updates (gma_lib.network.deploy)
    "context2": "GRU's context",
    "update_block/flow_head": "flow head",
    "mask": "upsampling weights",
}
REST = "everything else"  # coordinates, upsampling, what lies between the parts


def count_operators(path: Path) -> dict[str, int]:
    """Count the nodes of each operator, most frequent first."""
    return dict(Counter(node.op_type for node in onnx.load(path).graph.node).most_common())


def fold_operators(operators: Mapping[str, int], most: int = 8) -> dict[str, int]:
    """Keep the first operators, and gathers and casts, which accelerators handle badly; the rest
    becomes one entry, ``N others``.
    """
    shown = {name: operators[name] for name in [*operators][:most]}
    awkward = ("Gather", "Cast")
    shown |= {name: count for name, count in operators.items() if name.startswith(awkward)}
    hidden = len(operators) - len(shown)
    rest = sum(operators.values()) - sum(shown.values())
    return shown | ({f"{hidden} others": rest} if hidden else {})


def count_work(path: Path) -> dict[str, float]:
    """Count the multiply-accumulates of one call, in units of 1e9, by part of the network.

    Counted from the file's shapes. Convolutions and matrix products only; the rest is below one
    percent.
    """
    work: dict[str, float] = {}
    for _, part, gmac in _walk_nodes(path):
        if gmac:
            work[part] = work.get(part, 0) + gmac
    return work


def map_nodes_to_parts(path: Path) -> dict[str, str]:
    """Map the name of every node of an exported file to the part of the network it belongs to."""
    return {name: part for name, part, _ in _walk_nodes(path)}


def _walk_nodes(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yield name, part, and multiply-accumulates in units of 1e9 of every node."""
    graph = onnx.load(path).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in itertools.chain(graph.input, graph.value_info, graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    batch_size = shapes[graph.input[0].name][0]
    for node in graph.node:
        contracted = 0
        if node.op_type == "Conv":
            contracted = int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type == "MatMul":
            contracted = shapes[node.input[0]][-1]
        gmac = int(np.prod(shapes[node.output[0]])) * contracted / 1e9
        part = _find_module(node)
        if part is None and contracted:
            # all pairs are one product per pair of frames, the lookup is one per cell
            part = "correlation" if shapes[node.output[0]][0] == batch_size else "lookup"
        yield node.name, part or REST, gmac


def _find_module(node: onnx.NodeProto) -> str | None:
    scope = node.name.strip("/")
    for prefix, name in PART_OF_MODULE.items():
        # later calls of a module get a number: aggregator_3
        if scope.startswith((f"{prefix}/", f"{prefix}_")):
            return name
    return None
