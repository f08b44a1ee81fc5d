"""Digests of this package's code: comments, docstrings and layout do not count."""

import ast
import sys
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path

from gma_lib.runs.files import PACKAGE, hash_value
from gma_lib.runs.loaded import LOADED

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def drop_stale_bytecode() -> None:
    """Remove compiled modules of this package that are older than the last change of their source.

    Python compares size and modification time, both of which a copied file may share with the one
    that it replaces; the time of the last change cannot be set.
    """
    for source in PACKAGE.rglob("*.py"):
        compiled = Path(cache_from_source(str(source)))
        with suppress(OSError):  # none, or of an installation that cannot be written
            if compiled.stat().st_mtime_ns <= source.stat().st_ctime_ns:
                compiled.unlink()


def list_loaded_modules() -> list[str]:
    """List the modules of this package that this process has loaded."""
    return sorted(name for name in sys.modules if name.split(".")[0] == "gma_lib")


def locate_module(name: str) -> Path:
    """Return the source file of a module of this package, without importing it."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def digest_module(name: str) -> str | None:
    """SHA-256 of a module's syntax tree without docstrings; None if there is no such module."""
    path = locate_module(name)
    return hash_code(path) if path.is_file() else None


def hash_code(path: Path) -> str:
    """SHA-256 of a Python file's syntax tree without docstrings.

    Raises
    ------
    RuntimeError
        This process has loaded other code from this file: the digest would vouch for code that does
        not run here.
    """
    source = path.read_bytes()
    _require_same_code(path, source)
    return _hash_source(source)


def require_loaded_code() -> None:
    """Raise RuntimeError where a file of this package holds other code than this process has
    loaded from it: a record would name a commit that did not make it.
    """
    for path in [*LOADED.sources]:  # another thread may import
        with suppress(OSError):  # looked for, and not there
            _require_same_code(path, path.read_bytes())


def _require_same_code(path: Path, source: bytes) -> None:
    name, loaded = LOADED.sources.get(path, ("", source))
    if source != loaded and name in sys.modules and not _is_same_code(source, loaded):
        raise RuntimeError(
            f"{path.relative_to(PACKAGE.parent).as_posix()} changed after this process had loaded "
            "it: restart (in Jupyter, restart the kernel)"
        )


def _is_same_code(source: bytes, loaded: bytes) -> bool:
    with suppress(SyntaxError):  # as while it is edited
        return _hash_source(source) == _hash_source(loaded)
    return False


@cache
def _hash_source(source: bytes) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return hash_value(ast.dump(tree))
