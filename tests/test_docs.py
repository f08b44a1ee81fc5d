"""What the README says exists, exists; what must not be in the project, is not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gma_lib
from gma_lib import cli
from gma_lib.pipeline.stages import STAGES
from gma_lib.runs.files import PROJECT

PAGES = {
    page: page.read_text()
    for page in (
        PROJECT / "README.md",
        PROJECT / "CONTRIBUTING.md",
        *(PROJECT / "docs").glob("*.md"),
    )
}
TEXT = "\n".join(PAGES.values())
MAKEFILE = (PROJECT / "Makefile").read_text()


def test_every_target_that_a_page_names_exists():
    named = set(re.findall(r"(?:`|^    )make ([a-z0-9_-]+)", TEXT, re.M))
    targets = set(
        re.findall(r"[a-z0-9_-]+", "".join(re.findall(r"^([a-z0-9_ -]+:)", MAKEFILE, re.M)))
    )
    assert named
    assert named <= targets, named - targets


def test_every_target_for_people_has_a_line_of_help():
    shown = subprocess.run(
        ["make", "help"], capture_output=True, text=True, cwd=PROJECT, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: ([^$\n]*)", MAKEFILE, re.M)[1].split()
    for target in {*phony, *STAGES}:
        assert re.search(rf"^  make .*\b{target} ", shown, re.M), target


@pytest.mark.parametrize(
    ("page", "link"),
    [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page])],
)
def test_every_file_that_a_page_links_to_exists(page, link):
    if not link.startswith("http"):
        assert (page.parent / link).exists()


def test_the_readme_is_short():
    read = re.sub(r"<!--.*?-->", "", (PROJECT / "README.md").read_text())
    assert len(read.split()) <= 600


def test_every_variable_of_the_pages_is_used():
    named = re.findall(r"^\| `([A-Z]+)`", TEXT, re.M)
    assert len(named) > 5
    for name in named:
        assert name in re.findall(r"\w+", MAKEFILE), name


def test_every_module_that_is_run_exists():
    pages = [TEXT, MAKEFILE, *(page.read_text() for page in PROJECT.glob("*/*.md"))]
    named = {name for page in pages for name in re.findall(r"-m (gma_lib[\w.]*)", page)}
    assert named == {"gma_lib.cli"}
    for name in named:
        path = PROJECT / name.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text(), name


def test_contributing_draws_every_package():
    drawn = re.findall(r"(\w+)/", (PROJECT / "CONTRIBUTING.md").read_text().split("## Where")[1])
    assert {path.parent.name for path in PROJECT.glob("gma_lib/*/__init__.py")} <= set(drawn)


def test_packages_are_listed_in_the_order_of_their_imports():
    """A package imports only from above it."""
    listed = re.findall(r"``(\w+)``", gma_lib.__doc__.split("One package per stage")[1])
    found = {
        path.stem
        for path in (PROJECT / "gma_lib").iterdir()
        if (path / "__init__.py").is_file() or path.suffix == ".py"
    }
    assert set(listed) == found - {"__init__"}


def test_every_test_that_the_docs_name_exists():
    """And every defect of the original scripts has its line, with at least one of them."""
    named = {
        (page.name, *found)
        for page, text in PAGES.items()
        for found in re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", text)
    }
    assert len(named) > 54
    for page, file, test in named:
        sources = [path.read_text() for path in (PROJECT / "tests").rglob(file)]
        pattern = re.compile(rf"^def {test}\(" if test else "^def test_", re.M)
        assert any(map(pattern.search, sources)), f"{page} names {file}::{test}"
    defects = re.findall(
        r"^\| (\d+) \|.*`test_\w+\.py::\w+`[^|]*\|$",
        (PROJECT / "docs" / "original-scripts.md").read_text(),
        re.M,
    )
    assert [int(number) for number in defects] == list(range(1, 55))


def test_no_path_of_a_machine_and_nothing_large_is_committed():
    files = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=PROJECT, check=True
    ).stdout.split()
    for name in files:
        path = PROJECT / name
        assert path.stat().st_size < 16e6, name
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".json", ".j2", ""}:
            text = path.read_text(encoding="utf-8")
            assert (
                not re.search(r"(?<![\w.])/(?:home|root|work|Users)/", text)
                or name == Path(__file__).relative_to(PROJECT).as_posix()
            ), name


def test_every_command_that_a_page_names_exists():
    named = set(re.findall(r"(?:`|/bin/|^    )gma ([a-z]+(?:-[a-z]+)*)", TEXT, re.M))
    assert named
    assert named <= set(cli.COMMANDS), named - set(cli.COMMANDS)
    for line in re.findall(r"^    (?:\.venv/bin/)?(gma .*)$", TEXT, re.M):
        _, command, *rest = line.split()
        parameters = cli.main.get_command(None, command).params
        known = {option for parameter in parameters for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, line


def test_versions_agree():
    assert yaml.safe_load((PROJECT / "CITATION.cff").read_text())["version"] == gma_lib.__version__
    lock = (PROJECT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([^ ;]+)", lock, re.M))
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["rev"].removeprefix("v") for hook in hooks} == {
        locked["ruff"],
        locked["nbstripout"],
        locked["import-linter"],
    }


@pytest.mark.exhaustive
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", tmp_path / "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees"], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text() for page in (tmp_path / "html").rglob("*.html")}
    assert len(pages) > 15
    fetched = re.compile(r"<(?:script|img)[^>]+src=.https?:|<link[^>]+stylesheet[^>]+href=.https?:")
    assert not [page for page, text in pages.items() if fetched.search(text)]
    assert all("_static/site.css" in text for text in pages.values())
    assert "<math" in pages[tmp_path / "html" / "background.html"]
    commands = pages[tmp_path / "html" / "reference" / "commands.html"]
    assert all(f'id="gma-{name}' in commands for name in cli.COMMANDS)
