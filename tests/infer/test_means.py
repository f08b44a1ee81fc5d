"""What flow depends on is all named, or half of a clip could be another library's."""

import ast
import sys
from importlib.metadata import packages_distributions

import pytest

from gma_lib.infer import means
from gma_lib.runs.files import PACKAGE

# Libraries that move, check or show what is computed, and decode weights and settings exactly
DECIDES_NO_FLOW = {
    *("dask", "distributed", "flow-vis", "ipython", "lazy-loader", "matplotlib", "packaging"),
    *("platformdirs", "portalocker", "psutil", "pydantic", "PyYAML", "requests", "rich"),
    *("safetensors", "simplejpeg", "tqdm", "typing_extensions", "urllib3"),
}


def list_imports(packages):
    """Names of what packages of this one import anywhere in their code, as ``a.b.c``."""
    for path in (path for package in packages for path in (PACKAGE / package).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("more", [(), means.MAKING, (*means.MAKING, "training")])
def test_all_code_that_decides_flow_is_named(more):
    """infer builds models of its own for `gma_lib.load`; int8 is calibrated by training."""
    own = {name.split(".")[1] for name in list_imports(means.DECIDING) if name[:8] == "gma_lib."}
    assert own - {"__version__"} <= {*means.DECIDING, *means.MAKING}
    own = {name.split(".")[1] for name in list_imports(more) if name[:8] == "gma_lib."}
    assert own - {"__version__"} <= {*means.DECIDING, *means.MAKING, "training"}


def test_all_libraries_that_decide_flow_are_named():
    packages = (*means.DECIDING, *means.MAKING)
    modules = {name.split(".")[0] for name in list_imports(packages)} - {"gma_lib"}
    known = packages_distributions()
    found = {known[one][0] for one in modules - sys.stdlib_module_names if one in known}
    named = set(means.describe_all_means("openvino", "float32")["libraries"])
    assert found - DECIDES_NO_FLOW <= named
    assert {"av", "pillow", "scipy"} <= named


@pytest.mark.parametrize(
    ("backend", "precision", "decide"),
    [
        ("openvino", "bfloat16", True),
        ("torch", "bfloat16", True),
        ("openvino", "int8", True),
        ("openvino", "float32", False),  # rounding
        ("cuda", "float16", False),
        ("ascend", "float16", False),
    ],
)
def test_threads_count_where_they_change_more_than_rounding(
    monkeypatch, backend, precision, decide
):
    monkeypatch.setattr(means, "count_cores", lambda: 3)
    wanted = [{"threads": 3}, {"threads": 2}] if decide else [{}, {}]
    assert [means.describe_threads(backend, precision, one) for one in (None, 2)] == wanted
    monkeypatch.setattr(means, "find_gpu", lambda name: None)
    told = means.describe_all_means(backend, precision, 2)
    assert told.get("threads") == (2 if decide else None)
