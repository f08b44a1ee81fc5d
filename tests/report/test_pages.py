"""Pages lead to each other and need no network; tables say which headers head what."""

import re
from html.parser import HTMLParser
from io import StringIO
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import run_stage

from gma_lib.evaluate import tables
from gma_lib.flow.metrics import ErrorSums
from gma_lib.report import notebook as shown
from gma_lib.report.pages import TEMPLATES, add_header_scopes, notebook_to_html, table_to_html

FRAMES = np.zeros((2, 3, 128, 160), np.float32)
HOSTILE = [
    "<img src=x onerror=alert(4)>",
    "<script>alert(1)<",
    "\"'><svg onload=alert(1)>",
    "a&lt;b",
]


def test_headers_of_a_table_get_their_scope():
    table = pd.DataFrame({"EPE": [1.0, 2.0]}, index=["clean", "final"])
    for html in (table.to_html(), table.to_html(border=0, index_names=False)):
        heads = add_header_scopes(html)
        assert heads.count('scope="col"') == 1  # EPE; the corner heads nothing
        first = heads[: heads.index("</thead>")]
        assert re.findall(r"<(t[dh])\b[^>]*>([^<]*)<", first) == [("td", ""), ("th", "EPE")]
        assert heads.count('scope="row"') == 2
        assert heads.count("<thead>") == html.count("<thead>") == 1


def test_what_has_a_scope_or_is_no_header_stays_as_it_is():
    html = (
        '<table><thead><tr><th scope="colgroup">a</th></tr></thead>'
        "<tbody><tr><td>&lt;th&gt;</td></tr></tbody></table><th>outside</th>"
    )
    assert add_header_scopes(html) == html


def test_formulas_need_no_script(tmp_path):
    prose = "The error $e_{i}^*$, and\n\n$$e = \\sqrt{u^2} < 1.$$\n\nOne `$` and *two*."
    cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell("a = '$x$'")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    page = notebook_to_html(tmp_path / "n.ipynb", index=tmp_path / "index.html").read_text()
    assert page.count("<math") == page.count("</math>") == 2
    assert page.count('display="block"') == 1
    assert "<msqrt>" in page
    assert "<em>two</em>" in page
    assert "formula0" not in page
    assert "$x$" in page  # code is not prose


def test_a_notebook_becomes_a_page_with_its_ways(tmp_path):
    table = pd.DataFrame({"EPE": [1.0]}, index=["clean"]).to_html()
    picture = nbformat.v4.new_output(
        "display_data", data={"image/png": "AAAA"}, metadata={"image/png": {"alt": "two frames"}}
    )
    shown = nbformat.v4.new_output("execute_result", data={"text/html": table}, execution_count=1)
    heading = nbformat.v4.new_markdown_cell(
        "# Scores\n\n# More\n\n[a](06_perf.ipynb) [b](01_data.ipynb)"
    )
    cell = nbformat.v4.new_code_cell("1 + 1", outputs=[picture, shown], execution_count=1)
    notebook = tmp_path / "bs1" / "05_evaluate.ipynb"
    notebook.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[heading, cell]), notebook)
    page = notebook_to_html(
        notebook,
        index=tmp_path / "index.html",
        neighbours=(None, tmp_path / "bs1/06_perf.html"),
        whose="mine, batch size 1",
    )
    text = page.read_text()
    assert page == notebook.with_suffix(".html")
    assert "<title>05_evaluate · mine, batch size 1</title>" in text
    assert re.search(r'<h1 id="Scores">Scores <small>mine, batch size 1</small>', text)
    assert text.count("<small>mine, batch size 1</small>") == 1
    assert 'href="../index.html"' in text
    assert 'href="../index.html#stages"' in text
    assert '<a href="06_perf.html">a</a>' in text
    assert '<a href="../index.html">b</a>' in text
    assert 'href="06_perf.html" rel="next"' in text
    assert 'rel="prev"' not in text
    assert 'alt="two frames"' in text
    assert '<th scope="row">clean</th>' in text
    assert "Made by gma_lib" in text
    assert "<script src=" not in text


def test_parameters_of_the_run_are_open_and_their_meaning_is_folded(tmp_path):
    cells = []
    for tag in ("parameters", "injected-parameters", ""):
        cells.append(nbformat.v4.new_code_cell(f"size = 1  # {tag}"))
        cells[-1].metadata["tags"] = [tag] if tag else []
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    page = notebook_to_html(tmp_path / "n.ipynb", index=tmp_path / "index.html").read_text()
    assert re.findall("<details class=.gma-code.( open)?[^>]*><summary>([^<]*)", page) == [
        ("", "parameters: meaning and defaults"),
        (" open", "parameters of this run"),
        ("", "code: size = 1  # "),
    ]


def measure_contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("template", ["index.html.j2", "gma/index.html.j2"])
def test_every_colour_of_text_can_be_read(template):
    style = re.search("<style>(.*?)</style>", (TEMPLATES / template).read_text(), re.S)[1]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for part, paper in ((light, "#fff"), (dark, "#16181c")):
        colours = set(
            re.findall(r"[{; ](?:color|--jp-mirror-editor-\w+-color): (#[0-9a-f]+)", part)
        )
        assert len(colours) > 3
        assert {one for one in colours if measure_contrast(one, paper) < 4.5} == set()


def test_contrast_is_that_of_wcag():
    assert measure_contrast("#000", "#ffffff") == pytest.approx(21)
    assert measure_contrast("#777", "#fff") == pytest.approx(4.48, abs=0.01)


class Reader(HTMLParser):
    """What a browser makes of a page: tags with their attributes, and texts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text_wherever_a_table_has_one(name):
    table = pd.DataFrame({name: [name, 1.0]}, index=pd.Index([name, "b"], name=name))
    read = Reader(table_to_html(table, name, words=True))
    rows = {"thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in read.tags} == {"table", "caption", "small", "a"} | rows
    assert read.texts.count(name) == 4
    assert read.texts.count(f"{name} ") == 1  # the caption, before its links


@pytest.mark.parametrize("name", [*HOSTILE, "EPE, px"])
def test_a_table_takes_all_digits_of_its_values_along(name):
    table = pd.DataFrame({name: [1 / 3, 2.0], "b": [name, "x"]}, index=pd.Index(["s", "t"]))
    tags = Reader(table_to_html(table, name, number="{:.1f}")).tags
    texts = [unquote(attrs["href"].partition(",")[2]) for tag, attrs in tags if tag == "a"]
    pd.testing.assert_frame_equal(pd.read_csv(StringIO(texts[0]), index_col=0), table)
    found = pd.read_json(StringIO(texts[1]), orient="split", precise_float=True)
    pd.testing.assert_frame_equal(found, table, rtol=1e-14)


def test_numbers_of_a_table_have_their_format():
    table = pd.DataFrame({"EPE": [1.23456, None], "pixels": [12345.0, 2.0]}, index=["a", "b"])
    html = table_to_html(table, number="{:.2f}", missing="no pixels")
    for cell in ("1.23", "12,345", "no pixels"):
        assert f"<td>{cell}</td>" in html


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_scene_is_text_in_a_page(name, tmp_path, monkeypatch):
    """Everything that notebooks show of a scene, as nbconvert writes it."""
    metrics = ErrorSums().to_metrics()
    scores = {name: {"scenes": {name: {"all": metrics}}}}
    displayed = []
    monkeypatch.setattr(shown, "display", lambda data, **options: displayed.append((data, options)))
    shown.say(f"The worst scene is {name}.")
    shown.show_table(tables.tabulate_scenes(scores), f"by scene: {name}")
    shown.show((shown.draw_pair(*FRAMES, None, None, title=name)[0], name))
    outputs = [
        nbformat.v4.new_output("display_data", data=data, metadata=options.get("metadata", {}))
        for data, options in displayed
    ]
    outputs.append(nbformat.v4.new_output("stream", text=name))
    cell = nbformat.v4.new_code_cell(f"scene = {name!r}", outputs=outputs)
    notebook = tmp_path / "05_evaluate.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    read = Reader(notebook_to_html(notebook, index=tmp_path / "index.html").read_text())
    tags = [tag for tag, _ in read.tags]
    assert "svg" not in tags
    assert tags.count("script") == 1  # ours, which sorts tables
    assert not [attributes for _, attributes in read.tags if {"onerror", "onload"} & {*attributes}]
    assert [tag["alt"] for kind, tag in read.tags if kind == "img"] == [name]
    assert "".join(read.texts).count(name) >= 5


@pytest.mark.exhaustive
def test_a_data_set_with_hostile_names_gives_a_page_of_text(tmp_path, tiny_sintel):
    for folder in tiny_sintel.glob("training/*"):
        (folder / "alley").rename(folder / HOSTILE[0])
        (folder / "cave").rename(folder / HOSTILE[1])
    outputs = tmp_path / "outputs"
    done = run_stage("01_data", outputs, f"sintel_root={tiny_sintel}", "scenes=null")
    assert done.returncode == 0, done.stdout + done.stderr
    read = Reader((outputs / "tiny/data/01_data.html").read_text())
    assert [tag for tag, _ in read.tags].count("script") == 1  # ours, which sorts tables
    assert not [attributes for _, attributes in read.tags if "onerror" in attributes]
    for name in HOSTILE[:2]:
        assert name in read.texts
        assert any(name in tag["alt"] for kind, tag in read.tags if kind == "img")
