"""Files are whole or absent, and hashed by content."""

import pytest

from gma_lib.runs import files


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.write_atomically(tmp_path / "a.txt") as partial:
        partial.write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())
