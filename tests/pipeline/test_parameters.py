"""Parameters are checked before anything starts."""

import pytest
from conftest import run_stage


@pytest.mark.parametrize(
    ("settings", "batch_size", "message"),
    [
        ((), "0", "batch_size is a whole number from 1 up, not 0"),
        ((), "3.5", "batch_size is int, not 3.5"),
        ((), "four", "batch_size is int, not 'four'"),
        ((), "true", "batch_size is int, not True"),
        (("bakend=torch",), "1", "no notebook has a parameter 'bakend'; did you mean 'backend'?"),
        (("num_updates=six",), "1", "num_updates is int, not 'six'"),
        (("passes=clean",), "1", "passes is list[str], not 'clean'"),
        (("precision=half",), "1", "precision is one of"),
        (("run=../elsewhere",), "1", "run names a folder"),
        (("num_updates",), "1", "'num_updates' is not name=value"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_starts(
    tmp_path, settings, batch_size, message
):
    done = run_stage("02_export", tmp_path, *settings, batch_size=batch_size)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_profile_lists_the_known(tmp_path):
    done = run_stage("01_data", tmp_path, profile="sintle")
    assert done.returncode == 2
    assert "there are: demo, sintel, tiny" in done.stderr
