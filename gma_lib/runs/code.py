"""Digests of this package's code: comments, docstrings and layout do not count."""

import ast
import sys
from functools import cache
from pathlib import Path

from gma_lib.runs.files import PACKAGE, hash_value

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def list_loaded_modules() -> list[str]:
    """List the modules of this package that this process has loaded."""
    return sorted(name for name in sys.modules if name.split(".")[0] == "gma_lib")


def locate_module(name: str) -> Path:
    """Return the source file of a module of this package, without importing it."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def digest_module(name: str) -> str | None:
    """SHA-256 of a module's syntax tree without docstrings; None if there is no such module."""
    path = locate_module(name)
    return hash_code(path) if path.is_file() else None


def hash_code(path: Path) -> str:
    """SHA-256 of a Python file's syntax tree without docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return hash_value(ast.dump(tree))
