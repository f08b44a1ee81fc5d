"""From weights to what a runtime loads: the specification of a model, its export, and the choice
of its conversion, of which each runtime has a module (``to_...``).
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import onnx

from gma_lib import ascend, backends, export, network, runs
from gma_lib import convert as converters
from gma_lib.convert.converted import Conversion, name_parts


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
        ONNX operator set; None: what suits the lookup.
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
    num_updates: int = network.GMAConfig.num_updates
    attention: str = network.GMAConfig.attention
    lookup: str | None = None
    batch_size: int = 1
    at_once: int | None = 1
    opset: int | None = None
    steps: tuple[str, ...] = tuple(network.DEPLOY_STEPS)
    parts: bool = False

    def load_network(self) -> tuple[network.GMA, network.Checkpoint]:
        """The network as published, with its weights, and the checkpoint they came from."""
        lookup = self.lookup or backends.find_backend(self.backend).lookup
        return network.load_model(
            self.checkpoint, network.GMAConfig(self.num_updates, self.attention, lookup)
        )


def read_spec(exported: runs.Record, *, backend: str, precision: str) -> ModelSpec:
    """Return what ``export.json`` says that 02_export was told, for a backend and a precision."""
    return ModelSpec(
        exported["checkpoint"]["source"],
        **exported["size"],
        **{name: exported[name] for name in ("num_updates", "attention", "lookup", "opset")},
        backend=backend,
        precision=precision,
        steps=tuple(network.DEPLOY_STEPS) if exported["save_work"] else (),
    )


def export_model(spec: ModelSpec, folder: Path) -> tuple[list[Path], network.Checkpoint]:
    """Write ``gma.onnx`` and, if the specification asks for them, its parts; parts of another
    export are removed.

    Returns
    -------
    files, checkpoint
        The network's file first, and the weights that were loaded.
    """
    model, checkpoint = spec.load_network()
    model = network.to_deploy_form(model, spec.steps)
    size = {"height": spec.height, "width": spec.width, "batch_size": spec.batch_size}
    whole = Path(folder) / "gma.onnx"
    for part in name_parts(whole):
        part.unlink(missing_ok=True)
    files = [export.export_whole(model, whole, **size, checkpoint=checkpoint, opset=spec.opset)]
    if spec.parts:
        files += export.export_split(model, folder, **size, checkpoint=checkpoint, opset=spec.opset)
    return files, checkpoint


def convert(
    backend: str,
    folder: Path,
    *,
    checkpoint: str,
    precision: str = "float32",
    at_once: int | None = 1,
    card: ascend.Card | None = None,
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
    model_file = backends.find_backend(backend).model_file
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
    for part in name_parts(source.with_name(model_file)):  # which it may not write
        part.unlink(missing_ok=True)
    if model_file == "gma.safetensors":
        return converters.convert_to_torch(source.parent, checkpoint, at_once)
    if backend == "ascend":
        return converters.convert_to_ascend(source.parent, precision, card or ascend.Card())
    if backend == "openvino":
        return converters.convert_to_openvino(source.parent, precision, at_once)
    return converters.convert_to_onnxruntime(source.parent, precision, at_once)


def prepare_model(spec: ModelSpec, folder: Path, *, card: ascend.Card | None = None) -> Conversion:
    """Export a model into ``folder`` and convert it for its backend, and its card on Ascend.

    ModuleNotFoundError, before anything is exported, where int8's extra is not installed.
    """
    if spec.precision == "int8":
        import_module("gma_lib.convert.int8")
    export_model(spec, folder)
    return convert(
        spec.backend,
        folder,
        checkpoint=str(spec.checkpoint),
        precision=spec.precision,
        at_once=spec.at_once,
        card=card,
    )
