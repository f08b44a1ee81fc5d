"""The house rules of CONTRIBUTING that no other tool checks."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from gma_lib.runs.files import PROJECT

LIBRARY = sorted((PROJECT / "gma_lib").rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def short(path: Path) -> str:
    return path.relative_to(PROJECT / "gma_lib").as_posix()


# --- imports --------------------------------------------------------------------------------------


def imported(node: ast.AST) -> list[str]:
    """What an import statement names: ``package.module``, or nothing if it is no import."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_no_imports_in_a_circle():
    modules = {".".join(path.with_suffix("").relative_to(PROJECT).parts): path for path in LIBRARY}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {}
    for name, path in modules.items():
        named = [one for node in parse(path).body for one in imported(node)]
        graph[name] = {one if one in modules else one.rpartition(".")[0] for one in named}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    "module",
    ["gma_lib", "gma_lib.flow", "gma_lib.report.figures"]
    + [f"gma_lib.flow.{path.stem}" for path in LIBRARY if path.parent.name == "flow"],
)
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"onnx", "onnxruntime", "torch", "gma_lib.ascend", "gma_lib.backends"}
    assert module in loaded
    assert not heavy & set(loaded)
