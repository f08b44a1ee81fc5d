"""Scores of known flow; nothing is scored over part of the data."""

import numpy as np
import pytest

from gma_lib.backends import FakeBackend
from gma_lib.data import sintel
from gma_lib.evaluate import evaluation, tables
from gma_lib.flow.classical import CLASSICAL
from gma_lib.flow.files import read_flow, write_flow
from gma_lib.flow.metrics import endpoint_error
from gma_lib.flow.refine import refine_flow
from gma_lib.infer import inference
from gma_lib.infer.inference import flow_path, read_hashes
from gma_lib.runs.run import open_run


@pytest.fixture
def flow_folder(pairs, tmp_path):
    """Zero flow for every pair: an error of 5 px everywhere."""
    inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    return tmp_path / "flow"


def test_zero_flow_has_the_error_of_the_shift(pairs, flow_folder):
    scores = evaluation.score_folder(pairs, flow_folder, written=read_hashes(flow_folder))["clean"]
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
    assert tables.describe_counts({"clean": scores}) == "clean: 3 of 4 pairs scored"


def test_the_pool_is_over_pixels(pairs, flow_folder):
    """A pair without error among three: a third of the pixels below 1 px."""
    perfect = FakeBackend(lambda a, b: np.full((1, 2, 128, 160), [[[[3]], [[4]]]], np.float32))
    inference.infer(pairs[:1], perfect, flow_folder, batch_size=1, key="better")
    scores = evaluation.score_folder(pairs, flow_folder, written=read_hashes(flow_folder))["clean"]
    assert scores["all"]["px1"] == pytest.approx(1 / 3)
    assert scores["all"]["epe"] == pytest.approx(10 / 3)
    roles = evaluation.choose_examples({"clean": scores})
    assert roles["best"] == "clean/alley/frame_0001"


@pytest.mark.parametrize("number", [0, 3])  # a scored pair, and one without ground truth
def test_a_missing_pair_is_an_error(pairs, flow_folder, number):
    inference.flow_path(flow_folder, pairs[number]).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 8 pairs have no flow.*{pairs[number].name}"
    ):
        evaluation.score_folder(pairs, flow_folder, written=read_hashes(flow_folder))


def test_a_file_that_inference_did_not_write_is_an_error(pairs, flow_folder):
    write_flow(inference.flow_path(flow_folder, pairs[0]), np.zeros((2, 128, 160)) + 1)
    with pytest.raises(ValueError, match="are not what 04_infer wrote"):
        evaluation.score_folder(pairs, flow_folder, written=read_hashes(flow_folder))


def test_no_pairs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no pairs"):
        evaluation.score_folder([], tmp_path, written={})


def test_without_ground_truth_there_are_no_scores(tiny_sintel, tmp_path):
    (tiny_sintel / "test").mkdir()
    (tiny_sintel / "training/clean").rename(tiny_sintel / "test/clean")
    pairs = sintel.find_pairs(tiny_sintel, split="test")
    inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    scores = evaluation.score_folder(
        pairs, tmp_path / "flow", written=read_hashes(tmp_path / "flow")
    )
    assert (scores["clean"]["pairs_inferred"], scores["clean"]["pairs_scored"]) == (4, 0)
    assert scores["clean"].get("all", {}).get("epe") is None
    assert evaluation.choose_examples(scores) == {}
    assert tables.collect_error_curves(scores) == {}
    groups = tables.tabulate_groups(scores)
    assert groups["EPE, px"].tolist() == [None]


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
    found = evaluation.compare_batch_sizes(pairs, runs[1], runs[:1])
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
    for pass_name, scores in evaluation.score_folder(
        pairs, tmp_path / "flow", written=read_hashes(tmp_path / "flow")
    ).items():
        found = tuple(scores["all"][name] for name in ("epe", "px1", "px3", "px5"))
        assert found == pytest.approx(wanted[pass_name], abs=2e-6)


def test_classical_methods_are_scored_on_the_same_pixels(pairs, flow_folder):
    scores, compared, seconds = evaluation.score_classical(pairs, flow_folder)
    assert compared == 6  # those with ground truth
    refined = 0.0
    for pair in pairs:
        if pair.flow is not None:
            flow = refine_flow(*pair.load_frames(), read_flow(flow_path(flow_folder, pair)))
            refined += endpoint_error(flow, pair.load_flow()).sum()
    assert {groups["all"].pixels for groups in scores.values()} == {6 * 128 * 160}
    assert (
        scores["network"]["all"].error == scores["no motion"]["all"].error == 5 * 6 * 128 * 160
    )  # it answers zero
    table = tables.tabulate_classical(scores, seconds)
    assert table.loc["network", "EPE all pixels"] == 5
    assert list(table.index[:3]) == ["network", "network + variational refinement", *CLASSICAL][:3]
    assert list(table.index[table["s per pair"].isna()]) == ["network"]  # its time is 06's affair
    assert scores["network + variational refinement"]["all"].error == pytest.approx(refined)
    assert "no motion" not in tables.collect_classical_curves(scores)
    assert evaluation.score_classical(pairs, flow_folder, most=2)[1] == 2
