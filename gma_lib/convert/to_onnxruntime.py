"""From ONNX to what ONNX Runtime loads: the same graph, for the pairs that are computed at once."""

from pathlib import Path

import onnx

from gma_lib.convert.conversion import Conversion, describe_parts, find_sources
from gma_lib.export.trace import set_batch_size
from gma_lib.runs.files import write_atomically
from gma_lib.runs.precisions import refuse_precision


def convert_to_onnxruntime(folder: Path, precision: str, at_once: int) -> Conversion:
    """Write ``gma_onnxruntime.onnx`` and its parts."""
    refuse_precision("onnxruntime", precision, ("float32",), "the exported file is float32")
    files = []
    for source in find_sources(folder):
        files.append(source.with_name(source.name.replace("gma", "gma_onnxruntime", 1)))
        with write_atomically(files[-1]) as partial:
            onnx.save(set_batch_size(onnx.load(source), at_once), partial)
    return Conversion(
        tuple(files),
        f"onnxruntime.InferenceSession('{files[0].name}')",
        f"{describe_parts(at_once)} Otherwise none: ONNX Runtime loads the exported file and "
        "optimises it.",
    )
