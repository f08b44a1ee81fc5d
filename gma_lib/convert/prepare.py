"""One recipe from weights to what a runtime loads: checkpoint, deploy form, export, conversion."""

from dataclasses import dataclass
from pathlib import Path

from gma_lib.backends import find_backend
from gma_lib.convert.conversion import Conversion, convert
from gma_lib.export.trace import DEFAULT_OPSET, export_split, export_whole
from gma_lib.network.checkpoints import Checkpoint, load_model
from gma_lib.network.deploy import DEPLOY_STEPS, to_deploy_form
from gma_lib.network.model import GMAConfig


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


def prepare_model(spec: ModelSpec, folder: Path) -> Conversion:
    """Export a model into ``folder`` and convert it for its backend."""
    export_model(spec, folder)
    return convert(
        spec.backend,
        folder,
        checkpoint=str(spec.checkpoint),
        num_updates=spec.num_updates,
        attention=spec.attention,
        precision=spec.precision,
        at_once=spec.at_once,
    )
