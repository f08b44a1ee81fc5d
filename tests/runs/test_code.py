"""Comments, docstrings and layout are not code; everything else is."""

import os
import py_compile
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gma_lib.runs import code
from gma_lib.runs.code import digest_module
from gma_lib.runs.files import PACKAGE

WRITTEN = '"""Doc."""\n\nimport math\n\n\ndef area(r):\n    """Doc."""\n    return math.pi * r**2\n'


@pytest.fixture
def digest(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "gma_lib")
    (tmp_path / "gma_lib").mkdir()

    def digest(text):
        (tmp_path / "gma_lib" / "module.py").write_text(text, encoding="utf-8")
        return digest_module("gma_lib.module")

    return digest


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


OPEN_PROCESS = """
import sys
from pathlib import Path
import gma_lib.network.sizes  # which imports nothing that hashes code
file, old, new = Path(sys.argv[1]), *sys.argv[2:]
text = file.read_text()
assert old in text
from gma_lib.infer.means import describe_means
from gma_lib.runs import open_sealed
from gma_lib.pipeline.chain import write_record
from gma_lib.runs.code import require_loaded_code
from gma_lib.runs.run import Run
def make(name):
    open_sealed(Path(name).resolve(), {}, lambda folder: (folder / "a").touch(), with_code=True)
make("before")
file.write_text(text.replace(old, new))
import gma_lib.flow.warm_start
run = Run(Path("outputs").resolve(), "tiny", "openvino", "float32", 1, "one")
write = lambda: write_record(run, "05_evaluate", {}, {})
for compare in (lambda: make("after"), describe_means, require_loaded_code, write):
    try:
        compare()
        print("done")
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "refused"),
    [
        ("network/sizes.py", "STRIDE = 8 ", "STRIDE = 4 ", True),
        ("network/sizes.py", "STRIDE = 8 ", "STRIDE = = ", True),  # as while it is edited
        ("network/sizes.py", "STRIDE = 8 ", "STRIDE = 8 # ", False),
        ("network/model.py", "F.pad(STRIDE * flow", "F.pad(2 * STRIDE * flow", False),
        ("flow/warm_start.py", "import numpy as np", "import numpy as np; A = 1", False),
    ],
    ids=["code", "unfinished", "comment", "not loaded", "loaded later"],
)
def test_code_that_an_open_process_has_not_loaded_is_not_vouched_for(
    tmp_path, file, old, new, refused
):
    """It would seal a model of the old code, or name its flow, with the digest of the new."""
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "gma_lib"))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_PROCESS, str(copy / file), old, new],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^(?:done$|gma_lib/[\w/]+\.py\b)", done.stdout, re.M)
    assert found == [f"gma_lib/{file}" if refused else "done"] * 4, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert (tmp_path / "after").exists() is not refused
