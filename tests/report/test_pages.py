"""Pages lead to each other and need no network; tables say which headers head what."""

import nbformat
import pandas as pd

from gma_lib.report.pages import add_header_scopes, notebook_to_html


def test_headers_of_a_table_get_their_scope():
    table = pd.DataFrame({"EPE": [1.0, 2.0]}, index=["clean", "final"])
    for html in (table.to_html(), table.style.to_html()):
        heads = add_header_scopes(html)
        assert heads.count('scope="col"') == 2  # the corner and EPE
        assert heads.count('scope="row"') == 2
        assert heads.count("<thead>") == html.count("<thead>") == 1


def test_what_has_a_scope_or_is_no_header_stays_as_it_is():
    html = (
        '<table><thead><tr><th scope="colgroup">a</th></tr></thead>'
        "<tbody><tr><td>&lt;th&gt;</td></tr></tbody></table><th>outside</th>"
    )
    assert add_header_scopes(html) == html


def test_a_notebook_becomes_a_page_with_its_ways(tmp_path):
    table = pd.DataFrame({"EPE": [1.0]}, index=["clean"]).to_html()
    picture = nbformat.v4.new_output(
        "display_data", data={"image/png": "AAAA"}, metadata={"image/png": {"alt": "two frames"}}
    )
    shown = nbformat.v4.new_output("execute_result", data={"text/html": table}, execution_count=1)
    cell = nbformat.v4.new_code_cell("1 + 1", outputs=[picture, shown], execution_count=1)
    notebook = tmp_path / "bs1" / "05_evaluate.ipynb"
    notebook.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    page = notebook_to_html(
        notebook, index=tmp_path / "index.html", neighbours=(None, tmp_path / "bs1/06_perf.html")
    )
    text = page.read_text()
    assert page == notebook.with_suffix(".html")
    assert "<title>05_evaluate</title>" in text
    assert 'href="../index.html"' in text
    assert 'href="06_perf.html" rel="next"' in text
    assert 'rel="prev"' not in text
    assert 'alt="two frames"' in text
    assert '<th scope="row">clean</th>' in text
    assert "Made by gma_lib" in text
    assert "<script src=" not in text
