"""The files of a conversion: those it reads, and those it leaves for a backend."""

from dataclasses import dataclass
from pathlib import Path

from gma_lib import export, runs
from gma_lib.backends.base import PARTS


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
    parts = [path for path in name_parts(whole) if path.is_file()]
    for path in parts:
        if export.read_description(path) != export.read_description(whole):
            raise ValueError(f"{path} is of another export than {whole.name}: run 02_export again")
    return [whole, *parts]


def name_parts(whole: Path) -> list[Path]:
    """Where the network's three parts lie beside its file."""
    return [whole.with_name(f"{whole.stem}_{name}{whole.suffix}") for name in PARTS]


def describe_parts(at_once: int) -> str:
    """Say how a batch is computed."""
    how = "pair by pair" if at_once == 1 else f"in parts of {at_once} pairs"
    return f"A batch is computed {how}, so that memory does not grow with it."
