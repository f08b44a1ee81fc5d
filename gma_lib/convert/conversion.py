"""From weights to what a runtime loads: the specification of a model, its export, and its
conversion for each backend; here are the two that need no tool, ONNX Runtime's and PyTorch's.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx

from gma_lib import ascend, backends, export, network, runs
from gma_lib import convert as converters


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


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes
    ----------
    files
        What the backend loads: the whole network first, then its parts, if any.
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
        """Hash of all files that the backend loads; OpenVINO's weights are in a second file."""
        return runs.hash_value(list(self.digests.values()))

    @property
    def digests(self) -> dict[str, str]:
        """File name -> SHA-256 of all files that the backend loads."""
        weights = [file.with_suffix(".bin") for file in self.files if file.suffix == ".xml"]
        return runs.hash_files([*self.files, *weights])

    def to_record(self) -> runs.Record:
        return {
            "model": self.model,
            "model_sha256": self.sha256,
            "command": self.command,
            "changes": self.changes,
            "files": self.digests,
        }


def find_sources(folder: Path) -> list[Path]:
    """List the exported files of a folder: the whole network and, if they exist, its parts;
    ValueError if those are of another export, whose network may be another.
    """
    whole = folder / "gma.onnx"
    parts = [path for path in _name_parts(whole) if path.is_file()]
    for path in parts:
        if export.read_description(path) != export.read_description(whole):
            raise ValueError(f"{path} is of another export than {whole.name}: run 02_export again")
    return [whole, *parts]


def _name_parts(whole: Path) -> list[Path]:
    names = ("features", "context", "refine")
    return [whole.with_name(f"{whole.stem}_{name}{whole.suffix}") for name in names]


def describe_parts(at_once: int) -> str:
    """Say how a batch is computed."""
    how = "pair by pair" if at_once == 1 else f"in parts of {at_once} pairs"
    return f"A batch is computed {how}, so that memory does not grow with it."


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


def convert_to_torch(folder: Path, checkpoint: str, at_once: int) -> Conversion:
    """Write ``gma.safetensors`` with the configuration of the exported network; ValueError if that
    has other weights, or does not say its form.
    """
    loaded = network.load_checkpoint(checkpoint)
    exported = export.read_description(folder / "gma.onnx")
    if "steps" not in exported:
        raise ValueError(f"{folder / 'gma.onnx'} is of another version: run 02_export again")
    if loaded.sha256 != exported["weights_sha256"]:
        raise ValueError(f"{checkpoint}: not the weights that gma.onnx was exported with")
    about = {
        "num_updates": exported["num_updates"],
        "attention": exported["attention"],
        "lookup": exported["lookup"],
        "steps": exported["steps"],
        "at_once": str(at_once),
        "source_sha256": loaded.sha256,
    }
    return Conversion(
        (network.save_checkpoint(folder / "gma.safetensors", loaded.state, metadata=about),),
        f"gma_lib.network.checkpoints.save_checkpoint('gma.safetensors', {loaded.name!r})",
        f"PyTorch runs the network in the exported form ({exported['lookup']} lookup); the file "
        f"holds weights and configuration. {describe_parts(at_once)}",
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
    for part in _name_parts(whole):
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
    for part in _name_parts(source.with_name(model_file)):  # which it may not write
        part.unlink(missing_ok=True)
    if model_file == "gma.safetensors":
        return convert_to_torch(source.parent, checkpoint, at_once)
    if backend == "ascend":
        return converters.convert_to_ascend(source.parent, precision, card or ascend.Card())
    if backend == "openvino":
        return converters.convert_to_openvino(source.parent, precision, at_once)
    return convert_to_onnxruntime(source.parent, precision, at_once)


def prepare_model(spec: ModelSpec, folder: Path, *, card: ascend.Card | None = None) -> Conversion:
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
