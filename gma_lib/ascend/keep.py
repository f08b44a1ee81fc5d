"""What stays float32 when ``atc`` computes in float16: choices of nodes, and the lines of keep.cfg
that name them.
"""

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto

from gma_lib.ascend.atc import AtcOptions
from gma_lib.runs import PRECISION_NAMES, read_back_precision


def is_instance_norm(node: NodeProto) -> bool:
    """What the guide's keep.cfg keeps."""
    return node.op_type == "InstanceNormalization"


def is_outside_modules(node: NodeProto) -> bool:
    """Nodes outside modules: flow and coordinates, correlation and its lookup, upsampling."""
    return "/" not in node.name.strip("/")


def is_norm_or_coordinate(node: NodeProto) -> bool:
    """What ``gma_lib.perf.half_precision`` finds worth keeping: the distance from float32 flow
    falls fourteenfold.

    Of what is outside the modules not the products, all pairs and the lookup's: kept, they change
    nothing, because the next node rounds their result.
    """
    is_product = node.op_type == "MatMul"
    return is_instance_norm(node) or (is_outside_modules(node) and not is_product)


CHOICES: dict[str, Callable[[NodeProto], bool]] = {
    "guide": is_instance_norm,
    "coordinates": is_norm_or_coordinate,
}


def select_kept(model: ModelProto, keep: Callable[[NodeProto], bool]) -> tuple[str, ...]:
    """Select the lines of keep.cfg: the type for InstanceNorm, the name for every other node."""
    names = [node.name for node in model.graph.node if keep(node) and not is_instance_norm(node)]
    return (
        ("OpType::InstanceNorm",)
        if any(keep(node) and is_instance_norm(node) for node in model.graph.node)
        else ()
    ) + tuple(names)


def read_keep_lines(path: Path, choice: str) -> tuple[str, ...]:
    """Make the lines for a file; an unknown choice lists the known ones."""
    if choice not in CHOICES:
        raise ValueError(f"KEEP is one of {', '.join(CHOICES)}, not {choice!r}")
    return select_kept(onnx.load(path, load_external_data=False), CHOICES[choice])


def choose_options(
    soc: str, precision: str, source: Path, keep: str | None = None, mode_v2: str | None = None
) -> AtcOptions:
    """Choose what atc is told for a precision: for float16 the guide's flags, with ``keep`` in
    float32 (a key of ``CHOICES``; None: as in the guide).

    Parameters
    ----------
    mode_v2
        Given as ``precision_mode_v2`` instead; ValueError where that is of another precision.
    """
    mode = None if mode_v2 else PRECISION_NAMES["atc"][precision]
    if (found := read_back_precision(mode, mode_v2)) != precision:
        raise ValueError(f"precision_mode_v2={mode_v2} computes in {found}, not in {precision}")
    kept = read_keep_lines(source, keep or "guide") if precision == "float16" else ()
    return AtcOptions(soc, precision_mode=mode, precision_mode_v2=mode_v2, keep_dtype=kept)


def describe_kept(lines: list[str] | tuple[str, ...]) -> str:
    """Describe the lines in a few words: ``InstanceNorm and 700 nodes by name``."""
    types = [line.removeprefix("OpType::") for line in lines if line.startswith("OpType::")]
    nodes = len(lines) - len(types)
    return " and ".join([*types, *([f"{nodes} nodes by name"] if nodes else [])])
