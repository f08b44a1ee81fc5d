"""Tables say which headers head what."""

import pandas as pd

from gma_lib.report.pages import add_header_scopes


def test_headers_of_a_table_get_their_scope():
    table = pd.DataFrame({"EPE": [1.0, 2.0]}, index=["clean", "final"])
    for html in (table.to_html(), table.style.to_html()):
        heads = add_header_scopes(html)
        assert heads.count('scope="col"') == 2  # the corner and EPE
        assert heads.count('scope="row"') == 2
        assert heads.count("<thead>") == html.count("<thead>") == 1


def test_what_has_a_scope_or_is_no_header_stays_as_it_is():
    html = '<table><thead><tr><th scope="colgroup">a</th></tr></thead><tbody><tr><td>&lt;th&gt;</td></tr></tbody></table><th>outside</th>'
    assert add_header_scopes(html) == html
