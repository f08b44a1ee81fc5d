"""The network as ONNX: traced once, made constant, given its batch size, checked.

Inputs ``image1`` and ``image2`` and the output ``out1`` are named as in the deployment guide, so
its ``atc`` command line works unchanged.
"""

import copy
import json
import logging
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import gma_lib
from gma_lib.network import GMA, OPSETS, STRIDE, Checkpoint, check_sides, choose_opset
from gma_lib.runs.files import write_atomically
from gma_lib.runs.leftovers import temporary_folder

_in_turn = threading.Lock()  # PyTorch's exporter, and filters of warnings, are one for all threads


class _Part(nn.Module):
    """A method of the network as a module, which is what the tracer takes."""

    def __init__(self, model: GMA, method: str):
        super().__init__()
        self.gma = model
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        result: Tensor | tuple[Tensor, ...] = getattr(self.gma, self.method)(*inputs)
        return result


def export_whole(
    model: GMA,
    path: Path,
    *,
    height: int,
    width: int,
    batch_size: int,
    checkpoint: Checkpoint,
    opset: int | None = None,
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
    opset
        ONNX operator set; None: what suits the lookup (``gma_lib.network.choose_opset``).
    """
    opset = choose_opset(model.config.lookup, opset)
    _check_request(model, height, width, opset)
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
    opset: int | None = None,
) -> list[Path]:
    """Write the network in three parts, ``gma_features.onnx``, ``gma_context.onnx`` and
    ``gma_refine.onnx``.

    Along a sequence the features of each frame are then computed once, and a pair can start from
    the flow before it.
    """
    opset = choose_opset(model.config.lookup, opset)
    _check_request(model, height, width, opset)
    frame = torch.zeros(1, 3, height, width)
    features = torch.zeros(1, 256, height // STRIDE, width // STRIDE)
    encoded = ["features1", "features2", "context", "flow_init"]
    inputs = (features, features, features, features[:, :2])
    files = []
    for method, given, input_names, output_names in (
        ("features", (frame,), ["image"], ["features"]),
        ("context", (frame,), ["image"], ["context"]),
        ("refine", inputs, encoded, ["flow", "flow_low"]),
    ):
        part = _trace(_Part(model, method), given, input_names, output_names, opset=opset)
        path = Path(folder) / f"gma_{method}.onnx"
        files.append(_write(part, path, model, checkpoint, height, width, batch_size))
    return files


def _check_request(model: GMA, height: int, width: int, opset: int) -> None:
    check_sides(height, width)
    allowed = OPSETS[model.config.lookup]
    if opset not in allowed:
        raise ValueError(
            f"lookup '{model.config.lookup}' is exported at opset {allowed[0]} to {allowed[-1]}, "
            f"not {opset}"
        )


def _trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    *,
    opset: int,
) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with _in_turn, temporary_folder() as folder, warnings.catch_warnings():
        # The tracer warns of every Python number, which is what makes the graph constant; torch, of
        # its older exporter, which is the one that writes opsets below 18.
        warnings.simplefilter("ignore")
        file = folder / "traced.onnx"
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
    helper.set_model_props(
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
            "steps": json.dumps(model.steps),
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
    result = copy.deepcopy(model)
    graph = result.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    kept = []
    for node in graph.node:
        if values.keys() >= set(filter(None, node.input)) and not outputs & set(node.output):
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


def _evaluate(
    node: onnx.NodeProto, values: dict[str, np.ndarray], opsets: Sequence[onnx.OperatorSetIdProto]
) -> list[np.ndarray]:
    """Compute the outputs of a node whose inputs are all known."""
    given = {name: np.asarray(values[name]) for name in node.input if name}
    function = helper.make_function("", "one", list(given), node.output, [node], opsets)
    return list(ReferenceEvaluator(function).run(None, given, attributes={}))


def set_batch_size(model: onnx.ModelProto, batch_size: int) -> onnx.ModelProto:
    """Give an exported graph another batch size.

    Nothing but the declared inputs and outputs mentions the batch: the network's reshapes leave it
    to -1. Strict shape inference proves it, because a constant that still held a one would
    contradict the declared output.
    """
    result = copy.deepcopy(model)
    for value in [*result.graph.input, *result.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch_size
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(
        result, check_type=True, strict_mode=True, data_prop=True
    )


def read_description(path: Path) -> dict[str, str]:
    """Read the properties that an exported file holds about itself."""
    return {item.key: item.value for item in onnx.load(path).metadata_props}
