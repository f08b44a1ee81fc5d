"""``gma stage``: wrong parameters are refused before anything runs."""

from command_line import gma


def test_a_stage_or_parameter_that_does_not_exist(tmp_path):
    assert "02_export" in gma("stage", "02_exports", exit_code=2)
    answer = gma("stage", "02_export", "--set", "num_update=3", exit_code=2)
    assert "num_updates" in answer
    assert "profile" in gma("stage", "02_export", "--profile", "demos", exit_code=2)


def test_a_stage_whose_input_is_missing(tmp_path):
    answer = gma("stage", "02_export", "--set", f"outputs={tmp_path}", exit_code=1)
    assert "01_data" in answer
    assert not list(tmp_path.rglob("*.ipynb"))
