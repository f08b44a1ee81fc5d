"""What the README says exists, exists; what must not be in the project, is not."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import open_tiny

import gma_lib
from gma_lib import cli
from gma_lib.pipeline.stages import STAGES, locate_record
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
RECORDS = PROJECT / "docs" / "reference" / "records.md"
GENERATED = "parameters.md"  # by docs/conf.py
LINKS = [
    (page, link)
    for page in (
        *PAGES,
        PROJECT / "CHANGELOG.md",
        *PROJECT.glob("docs/reference/*.md"),
        *PROJECT.glob("weights/*.md"),
    )
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text())
    if not link.startswith("http") and page.name != GENERATED != link
]


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


def list_anchors(page: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    titles = [re.sub(r"\]\([^)]*\)", "", title) for title in re.findall(r"^#+ (.+)$", text, re.M)]
    anchors = [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles]
    return [
        f"{anchor}-{before}" if (before := anchors[:number].count(anchor)) else anchor
        for number, anchor in enumerate(anchors)
    ]


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` of c, d-e\n```\n# a comment\n```\n## [Word](w.md)s\n## Words\n")
    assert list_anchors(page) == ["a-b-of-c-d-e", "words", "words-1"]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_place_that_a_page_links_to_exists(page, link):
    name, _, anchor = link.partition("#")
    file = page.parent / name if name else page
    assert file.exists()
    assert not anchor or anchor in list_anchors(file)


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
    cache = os.environ | {"GMA_CACHE": str(tmp_path / "cache")}  # the quickstart builds a model
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=cache,
    )
    assert done.returncode == 0, done.stderr
    copied = {"viewer", "updates"}  # where there are results
    found = [page for page in (tmp_path / "html").rglob("*.html") if page.stem not in copied]
    pages = {page: page.read_text() for page in found}
    assert len(pages) > 15
    fetched = re.compile(r"<(?:script|img)[^>]+src=.https?:|<link[^>]+stylesheet[^>]+href=.https?:")
    assert not [page for page, text in pages.items() if fetched.search(text)]
    for given in ("_static/site.css", "_static/scrolling.js", 'aria-label="pages of this site"'):
        assert [page for page, text in pages.items() if given not in text] == []
    assert [page for page, text in pages.items() if "<h1" not in text] == []
    lists = re.compile(r"<dl[^>]*>\s*<dd")  # of meanings without words
    assert [page for page, text in pages.items() if lists.search(text)] == []
    records = pages[tmp_path / "html" / "reference" / "records.html"]
    assert "provenance.<wbr>machine.memory_bytes" in records  # fits on a phone
    site = (PROJECT / "docs" / "static" / "site.css").read_text()
    rules = dict(re.findall(r"([^{}]+?)\s*{([^}]*)}", site))
    (opaque,) = (rule for names, rule in rules.items() if names.endswith("caption small"))
    assert re.search(r"opacity:\s*1\b", opaque)  # else links on white have a contrast of 3.65
    flat = re.compile('role="heading"(?! aria-level)')
    assert not [page for page, text in pages.items() if flat.search(text)]
    assert "<math" in pages[tmp_path / "html" / "background.html"]
    commands = pages[tmp_path / "html" / "reference" / "commands.html"]
    assert all(f'id="gma-{name}' in commands for name in cli.COMMANDS)
    tutorials = {page.stem: pages[page] for page in pages if page.parent.name == "tutorials"}
    assert set(tutorials) == {"00_quickstart", *STAGES}
    assert re.search('class="cell_output.*<img alt="[^"]*px', tutorials["00_quickstart"], re.S)
    for name in STAGES:  # results, or a note that there are none
        is_noted = 'class="admonition note"' in tutorials[name]
        assert is_noted != ('class="cell_output' in tutorials[name]), name


# --- the page of records --------------------------------------------------------------------------


def list_keys(section: str) -> list[str]:
    """The keys that the tables of a section of the page describe."""
    cells = re.findall(r"^\| (`.*?) \|", section, re.M)
    return [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]


def find_values(record: object, key: str) -> Iterator[object]:
    """What a record holds at a key of the page; ``<...>`` is any name, ``[]`` any item."""
    first, _, rest = key.partition(".")
    if not key:
        yield record
    elif first.endswith("[]"):
        for found in find_values(record, first[:-2]):
            for item in found if isinstance(found, list) else []:
                yield from find_values(item, rest)
    elif isinstance(record, dict):
        for name in record if first.startswith("<") else {first} & record.keys():
            yield from find_values(record[name], rest)


def test_every_key_of_the_records_is_described(finished):
    common, *sections = re.split(r"^## ", RECORDS.read_text(), flags=re.M)
    sections = {section.partition("\n")[0]: list_keys(section) for section in sections}
    runs = [open_tiny(finished, batch_size=size) for size in (2, 3)]
    places = {locate_record(stage, run) for stage in STAGES for run in runs}
    places |= {run.settings_file for run in runs}
    assert set(sections) == {place.name for place in places}
    for name, keys in sections.items():
        records = [json.loads(place.read_text()) for place in places if place.name == name]
        for key in (*list_keys(common), *keys):
            assert any(True for one in records for _ in find_values(one, key)), f"{name}: {key}"
        tops = {re.split(r"\.|\[", key)[0] for key in (*list_keys(common), *keys)}
        tops |= {"made_from"} | ({"clean", "final"} if "<pass>" in tops else set())
        assert {top for record in records for top in record} <= tops, name
