"""One recipe from weights to what a runtime loads: checkpoint, deploy form, export, conversion."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from gma_lib import convert as converters
from gma_lib.ascend.chip import Card
from gma_lib.backends import find_backend
from gma_lib.convert.conversion import Conversion, convert_to_onnxruntime, convert_to_torch
from gma_lib.export.trace import DEFAULT_OPSET, export_split, export_whole
from gma_lib.network.checkpoints import Checkpoint, load_model
from gma_lib.network.deploy import DEPLOY_STEPS, to_deploy_form
from gma_lib.network.model import GMAConfig
from gma_lib.runs.records import Record


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides a converted model.

    Attributes
    ----------
    checkpoint
        Weights, as for ``load_checkpoint``.
    height, width
        Size of the padded frames.
    backend, precision
        As for ``convert``.
    num_updates, attention, lookup
        As for ``GMAConfig``; a lookup of None is the one that suits the backend.
    batch_size, at_once
        Pairs per call, and pairs that are computed together (None: the whole batch).
    opset
        ONNX operator set.
    steps
        Steps of the deploy form (``DEPLOY_STEPS``); none exports every layer as published.
    parts
        Whether to export the network's three parts too, which sequences need.
    """

    checkpoint: str | Path
    height: int
    width: int
    backend: str = "openvino"
    precision: str = "float32"
    num_updates: int = GMAConfig.num_updates
    attention: str = GMAConfig.attention
    lookup: str | None = None
    batch_size: int = 1
    at_once: int | None = 1
    opset: int = DEFAULT_OPSET
    steps: tuple[str, ...] = tuple(DEPLOY_STEPS)
    parts: bool = False


def read_spec(exported: Record, *, backend: str, precision: str) -> ModelSpec:
    """Return what ``export.json`` says that 02_export was told, for a backend and a precision."""
    told = {name: exported[name] for name in ("num_updates", "attention", "lookup", "opset")}
    return ModelSpec(
        exported["checkpoint"]["source"],
        **exported["size"],
        **told,
        backend=backend,
        precision=precision,
        steps=tuple(DEPLOY_STEPS) if exported["save_work"] else (),
    )


def export_model(spec: ModelSpec, folder: Path) -> tuple[list[Path], Checkpoint]:
    """Write ``gma.onnx`` and, if the specification asks for them, its parts.

    Returns
    -------
    files, checkpoint
        The network's file first, and the weights that were loaded.
    """
    lookup = spec.lookup or find_backend(spec.backend).lookup
    config = GMAConfig(spec.num_updates, spec.attention, lookup)
    model, checkpoint = load_model(spec.checkpoint, config)
    model = to_deploy_form(model, spec.steps)
    size = {"height": spec.height, "width": spec.width, "batch_size": spec.batch_size}
    folder = Path(folder)
    files = [
        export_whole(model, folder / "gma.onnx", **size, checkpoint=checkpoint, opset=spec.opset)
    ]
    if spec.parts:
        files += export_split(model, folder, **size, checkpoint=checkpoint, opset=spec.opset)
    return files, checkpoint


def convert(
    backend: str,
    folder: Path,
    *,
    checkpoint: str,
    precision: str = "float32",
    at_once: int | None = 1,
    card: Card | None = None,
) -> Conversion:
    """Convert ``gma.onnx`` and its parts (for PyTorch: the checkpoint) to the backend's files, in
    the same folder.

    Parameters
    ----------
    precision
        Decided now and not when the model is loaded for Ascend, and for int8 in OpenVINO.
    at_once
        Pairs that are computed together inside a batch; None: the whole batch, as Ascend always
        does.
    card
        For Ascend: which card to convert for, and what stays float32.
    """
    model_file = find_backend(backend).model_file
    source = Path(folder) / "gma.onnx"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: run 02_export first")
    batch_size = onnx.load(source).graph.input[0].type.tensor_type.shape.dim[0].dim_value
    at_once = at_once or batch_size
    if at_once < 1 or batch_size % at_once:
        raise ValueError(
            f"at_once={at_once} does not divide the batch size, {batch_size}; give a divisor, or "
            "null for the whole batch"
        )
    if model_file == "gma.safetensors":
        return convert_to_torch(source.parent, checkpoint, at_once)
    if backend == "ascend":
        return converters.convert_to_ascend(source.parent, precision, card or Card())
    if backend == "openvino":
        return converters.convert_to_openvino(source.parent, precision, at_once)
    return convert_to_onnxruntime(source.parent, precision, at_once)


def prepare_model(spec: ModelSpec, folder: Path, *, card: Card | None = None) -> Conversion:
    """Export a model into ``folder`` and convert it for its backend, and its card on Ascend."""
    export_model(spec, folder)
    return convert(
        spec.backend,
        folder,
        checkpoint=str(spec.checkpoint),
        precision=spec.precision,
        at_once=spec.at_once,
        card=card,
    )
