"""Scores of known flow; nothing is scored over part of the data."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import record_flow

from gma_lib.backends import FakeBackend
from gma_lib.data import sintel
from gma_lib.evaluate import evaluation, tables
from gma_lib.flow.classical import CLASSICAL
from gma_lib.flow.files import read_flow, write_flow
from gma_lib.flow.images import write_frame, write_mask
from gma_lib.flow.metrics import endpoint_error, group_pixels
from gma_lib.flow.refine import refine_flow
from gma_lib.infer import inference
from gma_lib.infer.inference import StoredFlow, flow_path, read_hashes
from gma_lib.runs.files import hash_file
from gma_lib.runs.run import open_run


@pytest.fixture
def flow_folder(pairs, tmp_path):
    """Zero flow for every pair: an error of 5 px everywhere."""
    inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    return tmp_path / "flow"


def stored_in(folder):
    """What inference wrote there."""
    return StoredFlow(folder, read_hashes(folder))


def test_zero_flow_has_the_error_of_the_shift(pairs, flow_folder):
    scores = evaluation.score_folder(pairs, stored_in(flow_folder))["clean"]
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
    scores = evaluation.score_folder(pairs, stored_in(flow_folder))["clean"]
    assert scores["all"]["px1"] == pytest.approx(1 / 3)
    assert scores["all"]["epe"] == pytest.approx(10 / 3)
    roles = evaluation.choose_examples({"clean": scores})
    assert roles["best"] == "clean/alley/frame_0001"


def rewrite_after_the_first(path):
    """Other flow in a file, once the first of the items has been shown."""

    def track(items, **_):
        for item in items:
            yield item
            write_flow(path, np.full((2, 128, 160), 40, np.float32))

    return track


@pytest.mark.parametrize("read", [evaluation.score_folder, evaluation.compare_methods])
def test_flow_that_is_rewritten_while_others_are_scored_is_an_error(pairs, flow_folder, read):
    """It was checked once, before all: the scores were of both, without a word."""
    path = flow_path(flow_folder, pairs[6])
    with pytest.raises(ValueError, match=r"frame_0001\.flo has changed .* run 04_infer again"):
        read(pairs, stored_in(flow_folder), track=rewrite_after_the_first(path))


@pytest.mark.parametrize("which", [0, 1])
def test_batch_sizes_are_compared_as_they_were_written(pairs, tmp_path, which):
    runs = open_runs(tmp_path)
    for run in runs:
        inference.infer(pairs, FakeBackend(), run.flow_folder, batch_size=run.batch_size, key="k")
    theirs, stored = (stored_in(run.flow_folder) for run in runs)
    path = flow_path(runs[which].flow_folder, pairs[0])
    write_flow(path, np.full((2, 128, 160), 40, np.float32))
    with pytest.raises(ValueError, match=f"^{path} has changed .* run 04_infer again"):
        evaluation.compare_batch_sizes(pairs, stored, {runs[0]: theirs.written})


@pytest.mark.parametrize("number", [0, 3])  # a scored pair, and one without ground truth
def test_a_missing_pair_is_an_error(pairs, flow_folder, number):
    inference.flow_path(flow_folder, pairs[number]).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 8 pairs have no flow.*{pairs[number].name}"
    ):
        evaluation.score_folder(pairs, stored_in(flow_folder))


def test_a_file_that_inference_did_not_write_is_an_error(pairs, flow_folder):
    write_flow(inference.flow_path(flow_folder, pairs[0]), np.zeros((2, 128, 160)) + 1)
    with pytest.raises(ValueError, match="are not what 04_infer wrote"):
        evaluation.score_folder(pairs, stored_in(flow_folder))


def test_no_pairs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no pairs"):
        evaluation.score_folder([], StoredFlow(tmp_path, {}))


def test_without_ground_truth_there_are_no_scores(tiny_sintel, tmp_path):
    (tiny_sintel / "test").mkdir()
    (tiny_sintel / "training/clean").rename(tiny_sintel / "test/clean")
    pairs = sintel.find_pairs(tiny_sintel, split="test")
    inference.infer(pairs, FakeBackend(), tmp_path / "flow", batch_size=4, key="k")
    scores = evaluation.score_folder(pairs, stored_in(tmp_path / "flow"))
    assert (scores["clean"]["pairs_inferred"], scores["clean"]["pairs_scored"]) == (4, 0)
    assert scores["clean"].get("all", {}).get("epe") is None
    assert evaluation.choose_examples(scores) == {}
    assert tables.collect_error_curves(scores) == {}
    groups = tables.tabulate_groups(scores)
    assert groups["EPE, px"].tolist() == [None]


def open_runs(outputs):
    """One at batch size 1, one at 4."""
    settings = {"profile": "tiny", "backend": "openvino", "precision": "float32"}
    return [open_run(**settings, batch_size=size, outputs=str(outputs)) for size in (1, 4)]


def test_batch_sizes_are_compared(pairs, tmp_path):
    runs = open_runs(tmp_path)
    for run, value in zip(runs, (0, 0.5), strict=True):
        answer = FakeBackend(
            lambda a, b, value=value: np.full((len(a), 2, 128, 160), value, np.float32)
        )
        inference.infer(pairs, answer, run.flow_folder, batch_size=run.batch_size, key="k")
    written, stored = read_hashes(runs[0].flow_folder), stored_in(runs[1].flow_folder)
    found = evaluation.compare_batch_sizes(pairs, stored, {runs[0]: written})
    assert found["bs1"].max == pytest.approx(np.hypot(0.5, 0.5))
    assert not found["bs1"].is_rounding


def test_flow_of_earlier_settings_is_not_compared(pairs, tmp_path):
    """A batch size that was computed again with fewer pairs still has the files of the others."""
    runs = open_runs(tmp_path)
    for run in runs:
        for pair in pairs[:2]:
            path = flow_path(run.flow_folder, pair)
            path.parent.mkdir(parents=True, exist_ok=True)
            is_left = run is runs[0] and pair is pairs[1]
            write_flow(path, np.full((2, 128, 160), 5.0 if is_left else 0.0, np.float32))
    stored = record_flow(pairs[:2], runs[1].flow_folder)
    for number, largest in ((1, [0]), (2, [50**0.5]), (0, [])):
        theirs = record_flow(pairs[:number], runs[0].flow_folder).written
        found = evaluation.compare_batch_sizes(pairs[:2], stored, {runs[0]: theirs})
        assert [one.max for one in found.values()] == pytest.approx(largest)


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
    for pass_name, scores in evaluation.score_folder(pairs, stored_in(tmp_path / "flow")).items():
        found = tuple(scores["all"][name] for name in ("epe", "px1", "px3", "px5"))
        assert found == pytest.approx(wanted[pass_name], abs=2e-6)


def test_every_method_is_scored_on_the_same_pixels(pairs, flow_folder):
    compared, left_out = evaluation.compare_methods(pairs, stored_in(flow_folder))
    assert {name: one.pairs for name, one in compared.items()} == {"clean": 3, "final": 3}
    assert not left_out
    names = ["network", "network + variational refinement", *CLASSICAL]
    for pass_name, one in compared.items():
        assert list(one.scores) == names
        assert list(one.seconds) == names[1:]  # the network's time is 06's affair
        refined = 0.0
        for pair in pairs:
            if pair.flow is not None and pair.pass_name == pass_name:
                flow = refine_flow(*pair.load_frames(), read_flow(flow_path(flow_folder, pair)))
                refined += endpoint_error(flow, pair.load_flow()).sum()
        assert one.scores[names[1]]["all"].error == pytest.approx(refined)
        assert {groups["all"].pixels for groups in one.scores.values()} == {3 * 128 * 160}
        assert one.scores["network"] == one.scores["no motion"]  # it answers zero
    methods = evaluation.pool_methods(compared)
    assert methods["network"]["all"].error == 5 * 6 * 128 * 160
    assert "no motion" not in tables.collect_classical_curves(methods)
    fewer, _ = evaluation.compare_methods(pairs, stored_in(flow_folder), most=1)
    assert {name: one.pairs for name, one in fewer.items()} == {"clean": 1}
    assert evaluation.compare_methods(pairs, stored_in(flow_folder), most=0) == ({}, {})


def test_every_method_has_the_groups_and_metrics_of_the_network(pairs, flow_folder):
    """The network's in the comparison are its own scores, where all pairs are compared: also over
    valid pixels, of which the comparison knew nothing.
    """
    invalid = np.zeros((128, 160), bool)
    invalid[:32] = True
    write_mask(pairs[0].invalid, invalid)
    scores = evaluation.score_folder(pairs, stored_in(flow_folder))
    record = evaluation.summarise_methods(
        *evaluation.compare_methods(pairs, stored_in(flow_folder))
    )
    assert (record.pop("pairs"), record.pop("left_out")) == (6, {})
    groups = [*group_pixels(np.zeros((2, 128, 160)), invalid)]
    for pass_name in ("clean", "final"):
        known = {group: scores[pass_name][group] for group in groups}
        assert known["valid"]["pixels"] == 3 * 128 * 160 - 32 * 160
        assert record["network"][pass_name] == {"pairs": 3} | known
        for method in record.values():
            assert method[pass_name].keys() == {"pairs", *groups}
            assert method[pass_name]["s0_10"].keys() == known["s0_10"].keys()
            assert method["all"]["pixels"] == 2 * method[pass_name]["all"]["pixels"]


@pytest.mark.parametrize(
    ("size", "reason"), [((12, 20), "20x12 px; refinement needs at least 16 px"), ((16, 16), "")]
)
def test_a_method_that_cannot_compute_a_pair_has_no_score(tmp_path, size, reason):
    """The refinement gave the network's own flow and score for frames below its smallest size."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in (1, 2)]
    for file in files:
        write_frame(file, rng.integers(0, 256, (3, *size)).astype(np.float32))
    write_flow(tmp_path / "truth.flo", np.ones((2, *size), np.float32))
    pair = sintel.FramePair("clean", "s", 1, *files, tmp_path / "truth.flo")
    flow_path(tmp_path, pair).parent.mkdir(parents=True)
    write_flow(flow_path(tmp_path, pair), np.zeros((2, *size), np.float32))
    compared, left_out = evaluation.compare_methods([pair], record_flow([pair], tmp_path))
    names = {"network", "network + variational refinement", *CLASSICAL}
    assert compared["clean"].scores.keys() == names - left_out.keys()
    assert list(left_out) == ["network + variational refinement"] * bool(reason)
    told = tables.describe_left_out(["clean"], compared, left_out)
    assert reason in told
    assert bool(told) == bool(reason)
    assert tables.tabulate_methods(compared["clean"]).loc["network", "EPE, px"] == pytest.approx(
        2**0.5
    )
    record = evaluation.summarise_methods(compared, left_out)
    assert record["left_out"] == left_out
    assert tables.summarise_scores(record).startswith("GMA is off by 1.41 px on average over 1 ")


def test_a_method_that_fails_is_named_and_has_no_score(pairs, flow_folder, monkeypatch):
    """On its second pair: a score of the first alone would be of other pixels than the others'."""
    answers = iter([np.zeros((2, 128, 160), np.float32), np.full((2, 128, 160), np.nan)])
    monkeypatch.setitem(CLASSICAL, "DIS (OpenCV, medium)", lambda *_: next(answers))
    compared, left_out = evaluation.compare_methods(pairs, stored_in(flow_folder))
    assert "DIS (OpenCV, medium)" not in compared["clean"].scores
    told = tables.describe_left_out(["clean", "final"], compared, left_out)
    assert "DIS (OpenCV, medium) is left out: clean/alley/frame_0002: " in told
    assert "not finite" in told


def test_frames_of_another_size_than_the_truth_are_an_error(pairs, flow_folder):
    """Each classical method failed on them in its own way."""
    write_frame(pairs[0].image1, np.zeros((3, 100, 120), np.float32))
    with pytest.raises(ValueError, match=r"clean/alley/frame_0001: .* 120x100 and 160x128 px"):
        evaluation.compare_methods(pairs, stored_in(flow_folder))


@pytest.mark.parametrize(
    ("kind", "mask"),
    [("invalid", np.ones((128, 160), bool)), ("occlusion", np.ones((128, 160), bool))],
)
def test_groups_without_pixels_have_no_score(pairs, flow_folder, kind, mask):
    """Where no pixel is valid, or all are occluded, the others count as before."""
    for pair in pairs:
        if pair.flow is not None:
            write_mask(getattr(pair, kind), mask)
    scores = evaluation.score_folder(pairs, stored_in(flow_folder))["clean"]
    empty = scores["valid" if kind == "invalid" else "non_occluded"]
    assert empty.pop("pixels") == 0
    assert set(empty.values()) == {None}
    assert scores["all"]["epe"] == 5
    compared, left_out = evaluation.compare_methods(pairs, stored_in(flow_folder))
    assert not left_out
    record = evaluation.summarise_methods(compared, left_out)
    group = "valid" if kind == "invalid" else "non_occluded"
    assert record["no motion"]["clean"][group] == scores[group] | {"pixels": 0}
    told = tables.describe_classical(evaluation.pool_methods(compared))
    assert told.startswith("Over all pixels the network (5.00 px, 1px 0.0%) is ")


def test_a_pass_without_ground_truth_is_named(pairs, flow_folder):
    bare = {"flow": None, "occlusion": None, "invalid": None}
    mixed = [replace(one, **bare) if one.pass_name == "final" else one for one in pairs]
    scores = evaluation.score_folder(mixed, stored_in(flow_folder))
    compared, left_out = evaluation.compare_methods(mixed, stored_in(flow_folder))
    assert list(compared) == ["clean"]
    told = tables.describe_left_out(scores, compared, left_out)
    assert "final" in told
    assert "clean" not in told
    assert evaluation.summarise_methods(compared, left_out)["network"].keys() >= {"clean", "all"}
    assert "final" not in evaluation.summarise_methods(compared, left_out)["network"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda file: write_flow(file, np.zeros((2, 128, 150))),
            r"\(2, 128, 160\).*\(2, 128, 150\)",
        ),
        (lambda file: write_mask(file, np.ones((1, 160), bool)), "the mask occluded has shape"),
        (lambda file: file.unlink(), "has changed or gone since"),
    ],
    ids=["flow", "row of a mask", "missing"],
)
def test_ground_truth_that_does_not_fit_is_named(pairs, flow_folder, change, words):
    file = pairs[0].occlusion if "mask" in words else pairs[0].flow
    if "gone" in words:
        pairs[0] = replace(pairs[0], sha256={"flow": hash_file(file)})
    change(file)
    with pytest.raises(ValueError, match=words) as caught:
        evaluation.score_folder(pairs[:1], stored_in(flow_folder))
    assert str(pairs[0].flow) in str(caught.value)


def test_flow_with_nan_is_named(pairs, flow_folder):
    path = flow_path(flow_folder, pairs[1])
    content = bytearray(path.read_bytes())
    content[40:44] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"frame_0002\.flo against .*the flow holds 1 value"):
        evaluation.compare_methods(pairs, record_flow(pairs, flow_folder))


def test_batch_sizes_with_other_frames_name_the_files(pairs, tmp_path):
    runs = open_runs(tmp_path)
    for run, width in zip(runs, (160, 150), strict=True):
        path = flow_path(run.flow_folder, pairs[0])
        path.parent.mkdir(parents=True)
        write_flow(path, np.zeros((2, 128, width), np.float32))
    theirs, stored = (record_flow(pairs[:1], run.flow_folder) for run in runs)
    with pytest.raises(ValueError, match=r"bs4.*frame_0001\.flo against .*bs1.*shape"):
        evaluation.compare_batch_sizes(pairs[:1], stored, {runs[0]: theirs.written})
