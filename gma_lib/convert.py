"""From the exported file to what a runtime loads."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gma_lib.backends import backend_kind
from gma_lib.flow_io import written_whole
from gma_lib.runs import digest, sha256


@dataclass(frozen=True)
class Conversion:
    """What was done to make a model loadable.

    Attributes
    ----------
    model
        The file that the backend loads.
    command
        The tool and its arguments, or the library call, exactly.
    changes
        What differs from the exported file, in words.
    """

    model: Path
    command: str
    changes: str

    @property
    def sha256(self) -> str:
        """Of everything the backend loads: an OpenVINO model keeps its weights in a second file."""
        files = [self.model, self.model.with_suffix(".bin")] if self.model.suffix == ".xml" else [self.model]
        return digest([sha256(file) for file in files])


def convert(
    backend: str, model_folder: Path, *, checkpoint: str, num_updates: int, attention: str, precision: str = "float32"
) -> Conversion:
    """Make the backend's files in ``model_folder`` from ``gma.onnx`` (or, for PyTorch, from the checkpoint)."""
    backend_kind(backend)  # an unknown name gets the list of those there are
    source = Path(model_folder) / "gma.onnx"
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: run 02_export first")
    if backend == "torch":
        return _for_torch(Path(model_folder), checkpoint, num_updates, attention)
    if backend == "ascend":
        return _for_ascend(Path(model_folder), precision)
    return CONVERTERS[backend](Path(model_folder))


def _for_onnxruntime(folder: Path) -> Conversion:
    return Conversion(
        folder / "gma.onnx",
        "onnxruntime.InferenceSession('gma.onnx')",
        "none: ONNX Runtime loads the exported file and optimises it in memory.",
    )


def _for_openvino(folder: Path) -> Conversion:
    import openvino

    for source in sorted(folder.glob("gma*.onnx")):
        converted = openvino.convert_model(source)
        target = source.with_suffix(".xml")
        with written_whole(target.with_suffix(".bin")) as weights, written_whole(target) as structure:
            # Left alone, save_model would round the weights to float16.
            openvino.save_model(converted, structure, compress_to_fp16=False)
            structure.with_suffix(".bin").replace(weights)
    return Conversion(
        folder / "gma.xml",
        "openvino.save_model(openvino.convert_model('gma.onnx'), 'gma.xml', compress_to_fp16=False)",
        "operators become OpenVINO's; weights stay float32 (the tool's own default would round them to float16).",
    )


def _for_torch(folder: Path, checkpoint: str, num_updates: int, attention: str) -> Conversion:
    from gma_lib.checkpoints import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(checkpoint)
    about = {"num_updates": str(num_updates), "attention": attention, "source_sha256": loaded.sha256}
    return Conversion(
        save_checkpoint(folder / "gma.safetensors", loaded.state, metadata=about),
        f"gma_lib.checkpoints.save_checkpoint('gma.safetensors', {loaded.name!r})",
        "none: PyTorch runs the network as written; the file holds weights and configuration.",
    )


def _for_ascend(folder: Path, precision: str) -> Conversion:
    """ONNX without 64-bit numbers, then atc; its precision is decided here, not when the model is loaded."""
    from gma_lib.backends.ascend import convert_for_card
    from gma_lib.rewrite import computes_wide, rewrite_file

    source, target = folder / "gma.onnx", folder / "gma_atc.onnx"
    rewritten = "no rewrite needed: the graph computes no int64 and no float64 value."
    if computes_wide(source):
        rewritten = rewrite_file(source, target).sentence()
    else:
        with written_whole(target) as partial:
            shutil.copyfile(source, partial)
    made = convert_for_card(folder, precision)
    kept = ", ".join(made["options"]["keep_dtype"]) or "everything"
    changes = f"{rewritten} Computed in {precision}, float32 kept for {kept}, for {made['soc']} ({made['chip_source']})."
    if made["unknown_operators"]:
        changes += f" Not known whether CANN {made['cann'] or '(version unknown)'} has: {', '.join(made['unknown_operators'])}."
    if made["simulated"]:
        changes = f"SIMULATED: a stand-in for atc made this. {changes}"
    return Conversion(folder / "gma.om", " ".join(made["command"]), changes)


CONVERTERS = {"onnxruntime": _for_onnxruntime, "openvino": _for_openvino}
