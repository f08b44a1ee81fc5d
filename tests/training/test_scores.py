"""Scores of weights."""

import json
import sys

import torch
import yaml

from gma_lib.training import scores, trainer
from gma_lib.training.pairs import PairSource, validation_families
from gma_lib.training.scores import classical_flows, score


def test_scores_are_of_the_scenes_after_those_of_validation(
    config, tmp_path, monkeypatch, capsys, tiny, small_validation
):
    monkeypatch.setattr(scores, "TEST_PAIRS", 2)
    monkeypatch.setattr(scores, "SCORED_UPDATES", (1, 2))
    (file := tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr(
        sys, "argv", ["training", "--config", str(file), "--score", "seeded", "--device", "cpu"]
    )
    trainer.main()
    printed = capsys.readouterr()
    found = json.loads(printed.out)  # JSON alone: progress goes beside it
    assert "planes: 2/2 pairs" in printed.err
    validation = validation_families(config, PairSource(config))
    test = validation_families(config, PairSource(config), numbers=range(1, 3))
    for family, pairs in test.items():
        assert set(found[family]) == {"1", "2", "dis"}
        assert (
            found[family]["dis"]["all"] == score(classical_flows, pairs)["dis"]["all"].to_metrics()
        )
        assert not any(
            torch.equal(pair.image1, known.image1) for pair in pairs for known in validation[family]
        )
