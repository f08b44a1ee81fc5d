"""The index page is written from whatever is there; an archive needs something to hold."""

import pytest
from click.testing import CliRunner

from gma_lib.report import index


def test_before_anything_has_run_the_page_says_so(tmp_path):
    page = index.write_index(tmp_path, "tiny").read_text()
    assert "01_data has not run" in page
    assert "batch size 16" in page  # the guide's row


def test_an_archive_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing of this profile has run"):
        index.write_archive(tmp_path, "tiny")
    done = CliRunner().invoke(
        index.main, ["--profile", "tiny", "--outputs", str(tmp_path), "--archive"]
    )
    assert done.exit_code == 1
    assert (tmp_path / "tiny/index.html").is_file()
    assert not list(tmp_path.glob("*.zip"))


def test_the_data_line_counts_pairs_scenes_and_ground_truth():
    pairs = [
        {"scene": "alley", "files": {"flow": "a.flo"}},
        {"scene": "alley", "files": {}},
        {"scene": "cave", "files": {}},
    ]
    content = {"description": "Demo", "pairs": pairs, "height": 436, "width": 1024}
    assert index._describe_data(content) == (
        "Demo: 3 pairs of 436x1024 in 2 scenes, 1 with ground truth."
    )
