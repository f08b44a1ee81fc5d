"""What a conversion leaves: the files that a runtime loads, and what was done to make them."""

from dataclasses import dataclass
from pathlib import Path

from gma_lib.runs.files import hash_file, hash_value


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
        weights = [file.with_suffix(".bin") for file in self.files if file.suffix == ".xml"]
        return hash_value([hash_file(file) for file in (*self.files, *weights)])


def find_sources(folder: Path) -> list[Path]:
    """List the exported files of a folder: the whole network and, if they exist, its parts."""
    parts = [folder / f"gma_{part}.onnx" for part in ("features", "context", "refine")]
    return [folder / "gma.onnx", *(path for path in parts if path.is_file())]


def describe_parts(at_once: int) -> str:
    """Say how a batch is computed."""
    how = "pair by pair" if at_once == 1 else f"in parts of {at_once} pairs"
    return f"A batch is computed {how}, so that memory does not grow with it."
