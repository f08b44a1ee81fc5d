"""Scores of known flow; nothing is scored over part of the data."""

import json

import numpy as np
import pytest

from gma_lib.backends import FakeBackend
from gma_lib.data import sintel
from gma_lib.evaluate import evaluation
from gma_lib.flow.files import write_flow
from gma_lib.flow.metrics import ErrorSums
from gma_lib.infer import inference
from gma_lib.runs.run import open_run


@pytest.fixture
def pairs(tiny_sintel):
    return [
        pair
        for pass_name in ("clean", "final")
        for pair in sintel.find_pairs(tiny_sintel, pass_name=pass_name)
    ]


@pytest.fixture
def flow_folder(pairs, tmp_path):
    """Zero flow for every pair: an error of 5 px everywhere."""
    inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    return tmp_path / "flow"


def test_zero_flow_has_the_error_of_the_shift(pairs, flow_folder):
    scores = evaluation.evaluate(pairs, flow_folder)["clean"]
    assert (scores["pairs_inferred"], scores["pairs_scored"], scores["pixels"]) == (
        4,
        3,
        3 * 128 * 160,
    )
    assert (scores["all"]["epe"], scores["all"]["px1"], scores["all"]["px5"]) == (5, 0, 0)
    assert scores["occluded"]["pixels"] == 3 * 128 * 16
    assert set(scores["scenes"]) == {"alley", "cave"}
    assert scores["scenes"]["cave"]["all"]["pixels"] == 128 * 160
    assert [pair["name"] for pair in scores["pairs"]] == [
        "clean/alley/frame_0001",
        "clean/alley/frame_0002",
        "clean/cave/frame_0001",
    ]
    assert scores["share_within"][-1] == 1
    assert scores["share_within"][-2] == 0
    assert evaluation.scored_of(scores) == "3 of 4 pairs scored"


def test_the_pool_is_over_pixels(pairs, flow_folder):
    """A pair without error among three: a third of the pixels below 1 px."""
    perfect = FakeBackend(lambda a, b: np.full((1, 2, 128, 160), [[[[3]], [[4]]]], np.float32))
    inference.infer(pairs[:1], perfect, flow_folder, batch_size=1, key="better")
    scores = evaluation.evaluate(pairs, flow_folder)["clean"]
    assert scores["all"]["px1"] == pytest.approx(1 / 3)
    assert scores["all"]["epe"] == pytest.approx(10 / 3)
    roles = evaluation.chosen_pairs({"clean": scores})
    assert roles["best"] == "clean/alley/frame_0001"


@pytest.mark.parametrize("number", [0, 3])  # a scored pair, and one without ground truth
def test_a_missing_pair_is_an_error(pairs, flow_folder, number):
    inference.flow_path(flow_folder, pairs[number]).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 8 pairs have no flow.*{pairs[number].name}"
    ):
        evaluation.evaluate(pairs, flow_folder)


def test_a_file_that_inference_did_not_write_is_an_error(pairs, flow_folder):
    write_flow(inference.flow_path(flow_folder, pairs[0]), np.zeros((2, 128, 160)) + 1)
    with pytest.raises(ValueError, match="are not what 04_infer wrote"):
        evaluation.evaluate(pairs, flow_folder)


def test_no_pairs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no pairs"):
        evaluation.evaluate([], tmp_path)


def test_tables(pairs, flow_folder):
    scores = evaluation.evaluate(pairs, flow_folder)
    groups = evaluation.group_table(scores)
    assert groups.loc[("clean", "all pixels"), "EPE, px"] == 5
    assert len(groups) == 2 * len(evaluation.GROUP_LABELS)
    assert evaluation.scene_table(scores).loc[("final", "cave"), "pixels"] == 128 * 160
    published = evaluation.published_table(scores)
    assert published["1px, %"].max() == 93.0
    assert any("3 of 4 pairs scored" in what for _, what in published.index)


def test_without_ground_truth_there_are_no_scores(tiny_sintel, tmp_path):
    (tiny_sintel / "test").mkdir()
    (tiny_sintel / "training/clean").rename(tiny_sintel / "test/clean")
    pairs = sintel.find_pairs(tiny_sintel, split="test")
    inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    scores = evaluation.evaluate(pairs, tmp_path / "flow")
    assert (scores["clean"]["pairs_inferred"], scores["clean"]["pairs_scored"]) == (4, 0)
    assert scores["clean"].get("all", {}).get("epe") is None
    assert evaluation.chosen_pairs(scores) == {}
    assert evaluation.error_curves(scores) == {}
    assert evaluation.group_table(scores) is not None


def test_no_verdict_unless_vouched_for(pairs, flow_folder):
    scores = evaluation.evaluate(pairs, flow_folder)
    assert "No verdict" in evaluation.verdict(scores, weights_and_data_are_published=False)
    assert "3 of 1041" in evaluation.verdict(scores, weights_and_data_are_published=True)


@pytest.mark.parametrize(("px1", "word"), [(0.9263, "clean: reproduced"), (0.9, "NOT reproduced")])
def test_verdict(px1, word):
    scores = {"clean": {"pairs_scored": 1041, "all": {"px1": px1}}}
    assert word in evaluation.verdict(scores, weights_and_data_are_published=True)


def test_batch_sizes_are_compared(pairs, tmp_path):
    runs = [
        open_run(
            profile="tiny",
            backend="openvino",
            precision="float32",
            batch_size=size,
            outputs=str(tmp_path),
        )
        for size in (1, 4)
    ]
    for run, value in zip(runs, (0, 0.5), strict=True):
        answer = FakeBackend(
            lambda a, b, value=value: np.full((len(a), 2, 128, 160), value, np.float32)
        )
        inference.infer(pairs, answer, run.flow_folder, batch_size=run.batch_size, key="k")
        (run.folder / "infer.json").write_text(json.dumps({}))
    found = evaluation.compare_batch_sizes(pairs, runs[1])
    assert found["bs1"].max == pytest.approx(np.hypot(0.5, 0.5))
    assert not found["bs1"].is_rounding


def test_the_guides_numbers(sintel_sample, golden, tmp_path):
    """The reference flow on the real pairs gives the four numbers of the guide's own
    post-processing.
    """
    wanted = {
        "clean": (9.121573, 0.020089, 0.212481, 0.418883),
        "final": (9.153702, 0.019036, 0.217536, 0.415097),
    }
    pairs = [
        pair
        for name in wanted
        for pair in sintel.find_pairs(sintel_sample, pass_name=name)
        if pair.number == 2
    ]
    with np.load(golden / "gma_reference_sintel_440x1024_iters6.npz") as file:
        answers = iter([file[f"{pair.pass_name}_{pair.scene}"][None] for pair in pairs])
    inference.infer(
        pairs, FakeBackend(lambda a, b: next(answers)), tmp_path / "flow", batch_size=1, key="k"
    )
    for pass_name, scores in evaluation.evaluate(pairs, tmp_path / "flow").items():
        found = tuple(scores["all"][name] for name in ("epe", "px1", "px3", "px5"))
        assert found == pytest.approx(wanted[pass_name], abs=2e-6)


def test_classical_methods_are_scored_on_the_same_pixels(pairs, flow_folder):
    scores, compared = evaluation.beside_classical(pairs, flow_folder)
    assert compared == 6  # those with ground truth
    assert {groups["all"].pixels for groups in scores.values()} == {6 * 128 * 160}
    assert (
        scores["network"]["all"].error == scores["no motion"]["all"].error == 5 * 6 * 128 * 160
    )  # it answers zero
    table = evaluation.classical_table(scores)
    assert table.loc["network", "EPE all pixels"] == 5
    assert "no motion" not in evaluation.classical_curves(scores)
    assert evaluation.beside_classical(pairs, flow_folder, most=2)[1] == 2


def test_the_sentence_says_who_is_ahead():
    def sums(error):
        return {"all": ErrorSums(pixels=10, error=10 * error)}

    ahead = evaluation.classical_sentence(
        {"network": sums(1), "DIS": sums(2), "Farneback": sums(3), "no motion": sums(0.5)}
    )
    assert ahead == "Over all pixels the network (1.00 px) is ahead of DIS (2.00 px)."
    assert "is behind DIS (2.00 px)" in evaluation.classical_sentence(
        {"network": sums(2.5), "DIS": sums(2)}
    )
    assert evaluation.classical_sentence({}) == "No pair has ground truth."
