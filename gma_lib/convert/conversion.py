"""What a conversion leaves, and the two that need no tool: for ONNX Runtime and for PyTorch."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from gma_lib.export.trace import read_description, set_batch_size
from gma_lib.network.checkpoints import load_checkpoint, save_checkpoint
from gma_lib.runs.digests import hash_files
from gma_lib.runs.files import hash_value, write_atomically
from gma_lib.runs.precisions import refuse_precision


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
        return hash_value(list(self.digests.values()))

    @property
    def digests(self) -> dict[str, str]:
        """File name -> SHA-256 of all files that the backend loads."""
        weights = [file.with_suffix(".bin") for file in self.files if file.suffix == ".xml"]
        return hash_files([*self.files, *weights])


def find_sources(folder: Path) -> list[Path]:
    """List the exported files of a folder: the whole network and, if they exist, its parts."""
    parts = [folder / f"gma_{part}.onnx" for part in ("features", "context", "refine")]
    return [folder / "gma.onnx", *(path for path in parts if path.is_file())]


def describe_parts(at_once: int) -> str:
    """Say how a batch is computed."""
    how = "pair by pair" if at_once == 1 else f"in parts of {at_once} pairs"
    return f"A batch is computed {how}, so that memory does not grow with it."


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


def convert_to_torch(folder: Path, checkpoint: str, at_once: int) -> Conversion:
    """Write ``gma.safetensors`` with the configuration of the exported network."""
    loaded = load_checkpoint(checkpoint)
    exported = read_description(folder / "gma.onnx")
    about = {
        "num_updates": exported["num_updates"],
        "attention": exported["attention"],
        "at_once": str(at_once),
        "source_sha256": loaded.sha256,
    }
    return Conversion(
        (save_checkpoint(folder / "gma.safetensors", loaded.state, metadata=about),),
        f"gma_lib.network.checkpoints.save_checkpoint('gma.safetensors', {loaded.name!r})",
        "PyTorch runs the network as written, in its deploy form; the file holds weights and "
        f"configuration. {describe_parts(at_once)}",
    )
