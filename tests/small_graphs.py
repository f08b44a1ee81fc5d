"""Small ONNX graphs, made by hand."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

INT64, INT32, DOUBLE, FLOAT = (
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.DOUBLE,
    TensorProto.FLOAT,
)


def make(nodes, inputs, outputs, constants=(), opset=13, domains=()):
    """A model from (name, type, shape) triples and named arrays."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(domain, 1) for domain in domains),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
