"""Where the files of a run are.

A run writes to ``outputs/<profile>/<run>/bs<N>/``. What does not depend on the run (the data set's
index, rendered frames) is shared in ``outputs/<profile>/data/``.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gma_lib.runs.files import PROJECT
from gma_lib.runs.precisions import PRECISIONS

SIMULATED = (
    "SIMULATED: a stand-in for the device made these numbers; they say nothing about a card."
)


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
    def data_folder(self) -> Path:
        return data_folder(profile=self.profile, outputs=self.outputs)

    @property
    def folder(self) -> Path:
        return self.outputs / self.profile / self.name / f"bs{self.batch_size}"

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
    """Check the parameters that every notebook shares and return the run.

    ``outputs`` is relative to the project, not to the working directory, which differs between
    JupyterLab and papermill.
    """
    # bool is an int to Python, not to a user
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is a whole number from 1 up, not {batch_size!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    name = run or f"{backend}-{precision}"
    for label, value in (("profile", profile), ("run", name)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(value)) or value == "data":
            raise ValueError(
                f"{label} names a folder: letters, digits, '_', '-' and '.', and not 'data'; "
                f"got {value!r}"
            )
    return Run(PROJECT / outputs, profile, backend, precision, batch_size, name)


def data_folder(*, profile: str, outputs: str | Path = "outputs") -> Path:
    """Folder of the data set's index and of rendered frames, shared by a profile's runs."""
    return PROJECT / outputs / profile / "data"
