"""ONNX to ONNX: 64-bit numbers become 32-bit ones, wherever the operators allow it.

Accelerators have no int64 and no float64; Ascend's older compilers refuse graphs that use them.
What an operator allows is read from its schema at the model's own opset. Inputs and outputs of the
graph keep their types, a Cast stands only at a border and is shared, and a constant that 32 bits
cannot hold is never clipped: what uses it stays as it is, with a reason.
"""

import itertools
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    defs,
    helper,
    numpy_helper,
)

from gma_lib.runs.files import write_atomically
from gma_lib.runs.progress import show_messages

NARROW = {TensorProto.INT64: TensorProto.INT32, TensorProto.DOUBLE: TensorProto.FLOAT}
NAMES = {
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT: "float32",
}
SCHEMA_NAMES = {
    TensorProto.INT64: "tensor(int64)",
    TensorProto.INT32: "tensor(int32)",
    TensorProto.DOUBLE: "tensor(double)",
    TensorProto.FLOAT: "tensor(float)",
}
# Outputs whose type an attribute decides, and which attribute; any other such operator is left as
# it is.
TYPE_ATTRIBUTE = {"Cast": "to", "ConstantOfShape": "value"}
# "To the end" is written as the largest or smallest int64; any bound beyond the axis means the
# same.
SLICE_BOUNDS = (1, 2)


class RewriteError(RuntimeError):
    """The rewritten graph is not what it has to be; nothing was written."""


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

    def sentence(self) -> str:
        if not self.wide_before:
            return "no rewrite needed: the graph holds no int64 and no float64 value."
        text = (
            f"int64 -> int32, float64 -> float32: {self.wide_before} values of 64 bits before, {self.wide_after} after; "
            f"{self.casts_added} casts added, {self.casts_removed} removed, {self.initializers} constants converted."
        )
        reasons = Counter(self.left.values())
        return text + (
            f" What is left: {'; '.join(f'{count} x {reason}' for reason, count in reasons.items())}."
            if reasons
            else ""
        )


def rewrite_file(
    source: Path,
    target: Path,
    *,
    feeds: dict[str, np.ndarray] | None = None,
    leave: frozenset[str] = frozenset(),
    largest_batch: int | None = None,
) -> RewriteReport:
    """Rewrite a file and verify the result before it gets its name.

    Parameters
    ----------
    feeds
        Inputs to compare both graphs with; random ones when None, which needs fixed input shapes.
    leave
        Operators to leave as they are, for runtimes that lack a kernel that the schema promises.
    largest_batch
        Run both graphs with this batch size at most, because that of a card may not fit in this
        machine's memory. Only for graphs whose first dimension is the batch and is mentioned by
        inputs and outputs alone, as those of ``gma_lib.export.trace``.

    Raises
    ------
    RewriteError
        When the result is invalid, does not load, or computes something else. ``target`` is then
        not written.
    """
    before = onnx.load(source)
    after, report = narrowed(before, leave=leave)
    if report.changed:
        verify(before, after, feeds=feeds, largest_batch=largest_batch)
    with write_atomically(target) as partial:
        onnx.save(after, partial)
    return report


def rewrite_where_needed(source: Path, target: Path, *, largest_batch: int | None = None) -> str:
    """As ``rewrite_file`` where a node computes 64-bit numbers, else a copy; what was done, in a
    sentence.
    """
    if computes_wide(source):
        return rewrite_file(source, target, largest_batch=largest_batch).sentence()
    with write_atomically(target) as partial:
        shutil.copyfile(source, partial)
    return "no rewrite needed: the graph computes no int64 and no float64 value."


def rewrite_with_vendor_tool(
    source: Path,
    target: Path,
    *,
    python: str = "python3",
    feeds: dict[str, np.ndarray] | None = None,
    timeout_s: float = 3600,
) -> None:
    """Ask ``auto_optimizer`` for its KnowledgeTypeCast (``-k 4``, as in the guide), and believe
    none of it before it is verified.

    The tool answers with exit code 0 when it did nothing, when it failed inside, and when what it
    wrote is not valid.

    Raises
    ------
    RewriteError
        When it is not installed, wrote nothing, or its result is not the same computation.
        ``target`` is then not written.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.onnx"
        command = [
            python,
            "-m",
            "auto_optimizer",
            "optimize",
            str(Path(source).absolute()),
            str(made),
            "-k",
            "4",
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, timeout=timeout_s
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RewriteError(
                f"auto_optimizer did not run ({type(error).__name__}: {error})"
            ) from error
        if not made.is_file():
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise RewriteError(
                f"auto_optimizer wrote nothing (exit code {done.returncode}): {said[-1] if said else 'and said nothing'}"
            )
        verify(onnx.load(source), onnx.load(made), feeds=feeds)
        with write_atomically(target) as partial:
            shutil.copyfile(made, partial)


def narrowed(
    model: ModelProto, *, leave: frozenset[str] = frozenset()
) -> tuple[ModelProto, RewriteReport]:
    """The same computation in 32 bits where the schemas allow it, and what was done. ``model``
    stays as it is.
    """
    try:
        result = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise RewriteError(f"the graph is not valid to begin with: {_first_line(error)}") from error
    report = RewriteReport(
        nodes_before=_count_nodes(result.graph), wide_before=len(_wide_values(result.graph))
    )
    opsets = {entry.domain: entry.version for entry in result.opset_import}
    names = _all_names(result.graph)
    _Narrowing(result.graph, opsets, {}, names, leave, report).run()
    result = onnx.shape_inference.infer_shapes(result, strict_mode=False)
    wide = _wide_values(result.graph)
    for kept, declared in (
        (result.graph.input, model.graph.input),
        (result.graph.output, model.graph.output),
    ):
        del kept[:]  # inference fills in shapes that were left open
        kept.extend(declared)
    report.nodes_after, report.wide_after = _count_nodes(result.graph), len(wide)
    report.left = {
        name: report.left.get(name, reason)
        for name, reason in _reasons(result.graph, opsets, wide).items()
    }
    return result, report


def verify(
    before: ModelProto,
    after: ModelProto,
    *,
    feeds: dict[str, np.ndarray] | None = None,
    largest_batch: int | None = None,
) -> None:
    """Raise ``RewriteError`` unless ``after`` is valid, loads in ONNX Runtime, keeps its inputs and
    outputs, and computes the same numbers.

    ``largest_batch`` as for ``rewrite_file``.
    """
    import onnxruntime

    try:
        onnx.checker.check_model(after, full_check=True)
        onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RewriteError(
            f"the rewritten graph is not valid ONNX: {_first_line(error)}"
        ) from error
    for label in ("input", "output"):
        kept, wanted = (
            [(value.name, value.type) for value in getattr(model.graph, label)]
            for model in (after, before)
        )
        if kept != wanted:
            raise RewriteError(f"the rewritten graph has other {label}s than the original")
    if largest_batch is not None:
        before, after = (_with_batch_at_most(model, largest_batch) for model in (before, after))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    sessions = []
    for label, model in (("original", before), ("rewritten", after)):
        try:
            sessions.append(
                onnxruntime.InferenceSession(
                    model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
                )
            )
        except Exception as error:  # ONNX Runtime raises classes of its own for each cause
            hint = "; name the operator in leave=" if label == "rewritten" else ""
            raise RewriteError(
                f"ONNX Runtime does not load the {label} graph: {_first_line(error)}{hint}"
            ) from error
    feeds = random_feeds(before) if feeds is None else feeds
    expected, found = (session.run(None, feeds) for session in sessions)
    for value, wanted, got in zip(before.graph.output, expected, found, strict=True):
        same = (
            np.array_equal(wanted, got)
            if wanted.dtype.kind != "f"
            else np.allclose(wanted, got, rtol=1e-4, atol=1e-4, equal_nan=True)
        )
        if not same:
            raise RewriteError(
                f"output {value.name} of the rewritten graph has other values than before"
            )


def _with_batch_at_most(model: ModelProto, largest: int) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    for value in [*result.graph.input, *result.graph.output]:
        batch = value.type.tensor_type.shape.dim[0]
        batch.dim_value = min(batch.dim_value, largest)
    del result.graph.value_info[:]
    return result


def computes_wide(path: Path) -> bool:
    """Whether any node of a file computes a 64-bit value; constants of 64 bits are no reason to
    rewrite.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    computed = {name for part in all_graphs(graph) for node in part.node for name in node.output}
    return bool(computed & set(_wide_values(graph)))


def random_feeds(model: ModelProto) -> dict[str, np.ndarray]:
    """Reproducible inputs of the declared shapes: 0..255 for numbers with a fraction, 0 and 1 for
    whole ones.
    """
    rng = np.random.default_rng(0)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if 0 in shape:
            raise ValueError(
                f"input {value.name} has no fixed shape: hand over feeds to compare the graphs with"
            )
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = (
            rng.random(shape) * 255 if dtype.kind == "f" else rng.integers(0, 2, shape)
        ).astype(dtype)
    return feeds


# --- how it is done -------------------------------------------------------------------------------


class _Narrowing:
    """One graph: decides slot by slot, then writes the nodes anew. Bodies of control flow are
    graphs of their own.
    """

    def __init__(
        self,
        graph: GraphProto,
        opsets: dict,
        outer_types: dict[str, int],
        names: set[str],
        leave: frozenset[str],
        report,
    ):
        self.graph, self.opsets, self.names, self.leave, self.report = (
            graph,
            opsets,
            names,
            leave,
            report,
        )
        _constants_to_initializers(graph)
        self.types = outer_types | _value_types(graph)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.kept = {value.name for value in graph.output} | set().union(
            *(_captured(node) for node in graph.node)
        )
        self.wants: dict[tuple[int, int], bool] = {}  # (node, input) -> reads 32 bits
        self.gives: dict[str, bool] = {}  # value -> its node computes 32 bits

    def run(self) -> None:
        for node in self.graph.node:
            for body in _bodies(node):
                _Narrowing(body, self.opsets, self.types, self.names, self.leave, self.report).run()
        for number, node in enumerate(self.graph.node):
            self._decide(number, node)
        self._decide_casts()
        self._write()

    def _decide(self, number: int, node: NodeProto) -> None:
        """All slots of one type variable change together, or none does."""
        slots = _slots(node, self.opsets)
        flexible = {}
        for variable, allowed in _variables(slots).items():
            mine = [
                (kind, index, name)
                for kind, index, name, var, _ in slots
                if var == variable and name
            ]
            wide = {self.types.get(name) for _, _, name in mine} & set(NARROW)
            # a variadic input that may mix types, as of Loop, has more than one type here
            flexible[variable] = (
                len(wide) == 1
                and SCHEMA_NAMES[NARROW[next(iter(wide))]] in allowed
                and self._allows(node, mine)
            )
        for kind, index, name, variable, _ in slots:
            if name and self.types.get(name) in NARROW:
                target = self.wants if kind == "in" else self.gives
                target[(number, index) if kind == "in" else name] = flexible.get(variable, False)

    def _allows(self, node: NodeProto, slots: list[tuple[str, int, str]]) -> bool:
        """Whether nothing but the schema decides; a reason is noted where it is worth one."""
        label = node.name or f"{node.op_type} -> {node.output[0]}"
        if node.op_type in self.leave:
            self.report.refused[label] = f"{node.op_type} was to be left as it is"
            return False
        if _bodies(node):
            self.report.refused[label] = f"what {node.op_type} shares with its body keeps its type"
            return False
        for kind, index, name in slots:
            if (
                kind == "in"
                and name in self.constants
                and not (node.op_type == "Slice" and index in SLICE_BOUNDS)
            ):
                why = _beyond(numpy_helper.to_array(self.constants[name]))
                if why:
                    self.report.refused[label] = f"constant {name} {why}"
                    return False
        return True

    def _decide_casts(self) -> None:
        """A Cast reads whatever is there, and computes 32 bits where somebody wants them."""
        readers = {}
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

    # --- writing ----------------------------------------------------------------------------------------------------

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
        used = {name for node in self.nodes for name in [*node.input, *_captured(node)]} | self.kept
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
        if is_cast and _cast_target(new) == (
            NARROW[self.types[node.input[0]]] if reads_narrow else self.types.get(node.input[0])
        ):
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


def _beyond(array: np.ndarray) -> str | None:
    """Why 32 bits cannot hold a constant."""
    if array.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        outside = array[(array < limits.min) | (array > limits.max)]
        return f"holds {outside.flat[0]}, which int32 cannot" if outside.size else None
    outside = array[np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)]
    return f"holds {outside.flat[0]}, which float32 cannot" if outside.size else None


def _slots(
    node: NodeProto, opsets: dict[str, int]
) -> list[tuple[str, int, str, str | None, set[str]]]:
    """(in or out, index, value, type variable or None, allowed types) of every slot; no variables
    for operators without a schema.
    """
    named = [("in", index, name) for index, name in enumerate(node.input)] + [
        ("out", index, name) for index, name in enumerate(node.output)
    ]
    try:
        schema = defs.get_schema(
            node.op_type, max_inclusive_version=opsets[node.domain], domain=node.domain
        )
    except (defs.SchemaError, KeyError):
        return [(*slot, None, set()) for slot in named]
    constraints = {
        constraint.type_param_str: set(constraint.allowed_type_strs)
        for constraint in schema.type_constraints
    }
    found = []
    for kind, index, name in named:
        formals = schema.inputs if kind == "in" else schema.outputs
        formal = formals[min(index, len(formals) - 1)]
        variable = formal.type_str if formal.type_str in constraints else None
        found.append((kind, index, name, variable, constraints.get(formal.type_str, set())))
    read = {variable for kind, *_, variable, _ in found if kind == "in"}
    wide = set(map(SCHEMA_NAMES.get, NARROW))
    decided_elsewhere = any(
        kind == "out" and variable not in read and wide & allowed
        for kind, *_, variable, allowed in found
    )
    if decided_elsewhere and node.op_type not in TYPE_ATTRIBUTE:
        return [(*slot[:3], None, set()) for slot in found]
    return found


def _variables(slots: list) -> dict[str, set[str]]:
    return {variable: allowed for *_, variable, allowed in slots if variable}


def _constants_to_initializers(graph: GraphProto) -> None:
    """A Constant node is a constant all the same, and easier to find among the constants."""
    kept = []
    for node in graph.node:
        tensor = _constant_value(node)
        if tensor is None or node.output[0] in {value.name for value in graph.output}:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(tensor, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def _constant_value(node: NodeProto) -> np.ndarray | None:
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


def _value_types(graph: GraphProto) -> dict[str, int]:
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in itertools.chain(graph.input, graph.value_info, graph.output)
        if value.type.HasField("tensor_type")
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def all_graphs(graph: GraphProto):
    """The graph and every body within."""
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from all_graphs(body)


def _bodies(node: NodeProto) -> list[GraphProto]:
    """The graphs that a node of control flow runs."""
    return [
        body
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs)
    ]


def _captured(node: NodeProto) -> set[str]:
    """Names that the bodies of a node may read from outside."""
    read = set()
    for body in _bodies(node):
        for graph in all_graphs(body):
            read |= {name for inner in graph.node for name in inner.input if name} | {
                value.name for value in graph.output
            }
    return read


def _all_names(graph: GraphProto) -> set[str]:
    names = set()
    for part in all_graphs(graph):
        names |= {name for node in part.node for name in [node.name, *node.input, *node.output]}
        names |= set(_value_types(part))
    return names


def _count_nodes(graph: GraphProto) -> int:
    return sum(1 for part in all_graphs(graph) for node in part.node if node.op_type != "Constant")


def _wide_values(graph: GraphProto) -> dict[str, int]:
    """Value -> its 64-bit type; computed values, constants and Constant nodes."""
    wide = {
        name: kind
        for part in all_graphs(graph)
        for name, kind in _value_types(part).items()
        if kind in NARROW
    }
    used = {
        name
        for part in all_graphs(graph)
        for node in part.node
        for name in [*node.input, *node.output]
    }
    return {name: kind for name, kind in wide.items() if name in used}


def _reasons(graph: GraphProto, opsets: dict[str, int], wide: dict[str, int]) -> dict[str, str]:
    """Why each 64-bit value is still there."""
    reasons = {
        value.name: "input or output of the graph"
        for value in [*graph.input, *graph.output]
        if value.name in wide
    }
    for part in all_graphs(graph):
        for node in part.node:
            shared = {*node.input, *node.output} | {
                value.name for body in _bodies(node) for value in [*body.input, *body.output]
            }
            for name in shared & set(wide) if _bodies(node) else ():
                reasons.setdefault(name, f"what {node.op_type} shares with its body keeps its type")
            for kind, _, name, variable, allowed in _slots(node, opsets):
                if name not in wide or name in reasons or node.op_type == "Cast":
                    continue
                if variable is None or SCHEMA_NAMES[NARROW[wide[name]]] not in allowed:
                    direction = "reads" if kind == "in" else "gives"
                    reasons[name] = (
                        f"{node.op_type} {direction} {NAMES[wide[name]]} at opset {opsets.get(node.domain)}"
                    )
    return {name: reasons.get(name, "refused, see there") for name in wide}


def _cast_target(node: NodeProto) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--leave", multiple=True, help="An operator to leave as it is.")
@click.option(
    "--vendor-python",
    help="Ask auto_optimizer instead, which this interpreter has; its result is verified.",
)
def main(source: Path, target: Path, leave: tuple[str, ...], vendor_python: str | None) -> None:
    """Write SOURCE to TARGET with 32-bit numbers in place of 64-bit ones, and say what changed."""
    show_messages()
    try:
        if vendor_python:
            rewrite_with_vendor_tool(source, target, python=vendor_python)
            left = len(_wide_values(onnx.shape_inference.infer_shapes(onnx.load(target)).graph))
            print(f"auto_optimizer's result computes the same; it leaves {left} values of 64 bits.")
        else:
            report = rewrite_file(source, target, leave=frozenset(leave))
            print(report.sentence())
            for node, reason in report.refused.items():
                print(f"left as it is: {node}: {reason}")
    except (RewriteError, ValueError) as error:
        raise SystemExit(f"rewrite: {error}") from error


if __name__ == "__main__":
    main()
