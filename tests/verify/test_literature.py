"""Published scores as expected values. Only invented frames are here, so the comparison is tested,
not its outcome.
"""

import shutil
from statistics import mean

import pytest
from command_line import gma
from conftest import open_tiny

from gma_lib.cli import verification
from gma_lib.data.sintel import PAIRS_IN_TRAINING_SPLIT, PASSES
from gma_lib.evaluate import published
from gma_lib.runs.records import read_json
from gma_lib.verify.expected import judge_values
from gma_lib.verify.literature import (
    SOURCES,
    collect_scores,
    expect_published,
    require_all_pairs,
)
from gma_lib.verify.values import Value


def statuses(updates, **changed):
    expected = expect_published(updates)
    found = {name: Value(*value) for name, value in expected["values"].items()}
    found |= {name: Value(found[name].kind, value) for name, value in changed.items()}
    return {v.name: v.status for v in judge_values(found, expected) if v.status != "equal"}


@pytest.mark.parametrize("updates", SOURCES)
def test_scores_are_met_within_the_tolerance(updates):
    assert statuses(updates) == {}
    name = "final/px1"
    px1 = expect_published(updates)["values"][name][1]
    assert statuses(updates, **{name: px1 + 0.0049}) == {name: "within"}
    assert statuses(updates, **{name: px1 - 0.0051}) == {name: "outside"}
    assert statuses(updates, **{"clean/pairs": 1040}) == {"clean/pairs": "outside"}


def test_ptlflows_epe_is_an_entry():
    epe = published.PTLFLOW["clean"]["epe"]
    assert statuses(32, **{"clean/epe": epe + 0.021}) == {"clean/epe": "outside"}


def test_scores_are_pooled_as_their_source_pools_them(finished):
    run = open_tiny(finished)
    scores = read_json(run.folder / "metrics.json", made_by="05_evaluate")["clean"]
    assert collect_scores(run, 6)["clean/px1"].value == scores["all"]["px1"]
    per_pair = mean(pair["valid"]["px1"] for pair in scores["pairs"])
    assert collect_scores(run, 32)["clean/px1"].value == per_pair
    assert collect_scores(run, 32).keys() == expect_published(32)["values"].keys()
    assert collect_scores(run, 6).keys() == expect_published(6)["values"].keys()


def test_what_is_missing_is_a_sentence_before_any_work(tiny_sintel, tmp_path):
    gma("verify", "--profile", "sintel", exit_code=2)
    gma("verify", "--profile", "sintel", "--sintel", tiny_sintel, exit_code=2)
    weights = tmp_path / "authors.pth"
    asked = ["verify", "--profile", "sintel", "--sintel", tiny_sintel, "--checkpoint", weights]
    assert "authors.pth" in gma(*asked, exit_code=2)
    weights.write_bytes(b"weights")
    assert "4 pairs in clean" in gma(*asked, exit_code=1)
    with pytest.raises(FileNotFoundError):
        require_all_pairs(str(tmp_path / "none"), 6)
    gma("verify", "--sintel", tiny_sintel, exit_code=2)


@pytest.mark.parametrize("scored", [0, PAIRS_IN_TRAINING_SPLIT - 1, PAIRS_IN_TRAINING_SPLIT])
def test_pairs_without_ground_truth_are_missed_before_any_work(tmp_path, monkeypatch, scored):
    started = []
    monkeypatch.setattr(verification, "VERIFIED", str(tmp_path / "outputs"))
    monkeypatch.setattr(
        verification, "run_stages", lambda runs, **_: started.extend(runs) or ["died"]
    )
    training, weights = tmp_path / "sintel" / "training", tmp_path / "authors.pth"
    weights.touch()
    counts = {training / name: PAIRS_IN_TRAINING_SPLIT + 1 for name in PASSES}
    for folder, count in (counts | {training / "flow": scored}).items():
        (folder / "alley_1").mkdir(parents=True)
        suffix = "flo" if folder.name == "flow" else "png"
        for number in range(1, count + 1):
            (folder / "alley_1" / f"frame_{number:04d}.{suffix}").touch()
    whole = scored == PAIRS_IN_TRAINING_SPLIT
    given = ["--sintel", training.parent, "--checkpoint", weights]
    printed = gma("verify", "--profile", "sintel", *given, exit_code=138 if whole else 1)
    assert bool(started) == whole
    for parameters in started:  # whatever params/ say
        assert parameters["passes"] == list(PASSES)
        assert (parameters["split"], parameters["scenes"]) == ("training", None)
    assert whole or f"{scored} of them" in printed
    if whole:  # the numbers at 32 updates leave out what masks say is invalid
        require_all_pairs(str(training.parent), 6)
        with pytest.raises(ValueError, match="training/invalid"):
            require_all_pairs(str(training.parent), 32)
        shutil.copytree(training / "clean", training / "invalid")
        (training / "invalid" / "alley_1" / f"frame_{scored + 1:04d}.png").unlink()
        require_all_pairs(str(training.parent), 32)
