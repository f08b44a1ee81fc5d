"""When `gma reproduce` writes the index page."""

import click
import pytest

from gma_lib.cli import reproduce


@pytest.mark.parametrize(
    ("until", "ended", "is_there", "is_written"),
    [
        (None, ["ok", "ok"], False, True),
        (None, ["ok", "interrupted"], False, False),
        (None, ["ok", "interrupted"], True, True),
        ("05_evaluate", ["ok"], False, False),
        ("05_evaluate", ["ok"], True, True),  # its numbers are no longer those on the page
        ("05_evaluate", ["up to date"], True, False),
    ],
)
def test_a_page_that_exists_tells_what_is_there(
    tmp_path, monkeypatch, until, ended, is_there, is_written
):
    written = []
    monkeypatch.setattr(reproduce, "run_stages", lambda *_, **__: ended)
    monkeypatch.setattr(reproduce.report, "write_index", lambda *about: written.append(about))
    monkeypatch.setattr(reproduce.report, "is_current", lambda *_: True)
    if is_there:
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny/index.html").touch()
    with pytest.raises(click.exceptions.Exit):
        reproduce.run_and_report([{"outputs": str(tmp_path), "profile": "tiny"}], until=until)
    assert bool(written) == is_written
