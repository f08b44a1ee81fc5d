"""Executed notebooks as HTML pages, and HTML tables that screen readers understand."""

import os
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import jinja2
from latex2mathml.converter import convert as to_mathml

from gma_lib.runs import Record, describe_provenance, write_text

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("tables.js", "scrolling.js")  # of a notebook's page
_TABLE_PART = re.compile(r"<(thead|tbody)\b(?:(?!<t(?:head|body)\b).)*?</\1>", re.DOTALL)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$")
_EMPTY = re.compile(r"<th[^>]*></th>")  # a corner, which heads nothing
_NOTEBOOK = re.compile(r'href="([^"/]+\.ipynb)"')
_TITLE = re.compile(r'<h1[^>]*>.*?(?=<a class="anchor-link"|</h1>)', re.DOTALL)
_HEADER = re.compile(r"<th(?=[\s>])(?![^<>]*\bscope=)")


def notebook_to_html(
    notebook: Path,
    *,
    index: Path,
    neighbours: tuple[Path | None, Path | None] = (None, None),
    whose: str = "",
) -> Path:
    """Write an executed notebook as one HTML file that needs no network.

    Code is folded away, pictures have alternative texts, table headers a scope; links lead to the
    index and to the pages before and after, and the footer names what made the page.

    Parameters
    ----------
    whose
        Run and batch size, for the page's title and its first heading.
    """
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]  # as nbconvert
    formulas = _take_formulas(content.cells)
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]  # nbconvert has no types
        template_name="gma",
        extra_template_basedirs=[str(TEMPLATES)],
        mathjax_url="",
        require_js_url="",
        mermaid_js_url="",
    )
    ways = [
        path and {"href": os.path.relpath(path, notebook.parent), "name": path.stem}
        for path in neighbours
    ]
    index_href = os.path.relpath(index, notebook.parent)
    body, _ = exporter.from_notebook_node(
        content,
        resources={
            "metadata": {"name": " · ".join(filter(None, [notebook.stem, whose]))},
            "index_href": index_href,
            "previous": ways[0],
            "next": ways[1],
            "provenance": describe_provenance(),
            "script": "".join((TEMPLATES / name).read_text("utf-8") for name in SCRIPTS),
        },
    )
    for token, formula in formulas.items():
        body = body.replace(token, formula)
    pages = {f"{way['name']}.ipynb": way["href"] for way in ways if way}
    body = _NOTEBOOK.sub(lambda found: f'href="{escape(pages.get(found[1], index_href))}"', body)
    if whose:
        body = _TITLE.sub(lambda found: f"{found[0]} <small>{escape(whose)}</small>", body, count=1)
    page = notebook.with_suffix(".html")
    write_text(page, add_header_scopes(body))
    return page


def _take_formulas(cells: list[Record]) -> dict[str, str]:
    """Replace the formulas of a notebook's prose by tokens, which Markdown leaves alone, and return
    token -> MathML. MathJax would need a network.
    """
    formulas: dict[str, str] = {}

    def take(found: re.Match[str]) -> str:
        token = f"formula{len(formulas)}formula"
        display = "block" if found[1] else "inline"
        formulas[token] = to_mathml((found[1] or found[2]).strip(), display=display)
        return token

    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = _FORMULA.sub(take, cell["source"])
    return formulas


def fill_template(name: str, **values: object) -> str:
    """Fill a template of this package; values are text, never markup, unless it says otherwise."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return pages.get_template(name).render(values)


def table_to_html(
    table: "pd.DataFrame",
    caption: str = "",
    *,
    number: str = "{}",
    missing: str = "",
    words: bool = False,
) -> str:
    """Return a table as HTML in which all names and values are text, never markup. Its caption ends
    with links that hold all digits, as CSV and as JSON.

    Parameters
    ----------
    number
        Format of floating-point numbers; a column ``pixels`` holds whole numbers.
    missing
        Text for a missing number.
    words
        Align cells to the left.
    """
    html = table.to_html(
        border=0,
        float_format=number.format,
        formatters={"pixels": "{:,.0f}".format},
        na_rep=missing,
        justify="left" if words else "right",
    )
    if words:  # as a style, which JupyterLab keeps
        html = re.sub("<(t[dh])>", r'<\1 style="text-align: left">', html)
    heading = f"><caption>{escape(caption)} {link_values(table, caption)}</caption>"
    return add_header_scopes(html.replace(">", heading, 1))


def link_values(table: "pd.DataFrame", name: str) -> str:
    """Return links that hold a table as CSV and as JSON, so that they work wherever the page is.

    Parameters
    ----------
    name
        The table's; the files are called after it.
    """
    stem = re.sub(r"\W+", "-", name.lower()).strip("-") or "table"
    forms = {
        "csv": ("text/csv", table.to_csv()),
        "json": ("application/json", table.to_json(orient="split", double_precision=15)),
    }
    links = (
        f'<a download="{stem}.{form}" href="data:{media_type};charset=utf-8,{quote(text)}" '
        f'aria-label="{form.upper()}: {escape(name or "table")}">{form.upper()}</a>'
        for form, (media_type, text) in forms.items()
    )
    return f"<small>{' '.join(links)}</small>"


def add_header_scopes(html: str) -> str:
    """Add to every table header whether it heads a column or a row, unless it has a scope.

    Examples
    --------
    >>> add_header_scopes("<thead><tr><th>EPE</th></tr></thead>")
    '<thead><tr><th scope="col">EPE</th></tr></thead>'
    """
    return _TABLE_PART.sub(_add_scope, html)


def _add_scope(part: re.Match[str]) -> str:
    scope = "col" if part[1] == "thead" else "row"
    return _HEADER.sub(f'<th scope="{scope}"', _EMPTY.sub("<td></td>", part[0]))
