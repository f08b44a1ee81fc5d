"""Where the files of a run are.

A run writes to ``outputs/<profile>/<run>/bs<N>/``. What does not depend on the run (the data set's
index, rendered frames) is shared in ``outputs/<profile>/data/``.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gma_lib.runs.files import locate_path

SIMULATED = (
    "SIMULATED: a stand-in for the device made these numbers; they say nothing about a card."
)


TAKEN = ("data", "index.html")  # in a profile's folder


class DoesNotFit(MemoryError):
    """A batch size does not fit the memory of this machine, or of its card.

    The pipeline gives it a row and goes on.
    """


@dataclass(frozen=True)
class Run:
    """One column of the report: a profile's data, a backend, a precision, a batch size.

    Attributes
    ----------
    outputs
        Folder that holds all profiles.
    profile
        Name of a file in ``params/``: which data, which weights.
    backend, precision
        Runtime and number format; always explicit.
    batch_size
        Pairs per call of the network.
    name
        Folder of the run; ``<backend>-<precision>`` unless named.
    """

    outputs: Path
    profile: str
    backend: str
    precision: str
    batch_size: int
    name: str

    @property
    def title(self) -> str:
        """Run and batch size, as headings say it."""
        return f"{self.name}, batch size {self.batch_size}"

    @property
    def data_folder(self) -> Path:
        return data_folder(profile=self.profile, outputs=self.outputs)

    @property
    def index(self) -> Path:
        """The page over all runs of the profile."""
        return self.outputs / self.profile / "index.html"

    @property
    def folder(self) -> Path:
        return self.outputs / self.profile / self.name / f"bs{self.batch_size}"

    @property
    def settings_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def flow_folder(self) -> Path:
        return self.folder / "flow"


def open_run(
    *,
    profile: str,
    backend: str,
    precision: str,
    batch_size: int,
    run: str | None = None,
    outputs: str = "outputs",
) -> Run:
    """Return the run that the parameters name, which ``gma_lib.pipeline.parameters`` checks.

    ``outputs`` is relative to the project, not to the working directory, which differs between
    JupyterLab and papermill.
    """
    name = run or f"{backend}-{precision}"
    return Run(locate_path(outputs), profile, backend, precision, batch_size, name)


def check_folder_name(name: str) -> None:
    """Raise ValueError unless a profile or a run may have this name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) or name.lower() in TAKEN:
        taken = " or ".join(TAKEN)
        raise ValueError(f"should be a folder's name: letters, digits, '_', '-', '.'; not {taken}")


def list_batch_sizes(folder: Path) -> list[int]:
    """The batch sizes that have a folder below that of a run, as this package names it."""
    names = (re.fullmatch(r"bs([1-9][0-9]*)", path.name, re.ASCII) for path in folder.glob("bs*"))
    return sorted(int(name[1]) for name in names if name)


def data_folder(*, profile: str, outputs: str | Path = "outputs") -> Path:
    """Folder of the data set's index and of rendered frames, shared by a profile's runs."""
    return locate_path(outputs) / profile / "data"
