"""From ONNX to ONNX: ONNX Runtime loads the exported file, for parts of a batch."""

from pathlib import Path

import onnx

from gma_lib import export, runs
from gma_lib.convert.converted import Conversion, describe_parts, find_sources


def convert_to_onnxruntime(folder: Path, precision: str, at_once: int) -> Conversion:
    """Write ``gma_onnxruntime.onnx`` and its parts."""
    runs.refuse_precision("onnxruntime", precision, ("float32",), "the exported file is float32")
    files = []
    for source in find_sources(folder):
        files.append(source.with_name(source.name.replace("gma", "gma_onnxruntime", 1)))
        with runs.write_atomically(files[-1]) as partial:
            onnx.save(export.set_batch_size(onnx.load(source), at_once), partial)
    return Conversion(
        tuple(files),
        f"onnxruntime.InferenceSession('{files[0].name}')",
        f"{describe_parts(at_once)} Otherwise none: ONNX Runtime loads the exported file and "
        "optimises it.",
    )
