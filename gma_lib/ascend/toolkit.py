"""CANN: where it is installed, which version, the environment of its tools, and the Python that has
ais_bench.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gma_lib.ascend.tool import run_briefly

ROOT = Path("/usr/local/Ascend")
# From 8.5 on, up to 8.3, and the two packages that hold the runtime only
PLACES = ("cann", "ascend-toolkit", "nnrt", "nnae")
VERSION_FILES = (
    "version.info",
    "version.cfg",
    "latest/version.cfg",
    "latest/version.info",
    "latest/*-linux/ascend_*_install.info",
    "*-linux/ascend_*_install.info",
)


@dataclass(frozen=True)
class Toolkit:
    """An installation of CANN.

    Attributes
    ----------
    script
        Its ``set_env.sh``.
    version
        ``8.0.RC1``, or None where no file says so.
    """

    script: Path
    version: str | None


def find_toolkit(root: Path = ROOT, environment: Mapping[str, str] | None = None) -> Toolkit | None:
    """CANN's ``set_env.sh``: where ASCEND_TOOLKIT_HOME points, then the newer place, then the older
    ones.
    """
    home = (environment or os.environ).get("ASCEND_TOOLKIT_HOME")
    folders = ([Path(home), Path(home).parent] if home else []) + [
        Path(root) / place for place in PLACES
    ]
    for folder in folders:
        if (folder / "set_env.sh").is_file():
            return Toolkit(folder / "set_env.sh", read_version(folder))
    return None


def read_version(folder: Path) -> str | None:
    """Read the version that an installation's own files give."""
    for pattern in VERSION_FILES:
        for file in sorted(Path(folder).glob(pattern)):
            found = re.search(
                r"version\s*=\s*(?:\[\s*)?(?:[A-Za-z-]+:\s*)?v?(\d+\.\d+(?:\.[A-Za-z0-9]+)*)",
                file.read_text(errors="replace"),
                re.I,
            )
            if found:
                return found[1]
    return None


def load_tool_environment(
    toolkit: Toolkit | None, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return this environment with what CANN's script adds; unchanged where ``atc`` is found
    already or no CANN is.
    """
    base = dict(os.environ if base is None else base)
    if toolkit is None or shutil.which("atc", path=base.get("PATH")):
        return base
    command = ["bash", "-c", 'source "$1" >/dev/null 2>&1; env -0', "set_env", str(toolkit.script)]
    done = run_briefly(command, base)
    if done.returncode != 0:
        raise RuntimeError(f"{toolkit.script} could not be read: {done.stderr.strip()[:200]}")
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def find_ais_python(named: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Find the interpreter that has ais_bench: the named one, else this one, else ``python3``.

    Raises
    ------
    FileNotFoundError
        When none has it, with where to get it.
    """
    for python in [named] if named else [sys.executable, "python3"]:
        # the tool whole: others call themselves ais_bench, too
        if has_modules(python, environment, "ais_bench.infer", "aclruntime"):
            return python
    tried = named or f"{sys.executable}, python3"
    raise FileNotFoundError(
        f"no ais_bench with aclruntime in {tried}: install both wheels (docs/ascend.md says where "
        "from; there is none for a Python newer than 3.11) "
        "and name that interpreter with --set ais_python=/path/to/python (make: AIS_PYTHON=)"
    )


def has_modules(python: str, environment: Mapping[str, str] | None, *names: str) -> bool:
    """Whether an interpreter runs and has modules, which are not loaded."""
    code = "import sys, importlib.util as u\nfor name in sys.argv[1:]: u.find_spec(name).name"
    try:
        return run_briefly([python, "-c", code, *names], environment).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
