"""The index page is written from what is there."""

import pytest
from command_line import gma

from gma_lib.report import index


@pytest.mark.parametrize("profile", ["tiny", "typo", "..", "", "a/b"])
def test_where_nothing_has_run_there_is_no_page(tmp_path, profile):
    """Nor an archive; a mistyped profile leaves nothing."""
    (tmp_path / "outputs/other").mkdir(parents=True)
    for more in ([], ["--archive"]):
        wanted = ["--profile", profile, "--outputs", str(tmp_path / "outputs"), *more]
        assert len(gma("report", *wanted, exit_code=1).splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs", "other"]


def test_the_data_line_counts_pairs_scenes_and_ground_truth():
    pairs = [
        {"scene": "alley", "files": {"flow": "a.flo"}},
        {"scene": "alley", "files": {}},
        {"scene": "cave", "files": {}},
    ]
    content = {"description": "Demo", "pairs": pairs, "height": 436, "width": 1024}
    assert index._describe_data(content) == (
        "Demo: 3 pairs of 1024x436 px in 2 scenes, 1 with ground truth."
    )


def test_without_a_row_there_is_an_empty_table():
    """As where the first stage of every run failed; the page then says so."""
    assert index._tabulate_headline([], ["clean", "final"]).empty
