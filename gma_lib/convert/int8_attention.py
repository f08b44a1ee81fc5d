"""GMA's attention in 8-bit integers: its scores, and the aggregation, which is attention times
values; an OpenVINO graph rewritten.

Scores are calibrated, the aggregation is not: every row of attention is rounded in steps of its own
largest share, every channel of the values in steps of its own largest value, as they come. A row
sums to one, so the mean over all cells can be taken out of the values and put back behind the
product: shares too small for a step then count as if they were spread evenly, instead of vanishing.
"""

from collections.abc import Callable

import numpy as np
import openvino
from openvino import Model, Node, Output, opset13

_AXIS_OF_COLUMNS, _AXIS_OF_ROWS = np.array([-1]), np.array([-2])
_TINY = np.float32(1e-6)  # of a channel that is the same everywhere


def attend_in_integers(model: Model, samples: list[dict[str, np.ndarray]]) -> int:
    """Let an OpenVINO model compute attention's scores and the aggregation in integers; return the
    number of products that were changed.

    Parameters
    ----------
    samples
        Inputs by name; the range of queries and keys is taken from them.
    """
    changed = 0
    for softmax in [operation for operation in model.get_ordered_ops() if _is_attention(operation)]:
        products = [target.get_node() for target in softmax.output(0).get_target_inputs()]
        largest = _op(
            "att/largest_share", opset13.reduce_max, softmax, _AXIS_OF_COLUMNS, keep_dims=True
        )
        relative = _op(
            "att/relative",
            opset13.multiply,
            softmax,
            _op("att/inverse", opset13.divide, np.float32(1), largest),
        )
        shares = _round("att/rounded", relative, lowest=0.0)
        for product in products:
            _replace_product(product, shares, largest)
        changed += len(products)
        scores = softmax.input_value(0).get_node()
        if scores.get_type_name() == "MatMul":  # else positions have their part in them
            _round_inputs(model, scores, samples)
            changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _is_attention(operation: Node) -> bool:
    name: str = operation.get_friendly_name()
    return operation.get_type_name() == "Softmax" and name.lstrip("/").startswith("att/")


def _round_inputs(model: Model, product: Node, samples: list[dict[str, np.ndarray]]) -> None:
    """Round what goes into a product in steps of the largest value that the samples bring there."""
    inputs = [product.input_value(port) for port in (0, 1)]
    before = openvino.compile_model(
        openvino.Model(inputs, model.get_parameters()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = np.max(
        [[np.abs(values).max() for values in before(sample).values()] for sample in samples], axis=0
    )
    for port, (values, size) in enumerate(zip(inputs, found, strict=True)):
        rounded = _round(f"att/rounded_input_{port}", values, lowest=-128 / 127, highest=size)
        product.input(port).replace_source_output(rounded.output(0))


def _replace_product(product: Node, shares: Node, largest: Node) -> None:
    """Attention (B, N, N) times values (B, N, C), or their transpose, in integers; ``shares``:
    attention over ``largest``, rounded.
    """
    scope = product.get_friendly_name().lstrip("/").rsplit("/", 1)[0]
    transposed = product.get_attributes()["transpose_b"]
    axis, values = _AXIS_OF_COLUMNS if transposed else _AXIS_OF_ROWS, product.input_value(1)
    mean = _op(f"{scope}/mean", opset13.reduce_mean, values, axis, keep_dims=True)
    centred = _op(f"{scope}/centred", opset13.subtract, values, mean)
    size = _op(
        f"{scope}/size",
        opset13.reduce_max,
        _op(f"{scope}/absolute", opset13.abs, centred),
        axis,
        keep_dims=True,
    )
    size = _op(f"{scope}/step", opset13.add, size, _TINY)
    relative = _op(
        f"{scope}/relative",
        opset13.multiply,
        centred,
        _op(f"{scope}/inverse", opset13.divide, np.float32(1), size),
    )
    rounded = _round(f"{scope}/rounded", relative, lowest=-128 / 127)
    if transposed:
        mean, size = (
            _op(f"{scope}/{name}_by_column", opset13.transpose, value, np.array([0, 2, 1]))
            for name, value in (("mean", mean), ("size", size))
        )
    aggregated = _op(
        product.get_friendly_name(), opset13.matmul, shares, rounded, False, transposed
    )
    for name, operation, value in (
        ("rows", opset13.multiply, largest),
        ("channels", opset13.multiply, size),
        ("sum", opset13.add, mean),
    ):
        aggregated = _op(f"{scope}/{name}", operation, aggregated, value)
    for target in product.output(0).get_target_inputs():
        target.replace_source_output(aggregated.output(0))


def _round(name: str, value: Node | Output, *, lowest: float, highest: float = 1.0) -> Node:
    """256 steps up to ``highest``, from ``lowest`` times as much."""
    low, high = np.float32(lowest * highest), np.float32(highest)
    return _op(name, opset13.fake_quantize, value, low, high, low, high, 256)


def _op(name: str, make: Callable[..., Node], *inputs: object, **attributes: object) -> Node:
    """Make an operation with a name: without one it would count as a coordinate, see
    ``gma_lib.convert.to_openvino``.
    """
    operation = make(*inputs, **attributes)
    operation.set_friendly_name(name)
    return operation
