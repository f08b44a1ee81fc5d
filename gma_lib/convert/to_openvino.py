"""From ONNX to what OpenVINO loads, in floating point or in 8-bit integers."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import openvino

from gma_lib import backends, convert, network, runs
from gma_lib.convert.converted import Conversion, describe_parts, find_sources

# Sums of products may be rounded; the numbers that say where to look may not.
_PRODUCTS = ("MatMul", "Convolution", "MVN")
_MODULES = ("fnet", "cnet", "att", "update_block")


def convert_to_openvino(folder: Path, precision: str, at_once: int) -> Conversion:
    """Write ``gma.xml``, ``gma.bin`` and their parts; int8 takes minutes to calibrate."""
    rounded = ""
    if precision == "int8":
        backends.OpenVinoOptions(precision).require()
    # as bytes, because the tool takes a path apart at commas
    models = {
        source: openvino.convert_model(BytesIO(source.read_bytes()))
        for source in find_sources(folder)
    }
    if precision == "int8":
        for model in models.values():
            _set_batch_size(model, 1)
        models = convert.quantize_models(models)
        rounded = (
            " Convolutions, correlation and attention compute in 8-bit integers, ranges from "
            f"{convert.CALIBRATION_PAIRS} rendered pairs."
        )
    files = []
    for source, converted in models.items():
        _set_batch_size(converted, at_once)
        keep_coordinates_in_float32(converted)
        _number_operations(converted)
        files.append(source.with_suffix(".xml"))
        with (
            runs.write_atomically(files[-1].with_suffix(".bin")) as weights,
            runs.write_atomically(files[-1]) as structure,
        ):
            # By default, save_model would round the weights to float16.
            openvino.save_model(converted, structure, compress_to_fp16=False)
            structure.with_suffix(".bin").replace(weights)
    return Conversion(
        tuple(files),
        "openvino.save_model(openvino.convert_model('gma.onnx'), 'gma.xml', "
        "compress_to_fp16=False)",
        "operators become OpenVINO's; weights stay float32 (the tool's own default would round "
        "them to float16), and so do coordinates and flow, whatever the precision around them."
        f"{rounded} {describe_parts(at_once)}",
    )


def _set_batch_size(model: openvino.Model, size: int) -> None:
    model.reshape({port: [size, *list(port.shape)[1:]] for port in model.inputs})


def _number_operations(model: openvino.Model) -> None:
    """Name by their place the operations that OpenVINO names by a counter of this process: the same
    graph is the same file, also if a notebook is run twice.
    """
    for number, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch("[A-Za-z]+_[0-9]+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{number}")


def keep_coordinates_in_float32(model: openvino.Model) -> int:
    """Mark coordinates and flow of a model to be computed in float32 in every precision; return
    the number of operations.

    In bfloat16 a coordinate beyond 64 cells lies on a grid of half a cell, four pixels of the
    frame. Coordinates and flow are what is computed between the network's modules and holds no more
    than two numbers per feature cell; everything else there is much larger.
    """
    batch_size, channels, height, width = model.inputs[0].shape
    cells = batch_size * height * width // (network.STRIDE**2 if channels == 3 else 1)
    marked = 0
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        scope = operation.get_friendly_name().lstrip("/").split("/")[0]
        if kind in ("Constant", "Parameter", "Result", *_PRODUCTS) or scope in _MODULES:
            continue
        output = operation.output(0)
        is_float = output.get_element_type().get_type_name() == "f32"
        if is_float and np.prod(output.shape) <= 2 * cells:
            operation.get_rt_info()["precise_0"] = ""
            marked += 1
    return marked
