"""From the exported file to what a runtime loads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gma_lib import backends
from gma_lib.ascend.chip import Card
from gma_lib.backends import find_backend
from gma_lib.convert.int8 import CALIBRATION_PAIRS, calibration_frames, quantized, samples_of_parts
from gma_lib.export.trace import set_batch_size
from gma_lib.network.sizes import STRIDE
from gma_lib.runs.files import hash_file, hash_value, write_atomically
from gma_lib.runs.precisions import refuse_precision


@dataclass(frozen=True)
class Conversion:
    """What was done to make a model loadable.

    Attributes
    ----------
    files
        What the backend loads: the whole network, and where it has them, its parts.
    command
        The tool and its arguments, or the library call, exactly.
    changes
        What differs from the exported file, in words.
    """

    files: tuple[Path, ...]
    command: str
    changes: str

    @property
    def model(self) -> Path:
        """The whole network."""
        return self.files[0]

    @property
    def sha256(self) -> str:
        """Of everything the backend loads: an OpenVINO model keeps its weights in a second file."""
        weights = [file.with_suffix(".bin") for file in self.files if file.suffix == ".xml"]
        return hash_value([hash_file(file) for file in (*self.files, *weights)])


def convert(
    backend: str,
    model_folder: Path,
    *,
    checkpoint: str,
    num_updates: int,
    attention: str,
    precision: str = "float32",
    at_once: int | None = 1,
    card: Card | None = None,
) -> Conversion:
    """Make the backend's files in ``model_folder`` from ``gma.onnx`` and its parts (or, for
    PyTorch, from the checkpoint).

    Parameters
    ----------
    precision
        Where it is decided now and not when the model is loaded: for Ascend, and int8 for OpenVINO,
        which takes minutes to calibrate.
    at_once
        Pairs that are computed together inside a batch; None: all of them. An Ascend model always
        takes the whole batch.
    card
        For Ascend: which card to convert for, and what stays float32.
    """
    find_backend(backend)  # an unknown name gets the list of those there are
    folder = Path(model_folder)
    source = folder / "gma.onnx"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: run 02_export first")
    batch_size = onnx.load(source).graph.input[0].type.tensor_type.shape.dim[0].dim_value
    at_once = at_once or batch_size
    if at_once < 1 or batch_size % at_once:
        raise ValueError(
            f"at_once={at_once} does not divide the batch size, {batch_size}; give a divisor, or null for the whole batch"
        )
    if find_backend(backend).model_file == "gma.safetensors":
        return _for_torch(folder, checkpoint, num_updates, attention, at_once)
    if backend == "ascend":
        return _for_ascend(folder, precision, card or Card())
    return CONVERTERS[backend](folder, at_once, precision)


def _sources(folder: Path) -> list[Path]:
    """The whole network and its parts, as 02_export wrote them."""
    return [
        folder / "gma.onnx",
        *(
            path
            for part in ("features", "context", "refine")
            if (path := folder / f"gma_{part}.onnx").is_file()
        ),
    ]


def _in_parts(at_once: int) -> str:
    return f"A batch is computed {'pair by pair' if at_once == 1 else f'in parts of {at_once} pairs'}, so that memory does not grow with it."


def _for_onnxruntime(folder: Path, at_once: int, precision: str) -> Conversion:
    refuse_precision("onnxruntime", precision, ("float32",), "the exported file is float32")
    files = []
    for source in _sources(folder):
        files.append(source.with_name(source.name.replace("gma", "gma_onnxruntime", 1)))
        with write_atomically(files[-1]) as partial:
            onnx.save(set_batch_size(onnx.load(source), at_once), partial)
    return Conversion(
        tuple(files),
        f"onnxruntime.InferenceSession('{files[0].name}')",
        f"{_in_parts(at_once)} Otherwise none: ONNX Runtime loads the exported file and optimises it.",
    )


def _for_openvino(folder: Path, at_once: int, precision: str) -> Conversion:
    import openvino

    core, rounded = openvino.Core(), ""
    if precision == "int8":
        refuse_precision(
            "openvino", "int8", backends.possible_precisions(core, "CPU"), backends.WHAT_INT8_NEEDS
        )
    models = {source: openvino.convert_model(source) for source in _sources(folder)}
    if precision == "int8":
        models = _in_int8(models, core)
        rounded = f" Convolutions, correlation and attention compute in 8-bit integers, ranges from {CALIBRATION_PAIRS} rendered pairs."
    files = []
    for source, converted in models.items():
        _set_batch_size(converted, at_once)
        keep_coordinates_in_float32(converted)
        files.append(source.with_suffix(".xml"))
        with (
            write_atomically(files[-1].with_suffix(".bin")) as weights,
            write_atomically(files[-1]) as structure,
        ):
            # Left alone, save_model would round the weights to float16.
            openvino.save_model(converted, structure, compress_to_fp16=False)
            structure.with_suffix(".bin").replace(weights)
    return Conversion(
        tuple(files),
        "openvino.save_model(openvino.convert_model('gma.onnx'), 'gma.xml', compress_to_fp16=False)",
        "operators become OpenVINO's; weights stay float32 (the tool's own default would round them to float16), and so do coordinates and "
        f"flow, whatever the precision around them.{rounded} {_in_parts(at_once)}",
    )


def _set_batch_size(model, size: int) -> None:
    model.reshape({port: [size, *list(port.shape)[1:]] for port in model.inputs})


def _in_int8(models: dict[Path, Any], core) -> dict[Path, Any]:
    """The same OpenVINO models, the whole network and its parts, calibrated together."""
    for model in models.values():
        _set_batch_size(model, 1)
    parts = {
        source.stem.removeprefix("gma").removeprefix("_"): model for source, model in models.items()
    }
    height, width = list(parts[""].input("image1").shape)[2:]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    run = {
        name: _caller(core.compile_model(model, "CPU", settings))
        for name, model in parts.items()
        if name
    }
    samples = samples_of_parts(calibration_frames(height, width), run)
    found = {}
    for (source, model), name in zip(models.items(), parts, strict=True):
        label = f"8-bit integers for {source.name}"
        found[source] = quantized(model, samples[name], label=label) if name in samples else model
    return found


def _caller(compiled) -> Callable[..., tuple[np.ndarray, ...]]:
    return lambda *inputs: tuple(np.array(value) for value in compiled(list(inputs)).values())


# Sums of products may be rounded; the numbers that say where to look may not.
_PRODUCTS = ("MatMul", "Convolution", "MVN")
_MODULES = ("fnet", "cnet", "att", "update_block")


def keep_coordinates_in_float32(model) -> int:
    """Mark coordinates and flow of an OpenVINO model to be computed in float32 in every precision;
    return how many operations.

    In bfloat16 a coordinate beyond 64 cells lies on a grid of half a cell, four pixels of the
    frame. Coordinates and flow are what is computed between the network's modules and holds no more
    than two numbers per feature cell; everything else there is much larger.
    """
    _, channels, height, width = model.inputs[0].shape
    cells = model.inputs[0].shape[0] * height * width // (STRIDE**2 if channels == 3 else 1)
    marked = 0
    for operation in model.get_ordered_ops():
        kind, scope = (
            operation.get_type_name(),
            operation.get_friendly_name().lstrip("/").split("/")[0],
        )
        if kind in ("Constant", "Parameter", "Result", *_PRODUCTS) or scope in _MODULES:
            continue
        output = operation.output(0)
        if (
            output.get_element_type().get_type_name() == "f32"
            and np.prod(output.shape) <= 2 * cells
        ):
            operation.get_rt_info()["precise_0"] = ""
            marked += 1
    return marked


def _for_torch(
    folder: Path, checkpoint: str, num_updates: int, attention: str, at_once: int
) -> Conversion:
    from gma_lib.network.checkpoints import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(checkpoint)
    about = {
        "num_updates": str(num_updates),
        "attention": attention,
        "at_once": str(at_once),
        "source_sha256": loaded.sha256,
    }
    return Conversion(
        (save_checkpoint(folder / "gma.safetensors", loaded.state, metadata=about),),
        f"gma_lib.network.checkpoints.save_checkpoint('gma.safetensors', {loaded.name!r})",
        f"PyTorch runs the network as written, made lean when it is loaded; the file holds weights and configuration. {_in_parts(at_once)}",
    )


def _for_ascend(folder: Path, precision: str, card: Card) -> Conversion:
    """ONNX without 64-bit numbers, then atc; its precision is decided here, not when the model is
    loaded.
    """
    from gma_lib.ascend.keep import described
    from gma_lib.ascend.rewrite import rewrite_where_needed
    from gma_lib.convert.to_ascend import convert_for_card

    # a batch of a card's size would need a card's memory to be compared in
    rewritten = rewrite_where_needed(folder / "gma.onnx", folder / "gma_atc.onnx", largest_batch=2)
    made = convert_for_card(folder, precision, card)
    kept = described(made["options"]["keep_dtype"]) or "everything"
    changes = f"{rewritten} Computed in {precision}, float32 kept for {kept}, for {made['soc']} ({made['chip_source']})."
    if made["unknown_operators"]:
        changes += f" Not known whether CANN {made['cann'] or '(version unknown)'} has: {', '.join(made['unknown_operators'])}."
    if made["simulated"]:
        changes = f"SIMULATED: a stand-in for atc made this. {changes}"
    return Conversion((folder / "gma.om",), " ".join(made["command"]), changes)


CONVERTERS: dict[str, Callable[[Path, int, str], Conversion]] = {
    "onnxruntime": _for_onnxruntime,
    "openvino": _for_openvino,
}
