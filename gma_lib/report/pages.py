"""What HTML tables of pandas lack for who listens to them."""

import re

_TABLE_PART = re.compile(r"<(thead|tbody)\b.*?</\1>", re.DOTALL)
_HEADER = re.compile(r"<th(?![^>]*\bscope=)(?=[\s>])")


def with_header_scopes(html: str) -> str:
    """Say of every table header whether it heads a column or a row; headers that say so already
    stay as they are.

    Examples
    --------
    >>> with_header_scopes("<thead><tr><th>EPE</th></tr></thead>")
    '<thead><tr><th scope="col">EPE</th></tr></thead>'
    """
    return _TABLE_PART.sub(_with_scope, html)


def _with_scope(part: re.Match) -> str:
    scope = "col" if part[1] == "thead" else "row"
    return _HEADER.sub(f'<th scope="{scope}"', part[0])
