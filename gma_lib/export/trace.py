"""The network as ONNX: traced once, made constant, given its batch size, checked.

Inputs ``image1`` and ``image2`` and the output ``out1`` are named as in the deployment guide, so
its ``atc`` command line works unchanged.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import gma_lib
from gma_lib.network.checkpoints import Checkpoint
from gma_lib.network.model import GMA
from gma_lib.network.sizes import STRIDE, check_sides
from gma_lib.runs.files import write_atomically

DEFAULT_OPSET = 13
# The first opset in which every operator of the form exists; grid_sample's name for bilinear
# changed at 20.
OPSETS = {
    "matmul": range(13, 20),
    "rows": range(13, 20),
    "gather": range(12, 20),
    "grid_sample": range(16, 20),
}


class _Features(nn.Module):
    """Frame -> features."""

    def __init__(self, model: GMA):
        super().__init__()
        self.gma = model

    def forward(self, image: Tensor) -> Tensor:
        return self.gma.features(image)


class _Context(_Features):
    """First frame of a pair -> context."""

    def forward(self, image: Tensor) -> Tensor:
        return self.gma.context(image)


class _Refine(_Features):
    """Features of both frames, context of the first and a start -> flow in pixels and in cells."""

    def forward(
        self, features1: Tensor, features2: Tensor, context: Tensor, flow_init: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.gma.refine(features1, features2, context, flow_init)


def export_whole(
    model: GMA,
    path: Path,
    *,
    height: int,
    width: int,
    batch_size: int,
    checkpoint: Checkpoint,
    opset: int = DEFAULT_OPSET,
) -> Path:
    """Write the network from two frames to flow.

    Parameters
    ----------
    model
        Its configuration decides updates, attention and lookup.
    height, width
        Of the padded frame.
    batch_size
        Of the file. Tracing always sees one pair, so memory does not grow with it.
    checkpoint
        Recorded in the file, with everything else that made it.
    """
    frame = torch.zeros(1, 3, height, width)
    traced = _trace(model, (frame, frame), ["image1", "image2"], ["out1"], opset=opset)
    return _write(traced, path, model, checkpoint, height, width, batch_size)


def export_split(
    model: GMA,
    folder: Path,
    *,
    height: int,
    width: int,
    batch_size: int,
    checkpoint: Checkpoint,
    opset: int = DEFAULT_OPSET,
) -> list[Path]:
    """Write the network in three parts, ``gma_features.onnx``, ``gma_context.onnx`` and
    ``gma_refine.onnx``.

    Along a sequence the features of each frame are then computed once, and a pair can start from
    the flow before it.
    """
    frame = torch.zeros(1, 3, height, width)
    grid = (height // STRIDE, width // STRIDE)
    features, flow = torch.zeros(1, 256, *grid), torch.zeros(1, 2, *grid)
    inputs = ["features1", "features2", "context", "flow_init"]
    traced = {
        "features": _trace(_Features(model), (frame,), ["image"], ["features"], opset=opset),
        "context": _trace(_Context(model), (frame,), ["image"], ["context"], opset=opset),
        "refine": _trace(
            _Refine(model),
            (features, features, features, flow),
            inputs,
            ["flow", "flow_low"],
            opset=opset,
        ),
    }
    return [
        _write(
            part, Path(folder) / f"gma_{name}.onnx", model, checkpoint, height, width, batch_size
        )
        for name, part in traced.items()
    ]


def _trace(
    module: nn.Module, inputs: tuple, input_names: list[str], output_names: list[str], *, opset: int
) -> onnx.ModelProto:
    model = module if isinstance(module, GMA) else module.gma
    check_sides(
        *(side * (1 if inputs[0].shape[1] == 3 else STRIDE) for side in inputs[0].shape[-2:])
    )
    allowed = OPSETS[model.config.lookup]
    if opset not in allowed:
        raise ValueError(
            f"lookup '{model.config.lookup}' is exported at opset {allowed[0]} to {allowed[-1]}, not {opset}"
        )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The tracer warns of every Python number, which is what makes the graph constant; torch, of
        # its older exporter, which is the one that writes opsets below 18.
        warnings.simplefilter("ignore")
        file = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module.eval(),
            inputs,
            str(file),
            input_names=input_names,
            output_names=output_names,
            opset_version=opset,
            dynamo=False,
        )
        return onnx.load(file)


def _write(
    traced: onnx.ModelProto,
    path: Path,
    model: GMA,
    checkpoint: Checkpoint,
    height: int,
    width: int,
    batch_size: int,
) -> Path:
    finished = set_batch_size(fold_constants(traced), batch_size)
    _describe(
        finished,
        {
            "package": f"gma_lib {gma_lib.__version__}",
            "weights": checkpoint.name,
            "weights_sha256": checkpoint.sha256,
            "weights_trained": str(checkpoint.trained),
            "height": str(height),
            "width": str(width),
            "batch_size": str(batch_size),
            "num_updates": str(model.config.num_updates),
            "attention": model.config.attention,
            "lookup": model.config.lookup,
        },
    )
    onnx.checker.check_model(finished, full_check=True)
    with write_atomically(path) as partial:
        onnx.save(finished, partial)
    return Path(path)


# --- the graph after tracing ----------------------------------------------------------------------


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn Constant nodes into initializers, and compute every node whose inputs are all constant.

    The tracer leaves integer arithmetic on constants behind (paddings, slice bounds), which no
    runtime should have to do.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    kept = []
    for node in graph.node:
        foldable = all(name in values for name in node.input if name) and not outputs & set(
            node.output
        )
        if foldable:
            values |= zip(node.output, _evaluate(node, values, model.opset_import), strict=True)
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in values.items()
        if name in used
    )
    return result


def _evaluate(node: onnx.NodeProto, values: dict, opsets) -> list[np.ndarray]:
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None
        )
        for name in node.input
        if name
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    one_node = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs), opset_imports=opsets
    )
    return ReferenceEvaluator(one_node).run(
        None, {name: values[name] for name in node.input if name}
    )


def set_batch_size(model: onnx.ModelProto, batch_size: int) -> onnx.ModelProto:
    """Give a graph traced with one pair another batch size.

    Nothing but the declared inputs and outputs mentions the batch: the network's reshapes leave it
    to -1. Strict shape inference proves it, because a constant that still held a one would
    contradict the declared output.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in [*result.graph.input, *result.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch_size
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(
        result, check_type=True, strict_mode=True, data_prop=True
    )


def _describe(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    del model.metadata_props[:]
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)


def read_description(path: Path) -> dict[str, str]:
    """What an exported file says about itself."""
    return {item.key: item.value for item in onnx.load(path).metadata_props}
