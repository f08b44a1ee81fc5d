"""The log of a training run: cut, read, drawn."""

import json

from gma_lib.training.log import cut_log, plot_log, read_log


def test_curves_can_be_drawn_before_any_flow_is_learnt(tmp_path):
    (log := tmp_path / "log.jsonl").write_text(
        json.dumps({"step": 1, "loss": 1.0, "zero_epe": 2.0}) + "\n"
    )
    assert plot_log(log).axes[0].get_lines() == []


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3))
        + '{"step": 4, "lo'
    )
    cut_log(path, 2)
    assert [entry["step"] for entry in read_log(path)[0]] == [1, 2]
