"""Check this machine: ``make doctor``."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click

from gma_lib import ascend, perf, runs

NEEDED = (
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "cv2",
    "matplotlib",
    "pandas",
    "papermill",
    "nbconvert",
    "torch",
)
LOCK = runs.RESOURCES / "requirements.lock"


@dataclass(frozen=True)
class Finding:
    """One line: OK, NOT OK (needed, with the remedy), or absent (optional, with what it would
    give).
    """

    word: str
    what: str
    detail: str


def check_machine(ais_python: str | None = None) -> Iterator[Finding]:
    """Everything that is needed or optional, in the order in which a user would fix it."""
    version = sys.version.split()[0]
    yield _needed(sys.version_info >= (3, 11), "Python", version, "install Python 3.11 or newer")
    yield from map(_package, NEEDED)
    yield from _differences_from_lock()
    yield _needed(
        shutil.which("make") is not None, "make", shutil.which("make") or "", "install GNU make"
    )
    yield _kernel()
    free = shutil.disk_usage(runs.PROJECT).free
    yield _needed(
        free > 2e9,
        "free disk",
        f"{free / 1e9:.0f} GB",
        "the demo writes about 0.5 GB, full Sintel about 8 GB a batch size",
    )
    memory = runs.find_memory()
    yield _needed(memory > 3e9, "memory", f"{memory / 1e9:.0f} GB", "batch size 1 needs about 2 GB")
    yield Finding("OK", "processor", f"{runs.find_processor()}, {runs.count_cores()} cores")
    yield _optional(
        has_bf16(),
        "AVX-512 BF16 or AMX",
        "bfloat16 at full speed",
        "bfloat16 would be emulated or refused",
    )
    if has_bf16():
        yield Finding("OK", "bfloat16", perf.advise())
    yield _gpu()
    yield from _ascend(ais_python)


def _needed(good: bool, what: str, detail: str, remedy: str) -> Finding:
    return (
        Finding("OK", what, detail)
        if good
        else Finding("NOT OK", what, f"{detail}: {remedy}".lstrip(": "))
    )


def _optional(there: bool, what: str, detail: str, absent: str) -> Finding:
    return Finding("OK" if there else "absent", what, detail if there else f"optional: {absent}")


def _package(name: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return Finding(
            "NOT OK", name, f"{error}: delete .venv and run make again, or pip install -e ."
        )
    return Finding("OK", name, getattr(module, "__version__", "").split("-")[0])


def _differences_from_lock() -> Iterator[Finding]:
    """Installed versions that are not the locked ones; numbers may then differ in their last
    digits.
    """
    if not LOCK.is_file():
        return
    for line in LOCK.read_text().splitlines():
        name, _, locked = line.partition("==")
        try:
            found = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            yield Finding("NOT OK", name, f"not installed; requirements.lock has {locked}")
            continue
        if found != locked:
            yield Finding("differs", name, f"{found} installed, {locked} in requirements.lock")


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        where = KernelSpecManager().get_kernel_spec("python3").resource_dir
    except NoSuchKernel:
        return Finding("NOT OK", "Jupyter kernel python3", "pip install ipykernel")
    return Finding(
        "OK", "Jupyter kernel python3", "" if where.startswith(sys.prefix) else f"from {where}"
    )


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _gpu() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("absent", "GPU", "optional: PyTorch is not installed")
    there = torch.cuda.is_available()
    detail = f"{torch.cuda.get_device_name()}: BACKEND=cuda" if there else ""
    return _optional(there, "GPU", detail, "none that PyTorch can use; everything runs on the CPU")


def _ascend(ais_python: str | None) -> Iterator[Finding]:
    """CANN, the card and the Python that has ais_bench; only for BACKEND=ascend."""
    cann = ascend.toolkit.find_toolkit()
    detail = ""
    if cann:
        opsets = ascend.operators.OPSETS.get((cann.version or "").split(".")[0])
        reads = f"opset {opsets[0]} to {opsets[-1]}" if opsets else "opsets not known"
        detail = f"{cann.script}, version {cann.version or 'not found'}, {reads}"
    yield _optional(cann is not None, "CANN", detail, "the Ascend toolkit; only for an Ascend card")
    environment = ascend.toolkit.load_tool_environment(cann)
    try:
        python = ascend.toolkit.find_ais_python(ais_python, environment)
        yield Finding("OK", "ais_bench", python)
    except FileNotFoundError:
        python = sys.executable
        yield Finding(
            "absent",
            "ais_bench",
            "optional: runs .om models; AIS_PYTHON= names the interpreter that has it",
        )
    try:
        for one in ascend.chip.find_chips(python=python, environment=environment):
            memory = f", {one.memory_bytes / 1e9:.1f} GB" if one.memory_bytes else ""
            yield Finding(
                "OK", "Ascend chip", f"{one.soc}, device {one.device}{memory} ({one.source})"
            )
    except ascend.chip.NoChipFound as error:
        yield Finding("absent", "Ascend chip", f"optional: {error}")


@click.command("doctor")
@click.option("--ais-python", help="Interpreter that has ais_bench.")
def main(ais_python: str | None) -> None:
    """Check this machine: a line per finding; exit code 1 if something needed is missing."""
    words = set()
    for finding in check_machine(ais_python):  # as they come: the last import what may be missing
        click.echo(f"{finding.word:7} {finding.what:24} {finding.detail}")
        words.add(finding.word)
    if "NOT OK" in words:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
