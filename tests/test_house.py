"""The house rules of CONTRIBUTING that no other tool checks."""

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

from gma_lib.runs.files import PROJECT

LIBRARY = sorted((PROJECT / "gma_lib").rglob("*.py"))
TESTS = Path(__file__).parent
LONGEST_FUNCTION, LONGEST_MODULE, MOST_EXCEPTIONS = 60, 450, 30
READ_FROM_TOP_TO_BOTTOM = "network/model.py"  # the one module that may be longer
# Third-party packages that take long to import or need not be installed: these alone may be
# imported where they are used.
HEAVY = {
    *("IPython", "acl", "ais_bench", "dask", "distributed", "ipywidgets", "jupyter_client"),
    *(
        "matplotlib",
        "nbclient",
        "nbconvert",
        "nbformat",
        "nncf",
        "onnx",
        "onnxruntime",
        "openvino",
        "pandas",
    ),
    *("papermill", "psutil", "rocrate", "safetensors", "scipy", "skimage", "torch"),
    *("tqdm", "traitlets"),
}
# Names that two modules share because each is the usual word for what it does.
SHARED_NAMES = {"main"}
SHARED_FILE_NAMES = {"__init__", "__main__", "files", "operators"}
# Called by other packages, or for the tests of whoever writes a backend.
CALLED_BY_OTHERS = {"flush", "FakeBackend", "_check"}  # the last by pydantic
SKIPS = {"pytest.skip", "pytest.mark.skip", "pytest.mark.skipif"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def short(path: Path) -> str:
    return path.relative_to(PROJECT / "gma_lib").as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, FUNCTIONS))


def public_functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Functions of a module and methods of its public classes."""
    for node in parse(path).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for one in inside:
            if isinstance(one, FUNCTIONS) and not any(n.name[0] == "_" for n in (node, one)):
                yield one


# --- size -----------------------------------------------------------------------------------------


def test_functions_are_short():
    long = {
        f"{short(path)}: {node.name}": node.end_lineno - node.lineno + 1
        for path in LIBRARY
        for node in functions(path)
        if node.end_lineno - node.lineno >= LONGEST_FUNCTION
    }
    assert long == {}


def test_modules_are_short():
    lengths = {short(path): len(path.read_text().splitlines()) for path in LIBRARY}
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE}
    assert long.pop(READ_FROM_TOP_TO_BOTTOM)
    assert long == {}


# --- imports --------------------------------------------------------------------------------------


def imported(node: ast.AST) -> list[str]:
    """What an import statement names: ``package.module``, or nothing if it is no import."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_only_heavy_packages_are_imported_inside_functions():
    wrong = set()
    for path in LIBRARY:
        places = defaultdict(set)
        for function in functions(path):
            for node in ast.walk(function):
                for name in imported(node):
                    places[name].add(function.name)
        wrong |= {
            f"{short(path)}: {name}" for name in places if name.partition(".")[0] not in HEAVY
        }
        wrong |= {f"{short(path)}: {name} twice" for name in places if len(places[name]) > 1}
    assert wrong == set()


def test_no_imports_in_a_circle():
    modules = {".".join(path.with_suffix("").relative_to(PROJECT).parts): path for path in LIBRARY}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {}
    for name, path in modules.items():
        named = [one for node in parse(path).body for one in imported(node)]
        graph[name] = {one if one in modules else one.rpartition(".")[0] for one in named}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_light_modules_load_nothing_heavy():
    """All in one process: what none of them loads, no single one loads."""
    modules = ["gma_lib", "gma_lib.flow", "gma_lib.report.figures"]
    modules += [f"gma_lib.flow.{path.stem}" for path in LIBRARY if path.parent.name == "flow"]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"onnx", "onnxruntime", "torch", "gma_lib.ascend", "gma_lib.backends"}
    assert set(modules) <= set(loaded)
    assert not heavy & set(loaded)


def test_temporary_folders_go_with_the_next_process_where_one_is_killed():
    made = re.compile("TemporaryDirectory|mkdtemp")
    users = {short(path) for path in LIBRARY if made.search(path.read_text())}
    assert users == {"runs/leftovers.py", "doctor/installation.py"}  # the latter stands alone


# --- names and types ------------------------------------------------------------------------------


def test_a_name_has_one_meaning():
    places = defaultdict(set)
    for path in LIBRARY:
        for node in parse(path).body:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name[0] != "_":
                places[node.name].add(short(path))
    assert {name: where for name, where in places.items() if len(where) > 1}.keys() == SHARED_NAMES


def test_files_have_different_names():
    names = Counter(path.stem for path in LIBRARY)
    assert {name for name, count in names.items() if count > 1} <= SHARED_FILE_NAMES


def test_public_signatures_say_their_types():
    vague = set()
    for path in LIBRARY:
        for node in public_functions(path):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given += [one for one in (node.args.vararg, node.args.kwarg) if one]
            types = [node.returns, *(one.annotation for one in given)]
            if any("Any" in re.findall(r"\w+", ast.unparse(one)) for one in types if one):
                vague.add(f"{short(path)}: {node.name}")
    assert vague == set()


def test_exceptions_from_the_checks_are_few_and_have_a_reason():
    """The reason follows the code, or is the comment above."""
    marks = [
        (short(path), above.strip(), line.strip())
        for path in LIBRARY
        for above, line in pairwise(["", *path.read_text().splitlines()])
        if re.search(r"#.*(type: ignore|noqa)", line)
    ]
    code = r"(type: ignore\[[\w, -]+\]|noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*)"
    assert all(re.search(code, line) for _, _, line in marks)
    bare = [mark for mark in marks if mark[1][:1] != "#" and not re.search(code + "  # ", mark[2])]
    assert bare == []
    assert len(marks) <= MOST_EXCEPTIONS


# --- tests ----------------------------------------------------------------------------------------


def skip_reasons(path: Path) -> Iterator[ast.expr]:
    """The arguments that say why a test is skipped."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SKIPS:
            yield from node.args[:1] if node.func.attr == "skip" else ()
            yield from (one.value for one in node.keywords if one.arg == "reason")


def test_every_reason_for_a_skip_is_listed():
    """CI fails for a skip whose reason is not in the file, on machines where nobody has tried."""
    reasons = [one for path in TESTS.rglob("*.py") for one in skip_reasons(path)]
    assert [ast.unparse(one) for one in reasons if not isinstance(one, ast.Constant)] == []
    lines = (TESTS / "allowed_skips.txt").read_text().splitlines()
    assert {one.value for one in reasons} == {line for line in lines if line[:1] != "#"}


# --- dead code ------------------------------------------------------------------------------------


def names_in(tree: ast.AST) -> Counter[str]:
    """How often each name is used; ``"package.module:name"`` uses a name too."""
    used: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used[node.id] += 1
        elif isinstance(node, ast.Attribute):
            used[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.update(re.findall(r"^[\w.]+:(\w+)$", node.value))
    return used


@cache
def library_classes() -> dict[str, list[str]]:
    """Class -> the names of its bases."""
    classes = [node for path in LIBRARY for node in parse(path).body if is_class(node)]
    return {node.name: [ast.unparse(base) for base in node.bases] for node in classes}


def is_own(name: str) -> bool:
    """Whether a class extends only classes of the library; others are called by their packages."""
    bases = library_classes().get(name)
    return bases is not None and all(map(is_own, bases))


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions, classes and methods that are called by their names."""
    for node in parse(path).body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node
        if is_class(node) and is_own(node.name):
            yield from (one for one in node.body if isinstance(one, FUNCTIONS))


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def test_every_function_has_a_caller_outside_the_tests():
    used = sum((names_in(parse(path)) for path in LIBRARY), Counter())
    for folder, pattern in (("gma_lib/report/templates", "**/*.j2"), ("notebooks", "*.ipynb")):
        for path in (PROJECT / folder).glob(pattern):
            used.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    uncalled = {
        f"{short(path)}: {node.name}"
        for path in LIBRARY
        for node in definitions(path)
        if node.name[:2] != "__"
        and node.name not in CALLED_BY_OTHERS
        and used[node.name] <= names_in(node)[node.name]
    }
    assert uncalled == set()
