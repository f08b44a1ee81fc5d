"""Check this machine: ``gma doctor``."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from gma_lib import ascend, perf, runs
from gma_lib.doctor.installation import Finding, check_python, need, offer

NEEDED = ("numpy", "onnx", "openvino", "cv2", "av", "matplotlib", "torch")
FOR_NOTEBOOKS = ("onnxruntime", "pandas", "papermill", "nbconvert", "ipykernel")
LOCK = runs.RESOURCES / "requirements.lock"


def check_machine(ais_python: str | None = None) -> Iterator[Finding]:
    """Everything that is needed or optional, in the order in which a user would fix it."""
    yield check_python()
    yield from _installations()
    yield from map(_package, NEEDED)
    yield from map(_package_for_notebooks, FOR_NOTEBOOKS)
    yield from _differences_from_lock()
    yield _kernel()
    free = shutil.disk_usage(runs.PROJECT).free
    yield need(
        free > 2e9,
        "free disk",
        f"{free / 1e9:.0f} GB",
        "the demo writes about 0.5 GB; full Sintel about 8 GB, and 1 GB per further batch size",
    )
    memory = runs.find_memory()
    yield need(memory > 3e9, "memory", f"{memory / 1e9:.0f} GB", "batch size 1 needs about 2 GB")
    yield Finding("OK", "processor", f"{runs.find_processor()}, {runs.count_cores()} cores")
    yield offer(
        runs.has_bf16(),
        "AVX-512 BF16 or AMX",
        "bfloat16 and int8",
        "bfloat16 and int8 are refused, except that PyTorch emulates bfloat16 slowly",
    )
    if runs.has_bf16():
        slow = "slower than float32, because this Intel processor has no AMX"
        advice = perf.advise(perf.load_precisions()) if runs.is_bfloat16_fast() else slow
        yield Finding("OK", "bfloat16", advice)
    yield _gpu()
    yield from _ascend(ais_python)


def _package(name: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # the latter where a library of its own is missing
        return Finding(
            "NOT OK", name, f"{error}: delete .venv and run make again, or pip install -e ."
        )
    return Finding("OK", name, getattr(module, "__version__", "").split("-")[0])


def _package_for_notebooks(name: str) -> Finding:
    found = _package(name)
    absent = "only for gma reproduce: pip install 'gma-lib[notebooks]'"
    return offer(found.word == "OK", name, found.detail, absent)


def _installations() -> Iterator[Finding]:
    """More than one copy of this package on the path: which of them is imported is chance."""
    there = {Path(place).resolve() for place in sys.path}
    found = sorted(str(place) for place in there if (place / "gma_lib" / "__init__.py").is_file())
    if len(found) > 1:
        remedy = "keep one (pip uninstall gma-lib, or change PYTHONPATH)"
        yield Finding("NOT OK", "gma-lib", f"in {' and '.join(found)}: {remedy}")


def _differences_from_lock() -> Iterator[Finding]:
    """Installed versions that are not the locked ones; numbers may then differ in their last
    digits. What is not installed is missed in a checkout only: a package has extras.
    """
    if not LOCK.is_file():
        return
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    for wanted in (Requirement(line.rstrip("\\ ")) for line in lines):
        if wanted.marker and not wanted.marker.evaluate():
            continue
        locked = f"{wanted.specifier}"
        found = None
        with suppress(metadata.PackageNotFoundError, OSError):
            found = metadata.version(wanted.name)
        if not found:  # nor of what an interrupted installation has left
            if runs.IN_CHECKOUT:
                remedy = f"not installed; requirements.lock has {locked}"
                yield Finding("NOT OK", wanted.name, remedy)
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            yield Finding(
                "differs", wanted.name, f"{found} installed, {locked} in requirements.lock"
            )


def _kernel() -> Finding:
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return Finding("absent", "Jupyter kernel python3", "optional: comes with ipykernel")
    try:
        where = KernelSpecManager().get_kernel_spec("python3").resource_dir
    except NoSuchKernel:
        return Finding("NOT OK", "Jupyter kernel python3", "pip install ipykernel")
    return Finding(
        "OK", "Jupyter kernel python3", "" if where.startswith(sys.prefix) else f"from {where}"
    )


def _gpu() -> Finding:
    try:
        import torch
    except (ImportError, OSError):
        return Finding("absent", "GPU", "optional: PyTorch is not there, or cannot be loaded")
    there = torch.cuda.is_available()
    detail = f"{torch.cuda.get_device_name()}: BACKEND=cuda" if there else ""
    return offer(there, "GPU", detail, "none that PyTorch can use; everything runs on the CPU")


def _ascend(ais_python: str | None) -> Iterator[Finding]:
    """CANN, the card and the Python that has ais_bench; only for BACKEND=ascend."""
    cann = ascend.toolkit.find_toolkit()
    detail = ""
    if cann:
        opsets = ascend.operators.OPSETS.get((cann.version or "").split(".")[0])
        reads = f"opset {opsets[0]} to {opsets[-1]}" if opsets else "opsets not known"
        detail = f"{cann.script}, version {cann.version or 'not found'}, {reads}"
    yield offer(cann is not None, "CANN", detail, "the Ascend toolkit; only for an Ascend card")
    environment = ascend.toolkit.load_tool_environment(cann)
    try:
        python = ascend.toolkit.find_ais_python(ais_python, environment)
        remedy = "it needs pkg_resources, which is not there: install 'setuptools<82'"
        has_all = ascend.toolkit.has_modules(python, environment, "pkg_resources")
        yield need(has_all, "ais_bench", python, remedy)
    except FileNotFoundError:
        python = sys.executable
        yield Finding(
            "absent",
            "ais_bench",
            "optional: runs .om models; --ais-python names the interpreter that has it (for "
            "gma reproduce: --set ais_python=)",
        )
    try:
        for one in ascend.chip.find_chips(python=python, environment=environment):
            memory = f", {one.memory_bytes / 1e9:.1f} GB" if one.memory_bytes else ""
            yield Finding(
                "OK", "Ascend chip", f"{one.soc}, device {one.device}{memory} ({one.source})"
            )
    except ascend.chip.NoChipFound as error:
        yield Finding("absent", "Ascend chip", f"optional: {error}")
