"""What is known of the values of a graph before it runs: types, constants, and ranges.

Whatever depends on constants alone is computed by ONNX Runtime itself, so that it is the number
that the graph would have had.
"""

from collections import ChainMap

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gma_lib.ascend.graphs import list_bodies, read_value_types
from gma_lib.ascend.ranges import (
    FEW,
    INT32_ENDS,
    MADE_OF,
    Range,
    count_elements,
    derive_range,
    get_type_range,
)

LARGEST = 2**18  # elements of a result that is worth keeping in the file
# Constant or not, these are not computed here: random ones, and those that describe quantisation.
_NOT_FOLDED = {
    "Bernoulli",
    "DequantizeLinear",
    "Dropout",
    "Multinomial",
    "QuantizeLinear",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
# What float32 holds exactly stays exact in these; sums and products would be rounded.
_EXACT = {*MADE_OF, "Abs", "Ceil", "Clip", "Floor", "Max", "Min", "Neg", "Relu", "Round", "Sign"}


class Facts:
    """What is known of every value that the nodes of one graph see.

    Parameters
    ----------
    model
        Its opsets and functions.
    graph
        The model's own, or a body, which may capture what ``outer`` knows. Types and shapes are
        those that shape inference left there.
    limited
        First outputs of Casts from float to int64 -> the range that a clamp in front gives them.

    Attributes
    ----------
    constants, ranges, types, shapes
        Value -> its content, its range, the type of its elements, its dimensions (None: open).
    exact
        Values of float64 -> whether float32 holds them without rounding.
    makers
        Value -> the node that computes it.
    bodies
        The facts of every body.
    """

    def __init__(
        self,
        model: ModelProto,
        graph: GraphProto,
        limited: dict[str, Range],
        outer: "Facts | None" = None,
    ):
        self.model, self.graph, self.limited = model, graph, limited
        self.constants: ChainMap[str, np.ndarray] = (
            outer.constants.new_child() if outer else ChainMap()
        )
        self.ranges: ChainMap[str, Range] = outer.ranges.new_child() if outer else ChainMap()
        self.types: ChainMap[str, int] = outer.types.new_child() if outer else ChainMap()
        self.shapes: ChainMap[str, list[int | None]] = (
            outer.shapes.new_child() if outer else ChainMap()
        )
        self.exact: ChainMap[str, bool] = outer.exact.new_child() if outer else ChainMap()
        self.makers: ChainMap[str, NodeProto] = outer.makers.new_child() if outer else ChainMap()
        self.bodies: list[Facts] = []
        self._functions = {(function.domain, function.name) for function in model.functions}
        self._read_declarations()
        for node in graph.node:
            self.bodies += [Facts(model, body, limited, self) for body in list_bodies(node)]
            self.makers.update(dict.fromkeys(node.output, node))
            if self.is_own(node) and not list_bodies(node) and any(node.output):
                self._learn(node)

    def _read_declarations(self) -> None:
        self.types.update(read_value_types(self.graph))
        for value in [*self.graph.input, *self.graph.value_info, *self.graph.output]:
            if value.type.tensor_type.HasField("shape"):
                self.shapes[value.name] = [
                    dim.dim_value if dim.HasField("dim_value") else None
                    for dim in value.type.tensor_type.shape.dim
                ]
        inputs = {value.name for value in self.graph.input}
        for tensor in self.graph.initializer:
            self.shapes[tensor.name] = list(tensor.dims)
            if tensor.name not in inputs and tensor.data_location != TensorProto.EXTERNAL:
                self._know(tensor.name, numpy_helper.to_array(tensor))

    def is_own(self, node: NodeProto) -> bool:
        """Whether a node is an operator of ONNX, which no function of the model replaces."""
        return not node.domain and (node.domain, node.op_type) not in self._functions

    def is_whole(self, name: str) -> bool:
        """Whether a value is known to be of whole numbers."""
        kind = self.types.get(name, 0)
        return kind > 0 and helper.tensor_dtype_to_np_dtype(kind).kind in "iub"

    def range(self, name: str) -> Range:
        """The range of a value of whole numbers, at worst that of its type."""
        if name in self.constants and name not in self.ranges and self.is_whole(name):
            array = self.constants[name]
            few = array.astype(object) + 0 if 0 < array.size <= FEW else None
            ends = (
                (few, few)
                if few is not None
                else (int(array.min(initial=0)), int(array.max(initial=0)))
            )
            self.ranges[name] = Range.between(*ends)
        return self.ranges.get(name) or get_type_range(self.types.get(name, 0))

    def fits(self, name: str) -> bool:
        """Whether 32 bits hold whatever a value of 64 bits can be."""
        kind = self.types.get(name)
        if kind == TensorProto.DOUBLE:
            return self.exact.get(name, False)
        return kind == TensorProto.INT64 and self.range(name).is_within(INT32_ENDS)

    def _know(self, name: str, array: np.ndarray) -> None:
        self.constants[name], self.shapes[name] = array, list(array.shape)
        self.types[name] = helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.dtype == np.float64:
            with np.errstate(over="ignore"):
                self.exact[name] = np.array_equal(array.astype(np.float32), array, equal_nan=True)

    def _learn(self, node: NodeProto) -> None:
        """Note what is known of a node's outputs."""
        known = all(name in self.constants for name in node.input if name)
        results = self._compute(node, {}) if known and node.op_type not in _NOT_FOLDED else None
        if results is not None:
            for name, array in results.items():
                self._know(name, array)
            return
        first = node.output[0]
        kind = self.types.get(first)
        if kind == TensorProto.DOUBLE:
            self.exact.update(dict.fromkeys(node.output, self._keeps_exact(node)))
        elif self.is_whole(first):
            found = derive_range(node, self)
            if found is not None and found.is_within(get_type_range(kind or 0).ends):
                self.ranges[first] = found if found.low.size <= FEW else Range.between(*found.ends)
                self._note_constant(first, self.ranges[first])
                for name in node.output[1:] if node.op_type == "Split" else ():
                    self.ranges[name] = Range.between(*self.range(node.input[0]).ends)
        if node.op_type == "TopK" and len(node.output) > 1:
            size = count_elements(self.shapes.get(node.input[0]))
            self.ranges[node.output[1]] = Range.between(0, min(max(size, 1), 2**63) - 1)

    def _note_constant(self, name: str, found: Range) -> None:
        """A range of one number for every element is a constant."""
        if self.shapes.get(name) == list(found.low.shape) and (found.low == found.high).all():
            dtype = helper.tensor_dtype_to_np_dtype(self.types[name])
            self._know(name, found.low.astype(dtype))

    def _keeps_exact(self, node: NodeProto) -> bool:
        source = node.input[0]
        if node.op_type == "Cast" and self.types.get(source) != TensorProto.DOUBLE:
            small = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
            whole = self.is_whole(source) and self.range(source).is_within((-(2**24), 2**24))
            return whole or self.types.get(source) in small
        return node.op_type in _EXACT and all(
            self.exact.get(name, False)
            for name in node.input
            if self.types.get(name) == TensorProto.DOUBLE
        )

    def move_ends(self, node: NodeProto, data: set[str]) -> Range | None:
        """Move the ends of a few elements as a node moves the elements themselves; None where it
        is not known whereto.
        """
        read = {name: self.range(name) for name in data}
        for name in node.input:
            if name in read:
                each = list(read[name].low.shape) == self.shapes.get(name)
                if not each or not 0 < read[name].low.size <= FEW:
                    return None
            elif name and name not in self.constants:
                return None
        ends = []
        for side in ("low", "high"):
            moved = self._compute(
                node,
                {
                    name: getattr(one, side).astype(
                        helper.tensor_dtype_to_np_dtype(self.types[name])
                    )
                    for name, one in read.items()
                },
            )
            if moved is None:
                return None
            ends.append(moved[node.output[0]].astype(object))
        return Range.between(*ends)

    def _compute(
        self, node: NodeProto, given: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray] | None:
        """Compute the outputs of a node from constants and what is given; None where they are
        large, no tensors, or not to be had here.
        """
        import onnxruntime

        names = [name for name in node.output if name]
        if any(
            self.constants[name].size > LARGEST for name in node.input if name and name not in given
        ):
            return None
        graph = helper.make_graph(
            [node],
            "one",
            [],
            [helper.make_empty_tensor_value_info(name) for name in names],
            [
                numpy_helper.from_array(
                    given[name] if name in given else self.constants[name], name
                )
                for name in {*node.input} - {""}
            ],
        )
        model = helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        try:
            for value in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output:
                shape = value.type.tensor_type.shape.dim
                dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in shape]
                if not value.type.tensor_type.HasField("shape") or count_elements(dims) > LARGEST:
                    return None
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
            return dict(zip(names, session.run(None, {}), strict=True))
        except Exception:  # each cause has a class of its own; the node then stays as it is
            return None
