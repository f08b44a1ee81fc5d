"""Scores of weights: which scenes they are of, and that they are of the frames' own pixels."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

from gma_lib.data.sintel import LoadedPair, find_pairs
from gma_lib.flow.classical import dis
from gma_lib.network.model import GMA
from gma_lib.training import scores, trainer
from gma_lib.training.pairs import PairSource, render_held_out
from gma_lib.training.scores import predict_updates, score_pairs, score_sintel


def _predict_dis(frame1, frame2):
    return {"dis": dis(frame1, frame2)}


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
    found = json.loads(printed.out)  # JSON alone: progress goes to stderr
    assert "planes: 2/2 pairs" in printed.err
    validation = render_held_out(config, PairSource(config))
    test = render_held_out(config, PairSource(config), numbers=range(1, 3))
    for family, pairs in test.items():
        assert set(found[family]) == {"1", "2", "dis"}
        sums = score_pairs(_predict_dis, (pair.to_arrays() for pair in pairs))
        assert found[family]["dis"]["all"] == sums["dis"]["all"].to_metrics()
        assert not any(
            torch.equal(pair.image1, known.image1) for pair in pairs for known in validation[family]
        )


def test_sintel_is_scored_pass_by_pass_over_all_pixels(tiny_sintel, monkeypatch):
    monkeypatch.setattr(scores, "SINTEL_UPDATES", (1,))
    found = score_sintel("seeded", tiny_sintel)
    assert set(found) == {"clean", "final"}
    for pass_name, methods in found.items():
        assert set(methods) == {"1", "dis"}
        pairs = find_pairs(tiny_sintel, pass_name=pass_name)
        pixels = sum(pair.load_flow()[0].size for pair in pairs if pair.flow is not None)
        assert methods["1"]["all"]["pixels"] == methods["dis"]["all"]["pixels"] == pixels


def test_flow_has_the_size_of_the_frames():
    frames = np.zeros((2, 3, 130, 150), np.float32)
    flows = predict_updates(GMA().eval(), (1, 2), *frames)
    assert {name: flow.shape for name, flow in flows.items()} == dict.fromkeys("12", (2, 130, 150))


def test_a_pair_without_ground_truth_is_refused():
    frames = np.zeros((2, 3, 128, 128), np.float32)
    with pytest.raises(ValueError, match="ground truth"):
        score_pairs(_predict_dis, [LoadedPair(*frames)])
