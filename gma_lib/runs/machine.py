"""This machine: hardware, library versions, and the lock that keeps measurements undisturbed."""

import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from portalocker import LockFlags

from gma_lib.runs.files import IN_CHECKOUT, PROJECT
from gma_lib.runs.processes import hold_lock

CPUINFO = Path("/proc/cpuinfo")  # of Linux
LIMITS = (
    *("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"),
    *("NPY_DISABLE_CPU_FEATURES", "OPENCV_CPU_DISABLE"),
)
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds in so many
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


def find_commit() -> str | None:
    """The commit of the checkout, with ``+changes`` where it differs and ``+unknown`` where git
    cannot tell; None for a package.
    """
    if not IN_CHECKOUT:  # the current folder may be in another project's repository
        return None
    if (answer := ask_git("rev-parse", "HEAD", "--show-prefix")) is None:
        return None
    commit, folder, *_ = answer.decode().split("\n")
    if folder:  # a copy inside another project's repository
        return None
    # None is no answer: a damaged index, a wrong setting, a disk too slow
    state = {b"": "", None: "+unknown"}
    return commit + state.get(
        ask_git("status", "--porcelain", "--untracked-files=normal"), "+changes"
    )


def name_commit(commit: str | None) -> str:
    """Return a commit as pages name it: seven characters of it, and in words what follows the +."""
    name, _, state = (commit or "unknown").partition("+")
    told = {"": "", "changes": " with changes"}.get(state, f" (state {state})")
    return f"{name[:7]}{told}"


def ask_git(*arguments: str) -> bytes | None:
    """Return what git answers in the project; None where it refuses, or is not installed."""
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set while another one's hook runs
    here = {name: value for name, value in os.environ.items() if name not in elsewhere}
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, timeout=30, env=here
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def describe_machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, memory in bytes."""
    return {
        "processor": find_processor(),
        "cores": count_cores(),
        "memory_bytes": find_memory(),
    }


def describe_computing() -> dict[str, str]:
    """Instruction sets and threads, as the libraries have chosen them in this process."""
    import torch

    # an empty list is left out
    numpy_uses = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return {
        "instruction set": f"torch {torch.backends.cpu.get_cpu_capability()}; "
        f"numpy {' '.join(numpy_uses)}; opencv {cv2.getCPUFeaturesLine()}"
        + "".join(f"; {one}" for one in list_limits()),
        "threads": str(torch.get_num_threads()),
    }


def find_processor() -> str:
    """Model name of the processor."""
    if found := re.search(r"^model name.*?:(.*)", _read_cpuinfo(), re.MULTILINE):
        return found[1].strip()
    return platform.processor() or platform.machine()


def identify_processor() -> str:
    """Model name of the processor and its instruction sets, by which runtimes choose their code; of
    virtual machines the name alone does not tell them.
    """
    if not (cpuinfo := _read_cpuinfo()):
        return find_processor()
    found = re.search(r"^(?:flags|Features)\s*:(.*)", cpuinfo, re.MULTILINE)
    flags = found[1].split() if found else []
    sets = [name for name in flags if re.match("avx|amx|fma|f16c|sse|asimd|sve|bf16", name)]
    return f"{find_processor()} ({' '.join(sorted(sets) + list_limits())})"


def list_limits() -> list[str]:
    """List the environment variables that keep libraries from using instruction sets."""
    return [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]


def is_bfloat16_fast() -> bool:
    """Whether this processor computes bfloat16 faster than float32: with AMX, and AMD's with
    AVX-512 BF16; Intel's with that alone are slower (docs/performance.md), and x86 processors
    without either emulate it. True where nothing tells.
    """
    found = _read_cpuinfo()
    is_fast = "amx_bf16" in found or ("avx512_bf16" in found and "GenuineIntel" not in found)
    return is_fast or "vendor_id" not in found  # which x86 processors have


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    found = _read_cpuinfo()
    return "avx512_bf16" in found or "amx_bf16" in found


def _read_cpuinfo() -> str:
    """What Linux says of the processor; empty elsewhere."""
    try:
        return CPUINFO.read_text()
    except OSError:
        return ""


def count_cores() -> int:
    """Cores that this process may use: fewer than the machine has, where a container's quota is
    less.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        allowed, period = QUOTA.read_text().split()
        return max(1, min(cores, math.ceil(int(allowed) / int(period))))
    except (OSError, ValueError):  # no such limit, or "max"
        return cores


def find_memory() -> int:
    """Bytes that this process can use: the machine's memory, or the container's lower limit.

    GMA_MEMORY_BYTES, an environment variable, lowers it further, on shared machines.
    """
    import psutil

    limits: list[int] = [psutil.virtual_memory().total]
    if "GMA_MEMORY_BYTES" in os.environ:
        if not (given := os.environ["GMA_MEMORY_BYTES"]).isdecimal():
            raise ValueError(f"GMA_MEMORY_BYTES is a whole number of bytes, not {given!r}")
        limits.append(int(given))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(limits)


def find_versions(names: Iterable[str] = VERSIONED) -> dict[str, str]:
    """Versions of those packages that are installed, by default of those that decide numbers. Of a
    package that this process has loaded, the loaded version: its files may have been replaced.
    """
    versions = {name: _find_version(name) for name in names}
    return {name: version for name, version in versions.items() if version}


def _find_version(name: str) -> str | None:
    module = "cv2" if name.startswith("opencv") else name
    loaded = getattr(sys.modules.get(module), "__version__", None)
    try:
        installed = metadata.version(name)
    except (metadata.PackageNotFoundError, OSError):  # the latter of an interrupted installation
        installed = None
    if not installed and not loaded and find_spec(module):
        installed = _find_version_by_files(module)
    # one of them may say more of the same version: 5.0.0.93 and 5.0.0, 2026.4.1 and 2026.4.1-22982
    if loaded and installed:
        short, long = sorted((loaded, installed), key=len)
        if re.match(rf"{re.escape(short)}(?!\d|\.?(?:a|b|rc|dev|post)\d)", long):
            return installed
    return loaded or installed


def _find_version_by_files(module: str) -> str:
    """Version of whatever distribution holds a module, as onnxruntime-gpu holds onnxruntime."""
    for one in metadata.distributions():
        with suppress(OSError):  # of what an interrupted installation has left
            if any(file.parts[0] == module for file in one.files or ()):
                return one.version
    return "unknown"


def locate_machine_lock() -> Path:
    """Return the lock of all runs of a user on this machine, whichever checkout they belong to and
    wherever their results go: in the user's folder for what runs, ``XDG_RUNTIME_DIR``, or, where
    that is absent or cannot be written, as under cron, in ``/tmp``.
    """
    user = getattr(os, "getuid", int)()  # on Windows, each has a temporary folder of their own
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{user}")
    if os.path.isdir(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime, "gma", "machine.lock")
    # not TMPDIR, of which every job of a batch system has another
    is_shared = hasattr(os, "getuid") and os.access("/tmp", os.W_OK | os.X_OK)
    temporary = "/tmp" if is_shared else tempfile.gettempdir()
    return Path(temporary, f"gma-{user}", "machine.lock")


def exclusive_machine() -> AbstractContextManager[None]:
    """Hold the machine alone, for a measurement; wait until no stage runs."""
    return hold_lock(locate_machine_lock(), "the machine: another stage works or measures")


def shared_machine() -> AbstractContextManager[None]:
    """Hold the machine together with other stages; wait until no measurement runs."""
    what = "the machine: another stage measures"
    return hold_lock(locate_machine_lock(), what, LockFlags.SHARED)
