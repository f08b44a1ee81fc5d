"""Where the files of a run lie, and what every JSON file of this package carries.

Everything of one run lies in ``outputs/<profile>/<run>/bs<N>/``; what does not depend on the run
(the data set's index, frames that the package renders) is shared in ``outputs/<profile>/data/``.
"""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import gma_lib

PROJECT = Path(__file__).resolve().parents[2]
SCHEMA = 1
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
SIMULATED = (
    "SIMULATED: a stand-in for the device made these numbers; they say nothing about a card."
)
VERSIONED = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "opencv-python-headless",
    "papermill",
)


class DoesNotFit(MemoryError):
    """A batch size that the memory of this machine, or of its card, does not hold; the pipeline
    gives it a row and goes on.
    """


@dataclass(frozen=True)
class Run:
    """One column of the report: a profile's data, a backend, a precision and a batch size.

    Attributes
    ----------
    outputs
        Folder that holds all profiles.
    profile
        Name of a file in ``params/``: which data, which weights.
    backend, precision
        What computes, and in which number format; always explicit.
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

    def of_batch_size(self, batch_size: int) -> "Run":
        """The same run at another batch size."""
        return Run(self.outputs, self.profile, self.backend, self.precision, batch_size, self.name)


def open_run(
    *,
    profile: str,
    backend: str,
    precision: str,
    batch_size: int,
    run: str | None = None,
    outputs: str = "outputs",
) -> Run:
    """Check the parameters that every notebook shares and return where its files lie.

    ``outputs`` is taken relative to the project, never to the working directory, which differs
    between JupyterLab and papermill.
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
                f"{label} names a folder: letters, digits, '_', '-' and '.', and not 'data'; got {value!r}"
            )
    return Run(PROJECT / outputs, profile, backend, precision, batch_size, name)


def data_folder(*, profile: str, outputs: str | Path = "outputs") -> Path:
    """Where a profile's runs share the data set's index and frames that were rendered."""
    return PROJECT / outputs / profile / "data"


# --- JSON files -----------------------------------------------------------------------------------


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffix (OpenCV chooses the format by it) and starts with a dot, so
    no reader of this package takes it for a result.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` with its schema and provenance, whole or not at all; NaN and infinity
    become null.
    """
    text = json.dumps(
        {"schema": SCHEMA, "provenance": provenance(), **_plain(content)}, indent=1, allow_nan=False
    )
    with written_whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, made_by: str) -> dict[str, Any]:
    """Read a JSON file of this package; a missing one says which notebook to run first."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{shown(path)} is missing: run {made_by} first, with the same parameters"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{shown(path)} is damaged ({error}): delete it and run {made_by} again"
        ) from error
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"{shown(path)} has schema {content.get('schema')}, this version reads {SCHEMA}: run {made_by} again"
        )
    return content


def _plain(value: Any) -> Any:
    """Paths, NumPy numbers and NaN as what JSON can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return shown(value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shown(path: Path) -> str:
    """A path as the reader should see it: relative to the project where it lies inside."""
    path = Path(path)
    return (
        str(path.relative_to(PROJECT))
        if path.is_absolute() and path.is_relative_to(PROJECT)
        else str(path)
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a plain value, for keys that say whether something is up to date."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


# --- provenance -----------------------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """What made a result: package, commit, machine, versions, time."""
    return {
        "package": gma_lib.__version__,
        "commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | versions(),
    }


def provenance_line() -> str:
    """What made a page, in a sentence for its foot."""
    made, here = provenance(), machine()
    versions_line = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"Made by gma_lib {made['package']}, commit {made['commit'] or 'unknown'}, on {made['created']}; "
        f"{here['processor']}, {here['cores']} cores, {here['memory_bytes'] / 1e9:.0f} GB; {versions_line}."
    )


def git_commit() -> str | None:
    """The commit of the working tree, with ``+changes`` where it differs; None outside a checkout."""
    answer = _git("rev-parse", "HEAD")
    return answer and answer + ("+changes" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes."""
    return {"processor": processor(), "cores": cores(), "memory_bytes": memory_bytes()}


def processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process can count on: the machine's, or its container's limit where that is
    lower.

    The environment variable GMA_MEMORY_BYTES lowers it further, for a machine that is to be shared.
    """
    import psutil

    limits = [psutil.virtual_memory().total]
    if "GMA_MEMORY_BYTES" in os.environ:
        limits.append(int(os.environ["GMA_MEMORY_BYTES"]))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(limits)


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers; those that are not installed are left out."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
