"""The notebooks as files: prose and short calls, nothing stored, nothing hidden; 00 runs. The
others run in the tests of the pipeline.
"""

import ast
import json
import re

import papermill
import pytest
import yaml

from gma_lib.pipeline.parameters import (
    PARAMS,
    SETTINGS,
    Parameters,
    check_parameters,
    read_parameters,
)
from gma_lib.pipeline.stages import NOTEBOOKS, STAGES, read_cells


@pytest.fixture(params=["00_quickstart", *STAGES])
def notebook(request):
    return request.param


@pytest.fixture
def cells(notebook):
    return read_cells(notebook)


def code(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_no_outputs_are_stored(cells):
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_kernel_is_the_one_everybody_has(notebook):
    metadata = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in metadata
    assert "papermill" not in metadata


def test_cells_only_call(cells):
    """No logic that belongs in the library: definitions, loops over data, error handling, path
    arithmetic.
    """
    for source in code(cells):
        tree = ast.parse(source)
        for node in ast.walk(tree):
            assert not isinstance(
                node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.For | ast.While | ast.Try
            ), source
        assert "sys.path" not in source
        assert not re.search(r"^\s*[!%]", source, re.M), source


def test_cells_are_short_and_expressions_are_calls(cells):
    """At most twelve lines, not counting imports and declarations of parameters."""
    for source in code(cells):
        lines = [line for line in source.splitlines() if not re.match("(from|import) |$", line)]
        assert len(lines) <= 12 or all("# type: " in line for line in lines), source
        for node in ast.parse(source).body:
            assert not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call), source


def test_tables_are_shown_by_the_one_function_that_escapes_them(cells):
    for source in code(cells):
        assert not re.search(r"\.style\b|to_html|HTML\(|display", source), source


def test_prose_comes_first_and_last(cells):
    assert cells[0]["cell_type"] == "markdown"
    assert cells[-1]["cell_type"] == "markdown"


@pytest.mark.parametrize("stage", STAGES)
def test_the_last_code_cell_asserts_and_writes_the_record(stage):
    last = code(read_cells(stage))[-1]
    assert last.startswith("assert")
    assert "write_json" in last or "write_record" in last


def test_parameters_are_documented(cells):
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for line in "".join(tagged[0]["source"]).splitlines():
        assert re.fullmatch(r"\w+ = .+  # type: \S+( - .+)?", line), line


def declarations(stage):
    """The parameters as they are written: name -> value, type and description."""
    tagged = [c for c in read_cells(stage) if "parameters" in c["metadata"].get("tags", [])]
    return {line.split()[0]: line for line in "".join(tagged[0]["source"]).splitlines()}


def test_the_same_parameter_means_the_same_everywhere():
    known = {}
    for stage in STAGES:
        for name, line in declarations(stage).items():
            if name not in ("backend", "precision") or stage != "02_export":
                assert known.setdefault(name, line) == line


def test_a_setting_is_changed_in_one_cell_of_one_notebook():
    """02 has them all; after it only what locates the run is not null."""
    assert set(SETTINGS) <= read_parameters("02_export").keys()
    for stage in list(STAGES)[2:]:
        later = read_parameters(stage)
        assert later["backend"] is later["precision"] is None
        assert set(SETTINGS) & later.keys() == {"backend", "precision", "batch_size"}


def test_defaults_are_allowed():
    declared = set()
    for stage in STAGES:
        parameters = read_parameters(stage)
        declared |= parameters.keys()
        given = {name: item for name, item in parameters.items() if item is not None}
        assert check_parameters(given) == given
    assert declared | {"limit_s", "cell_limit_s", "keep_flow"} == set(Parameters.__annotations__)


@pytest.mark.parametrize("stage", STAGES)
def test_no_cell_assigns_a_parameter(stage):
    """``globals()`` are what the parameters cell and papermill set, also when a cell runs again."""
    for cell in read_cells(stage):
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            nodes = ast.walk(ast.parse("".join(cell["source"])))
            stored = {
                n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
            assert not stored & set(Parameters.__annotations__)


def test_exploring_never_touches_a_reproduced_run():
    """Defaults are what JupyterLab runs with; `make` and params/common.yaml give other folders."""
    common = yaml.safe_load((PARAMS / "common.yaml").read_text())
    for stage in STAGES:
        defaults = read_parameters(stage)
        assert defaults["outputs"] == "outputs/lab" != common["outputs"]
        assert stage == "01_data" or defaults["run"] == "interactive"


@pytest.mark.slow
def test_the_quickstart_runs_and_shows_one_picture(tmp_path, monkeypatch):
    """Two images, three lines, one picture; small, so that its model is soon made."""
    monkeypatch.setenv("GMA_CACHE", str(tmp_path / "cache"))
    done = papermill.execute_notebook(
        NOTEBOOKS / "00_quickstart.ipynb",
        None,
        parameters={"width": 160, "height": 128, "num_updates": 1},
        progress_bar=False,
        cwd=tmp_path,
    )
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert "(2, 128, 160): fastest pixel" in "".join(one.get("text", "") for one in outputs)
    pictures = [one for one in outputs if "image/jpeg" in one.get("data", {})]
    assert len(pictures) == 1
    assert "mean speed" in pictures[0].metadata["image/jpeg"]["alt"]
