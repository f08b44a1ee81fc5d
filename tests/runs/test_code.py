"""Comments, docstrings and layout are not code; everything else is."""

import os
import py_compile
import time
from pathlib import Path

import pytest

from gma_lib.runs import code
from gma_lib.runs.code import digest_module

WRITTEN = '"""Doc."""\n\nimport math\n\n\ndef area(r):\n    """Doc."""\n    return math.pi * r**2\n'


@pytest.fixture
def digest(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "gma_lib")
    (tmp_path / "gma_lib").mkdir()

    def digest(text):
        (tmp_path / "gma_lib" / "module.py").write_text(text, encoding="utf-8")
        digest_module.cache_clear()
        return digest_module("gma_lib.module")

    yield digest
    digest_module.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""Doc."""\n\n', "# a comment\n", True),
        ('    """Doc."""\n', '    """Another ²."""\n', True),
        ("math.pi * r**2", "(math.pi *\n        r ** 2)", True),
        ("r**2", "r**3", False),
        ("return math.pi", 'return "math.pi"', False),
    ],
)
def test_only_code_changes_the_digest(digest, old, new, same):
    assert old in WRITTEN
    assert (digest(WRITTEN) == digest(WRITTEN.replace(old, new))) is same


def test_modules_are_found_by_name():
    assert "gma_lib.runs.code" in code.list_loaded_modules()
    for name in ("gma_lib", "gma_lib.runs", "gma_lib.runs.code"):
        assert len(digest_module(name)) == 64
    assert digest_module("gma_lib.runs.nothing") is None


def test_bytecode_older_than_its_source_is_removed(tmp_path, monkeypatch):
    """Another source of the same size and time, as `rsync -a` leaves it, would not run at all."""
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    compiled = {}
    for name in ("same", "changed"):
        source = tmp_path / f"{name}.py"
        source.write_text("A = 1\n")
        os.utime(source, (1, 1))
        time.sleep(0.02)  # the clock of files has steps
        compiled[name] = Path(py_compile.compile(str(source)))
    time.sleep(0.02)
    (tmp_path / "changed.py").write_text("A = 2\n")
    os.utime(tmp_path / "changed.py", (1, 1))
    code.drop_stale_bytecode()
    assert compiled["same"].is_file()
    assert not compiled["changed"].exists()
