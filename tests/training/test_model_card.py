"""The card says what the numbers say, and its numbers are those of the file beside it."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from gma_lib.cli import main, train
from gma_lib.data.pair import LoadedPair
from gma_lib.data.sintel import build_index, find_pairs
from gma_lib.flow.classical import dis
from gma_lib.flow.metrics import pool_scores, sum_errors
from gma_lib.network.checkpoints import WEIGHTS_FOLDER
from gma_lib.network.model import GMA
from gma_lib.runs.files import PROJECT, BadFile
from gma_lib.training import model_card as card
from gma_lib.training.config import load_recipe
from gma_lib.training.curve import plot_training
from gma_lib.training.model_card import predict_updates, score_pairs, score_sintel
from gma_lib.training.pairs import render_held_out

pytestmark = pytest.mark.slow
CONFIG = PROJECT / "params" / "train.yaml"
NUMBERS = json.loads((WEIGHTS_FOLDER / "gma-procedural.json").read_text(encoding="utf-8"))


def test_the_page_is_the_numbers():
    page = (WEIGHTS_FOLDER / "gma-procedural.md").read_text(encoding="utf-8")
    assert page == card.make_page(NUMBERS)


def test_the_numbers_belong_to_the_weights():
    file = WEIGHTS_FOLDER / "gma-procedural.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == NUMBERS["sha256"]
    assert file.stat().st_size == NUMBERS["bytes"]


def test_more_updates_do_not_cost_more_than_two_percent():
    for methods in NUMBERS["scores"]["held_out_families"].values():
        for updates in card.SCORED_UPDATES[card.SCORED_UPDATES.index(6) :]:
            assert methods[str(updates)]["all"]["epe"] <= 1.02 * methods["6"]["all"]["epe"]


def test_no_table_is_too_wide_for_a_page():
    lines = (WEIGHTS_FOLDER / "gma-procedural.md").read_text().splitlines()
    widths = [line.count("|") - 1 for line in lines if line.startswith("|---")]
    assert len(widths) > 3
    assert max(widths) <= 12


def test_another_number_is_another_page():
    changed = json.loads(json.dumps(NUMBERS))
    changed["scores"]["held_out_families"]["layers"]["6"]["all"]["epe"] = 98.765
    assert "98.77" in card.make_page(changed)
    assert card.make_page(changed) != card.make_page(NUMBERS)


@pytest.mark.parametrize(
    ("commit", "told"),
    [
        ("0123456789", "commit 0123456, "),
        ("0123456789+changes", "commit 0123456 with changes, "),
        ("0123456789+unknown", "commit 0123456 (state unknown), "),
        (None, "commit unknown, "),
    ],
)
def test_the_page_says_where_the_code_was_not_that_of_the_commit(commit, told):
    changed = json.loads(json.dumps(NUMBERS))
    changed["provenance"]["commit"] = commit
    assert f"Scored by `gma card --score`, {told}" in card.make_page(changed)
    changed["scores"]["sintel_frames"]["provenance"] |= {"commit": commit, "created": "2026"}
    assert f"Scored by an earlier call, {told}" in card.make_page(changed)


def test_the_curve_shows_every_part_to_its_end():
    curve = [point for one in NUMBERS["how"]["records"].values() for point in one["curve"]]
    axes = plot_training(curve).axes[0]
    assert [text.get_text() for text in axes.texts] == list(
        dict.fromkeys(point["phase"] for point in curve)
    )
    steps = [[int(number) for number in point["steps"].split("-")] for point in curve]
    assert axes.get_xlim()[1] == sum(last - first + 1 for first, last in steps)
    assert (WEIGHTS_FOLDER / "gma-procedural-curve.png").is_file()


def test_every_part_of_the_recipe_has_its_minutes_and_they_add_up():
    parts = load_recipe(card.RECIPE).parts
    records = NUMBERS["how"]["records"]
    assert list(records) == [part.name for part in parts if part.training]
    minutes = sum(record["minutes"] for record in records.values())
    assert NUMBERS["how"]["minutes"] == round(minutes)
    assert parts[-1].name == "shipped"


def test_beating_dis_means_both_numbers_on_every_family():
    def family(epe, px1):
        return {"12": {"all": {"epe": epe, "px1": px1}}, "dis": {"all": {"epe": 1.0, "px1": 0.8}}}

    assert card.beats_dis({"a": family(0.9, 0.9), "b": family(0.5, 0.81)})
    assert not card.beats_dis({"a": family(0.9, 0.9), "b": family(0.9, 0.7)})
    assert not card.beats_dis({"a": family(1.1, 0.9)})


def test_the_note_says_who_is_ahead_by_which_measure():
    def scores(epe, px1):
        return {
            "clean": {
                "6": {"all": {"epe": epe, "px1": px1}},
                "dis": {"all": {"epe": 1.0, "px1": 0.8}},
            }
        }

    def compose(found):
        return card.compose_note({"minutes": 27}, found, {"scenes": ["cave_2"], "pairs": 1})

    worse, mixed = compose(scores(1.8, 0.7)), compose(scores(0.8, 0.7))
    assert "1.80 px, behind" in worse
    assert "0.80 px, ahead of" in mixed
    assert all("70.0 %" in note and "behind its 80.0 %" in note for note in (worse, mixed))
    assert "ahead of its 80.0 %" in compose(scores(0.8, 0.9))
    assert "Sintel" not in compose({})


# --- scores --------------------------------------------------------------------------------------


def _predict_dis(frame1, frame2):
    return {"dis": dis(frame1, frame2)}


def test_scores_are_of_the_scenes_after_those_of_validation(
    config, tmp_path, monkeypatch, tiny, small_validation
):
    monkeypatch.setattr(card, "TEST_PAIRS", 2)
    monkeypatch.setattr(card, "SCORED_UPDATES", (1, 2))
    (file := tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    printed = CliRunner().invoke(
        main, ["held-out", "seeded", "--config", str(file), "--device", "cpu"]
    )
    found = json.loads(printed.stdout)  # JSON alone: progress goes to stderr
    assert "planes: 2/2 pairs" in printed.stderr
    validation = render_held_out(config)
    test = render_held_out(config, numbers=range(1, 3))
    for family, pairs in test.items():
        assert set(found[family]) == {"1", "2", "dis"}
        sums = score_pairs(_predict_dis, (pair.to_arrays() for pair in pairs))
        pooled = pool_scores(sums["dis"])["all"].to_metrics()
        assert {name: found[family]["dis"]["all"][name] for name in pooled} == pooled
        assert not any(
            torch.equal(pair.image1, known.image1) for pair in pairs for known in validation[family]
        )


def test_intervals_over_pairs():
    def pair(error, pixels=100):
        moved = np.stack([np.full((1, pixels), error), np.zeros((1, pixels))])
        return sum_errors(moved, np.zeros_like(moved))["all"]

    same = card.estimate_intervals([pair(0.5)] * 4)
    assert same["epe_interval"] == pytest.approx([0.5, 0.5])
    assert same["px1_interval"] == [1, 1]
    mixed = card.estimate_intervals([pair(0.5), pair(2.5)] * 8)
    low, high = mixed["px1_interval"]
    assert 0.2 < low < 0.4
    assert 0.6 < high < 0.8  # 16 pairs, half of them: 0.5 +- 1.96 * 0.125
    assert mixed["epe_interval"][0] < 1.5 < mixed["epe_interval"][1]
    few = card.estimate_intervals([pair(9)] * 3)
    assert set(few.values()) == {None}


def test_refinement_pays_if_nothing_gets_worse():
    def family(epe, px1, occluded):
        alone = {"all": {"epe": 1.0, "px1": 0.8}, "occluded": {"epe": 5.0}}
        refined = {"all": {"epe": epe, "px1": px1}, "occluded": {"epe": occluded}}
        return {"12": alone, "12 refined": refined}

    assert card.refinement_pays({"a": family(0.9, 0.9, 5.0), "b": family(1.0, 0.81, 4.0)})
    for worse in (family(1.1, 0.9, 5.0), family(0.9, 0.8, 5.0), family(0.9, 0.9, 5.1)):
        assert not card.refinement_pays({"a": family(0.9, 0.9, 5.0), "b": worse})


def test_sintel_is_scored_pass_by_pass_over_all_pixels(tiny_sintel, monkeypatch):
    monkeypatch.setattr(card, "SCORED_UPDATES", (1,))
    found = score_sintel("seeded", build_index(tiny_sintel, description=""))
    assert set(found) == {"clean", "final"}
    for pass_name, methods in found.items():
        assert set(methods) == {"1", "dis"}
        pairs = find_pairs(tiny_sintel, pass_name=pass_name)
        pixels = sum(pair.load_flow()[0].size for pair in pairs if pair.flow is not None)
        assert methods["1"]["all"]["pixels"] == methods["dis"]["all"]["pixels"] == pixels


def test_frames_that_change_after_they_were_listed_are_noticed(tiny_sintel, monkeypatch):
    """The card would name the scores of others as those of the frames in its key."""
    monkeypatch.setattr(card, "SCORED_UPDATES", (1,))
    index = build_index(tiny_sintel, description="")
    frames = tiny_sintel / "training" / "final" / "cave"
    shutil.copy(frames / "frame_0003.png", frames / "frame_0002.png")
    with pytest.raises(ValueError, match=r"frame_0002\.png has changed"):
        score_sintel("seeded", index)


@pytest.fixture
def small_excerpt(tiny_sintel):
    """The tiny set, with its scenes named as Sintel's are."""
    for kind in (tiny_sintel / "training").iterdir():
        (kind / "alley").rename(kind / "alley_1")
        (kind / "cave").rename(kind / "cave_2")
    return tiny_sintel


@pytest.mark.parametrize(
    ("kind", "scenes"),
    [("flow", ["alley_1", "cave_2"]), ("occlusions", ["alley_1", "cave_2"]), ("flow", None)],
)
def test_frames_without_truth_or_masks_are_refused_before_anything_is_scored(
    small_excerpt, monkeypatch, kind, scenes
):
    """It was found after an hour of scoring, by a traceback."""
    monkeypatch.setattr(card, "score_held_out", lambda *_, **__: pytest.fail("scored"))
    for scene in scenes or []:
        shutil.rmtree(small_excerpt / "training" / kind / scene)
        if kind == "flow":
            shutil.rmtree(small_excerpt / "training" / "occlusions" / scene)
            shutil.rmtree(small_excerpt / "training" / "invalid" / scene, ignore_errors=True)
    expected = BadFile if scenes else pytest.fail.Exception  # with all there, scoring begins
    with pytest.raises(expected):
        card.update_scores(NUMBERS, sintel=small_excerpt)


def test_scores_are_of_float32(monkeypatch):
    """PyTorch computes convolutions in TF32 on a GPU unless it is told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    frame = np.zeros((3, 128, 128), np.float32)
    predict_updates(GMA().eval(), (1,), frame, frame)
    assert not torch.backends.cudnn.allow_tf32


def test_scores_of_other_frames_scenes_versions_or_machines_are_not_continued(
    small_excerpt, monkeypatch
):
    class Known(Exception):
        """Where the scores are kept is known."""

    def find_kept():
        with pytest.raises(Known) as known:
            card.update_scores(NUMBERS, sintel=small_excerpt)
        return known.value.args[0]

    def score(*_, kept):
        raise Known(kept)

    monkeypatch.setattr(card, "score_held_out", score)
    places = [find_kept()]
    assert find_kept() == places[0]
    frame = small_excerpt / "training" / "final" / "cave_2" / "frame_0002.png"
    frame.write_bytes((frame.parent / "frame_0003.png").read_bytes())
    places.append(find_kept())
    other = dataclasses.replace(card.load_config(CONFIG), validation_pairs=3)
    monkeypatch.setattr(card, "load_config", lambda _: other)
    places.append(find_kept())
    monkeypatch.setattr(card.runs, "find_versions", lambda: {"torch": "0"})
    places.append(find_kept())
    monkeypatch.setattr(card.runs, "identify_processor", lambda: "another")
    places.append(find_kept())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    places.append(find_kept())
    assert len(set(places)) == 6


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the bundled weights that is scored at once: as its card says, and on Sintel alike;
    returns the file.
    """
    folder = shutil.copytree(WEIGHTS_FOLDER, tmp_path / "weights")
    monkeypatch.setattr(card.network, "WEIGHTS_FOLDER", folder)
    monkeypatch.setattr(card.runs, "PROJECT", tmp_path)

    def score(*_, kept, **__):
        kept.mkdir(parents=True)
        return NUMBERS["scores"]["held_out_families"]

    monkeypatch.setattr(card, "score_held_out", score)
    known = NUMBERS["scores"]["sintel_excerpt"]
    monkeypatch.setattr(card, "score_sintel", lambda *_, **__: known)
    return folder / "gma-procedural.safetensors"


def test_damaged_weights_get_no_card_of_their_own(copied):
    assert card.write_card(score=True)["sha256"] == NUMBERS["sha256"]
    before = copied.with_suffix(".json").read_bytes()
    content = bytearray(copied.read_bytes())
    content[6_000_000] ^= 1
    copied.write_bytes(content)
    with pytest.raises(BadFile, match=NUMBERS["sha256"]):
        card.write_card(score=True)
    assert copied.with_suffix(".json").read_bytes() == before


def test_real_frames_are_named_by_what_was_scored(copied, small_excerpt):
    scored = card.write_card(score=True, sintel=small_excerpt)
    about = scored["scores"]["sintel_frames"]
    assert (about["scenes"], about["pairs"]) == (["alley_1", "cave_2"], 3)
    assert about["provenance"] == scored["provenance"]
    assert about["size"] == [128, 160]
    page = copied.with_suffix(".md").read_text()
    assert "3 pairs" in page
    assert "160x128" in page
    again = card.write_card(score=True)  # other scores are measured, these kept
    assert again["scores"]["sintel_frames"] == about
    for kind in ("flow", "occlusions", "invalid"):
        shutil.rmtree(small_excerpt / "training" / kind / "alley_1")
    one = card.write_card(score=True, sintel=small_excerpt)
    assert one["scores"]["sintel_frames"]["scenes"] == ["cave_2"]
    assert "one-scene" in one["note"]
    for kind in (small_excerpt / "training").iterdir():
        (kind / "cave_2").rename(kind / "rush")
    with pytest.raises(BadFile, match="rush"):
        card.write_card(score=True, sintel=small_excerpt)


def test_all_of_sintel_is_no_excerpt():
    about = NUMBERS["scores"]["sintel_frames"] | {"pairs": 1041}
    note = card.compose_note(NUMBERS["how"], NUMBERS["scores"]["sintel_excerpt"], about)
    assert "excerpt" not in note


def test_the_page_shows_the_recipe_of_these_weights_or_none(tmp_path, monkeypatch):
    recipe = yaml.safe_load(card.RECIPE.read_text())
    file = tmp_path / "recipe.yaml"
    monkeypatch.setattr(card, "RECIPE", file)
    file.write_text(yaml.safe_dump(recipe))
    card.make_page(NUMBERS)  # the same settings, written otherwise
    trained = next(part for part in reversed(recipe["parts"]) if "training" in part)
    trained["training"]["seed"] = 424242
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="SHA-256"):
        card.make_page(NUMBERS)


def test_frames_for_the_card_are_those_of_the_current_folder(tiny_sintel, monkeypatch):
    given = []
    monkeypatch.setattr(train, "write_card", lambda **named: given.append(named) or {"note": ""})
    monkeypatch.chdir(tiny_sintel.parent)
    CliRunner().invoke(main, ["card", "--score", "--sintel", tiny_sintel.name])
    assert given[0]["sintel"] == tiny_sintel


def test_flow_has_the_size_of_the_frames():
    frames = np.zeros((2, 3, 130, 150), np.float32)
    flows = predict_updates(GMA().eval(), (1, 2), *frames)
    assert {name: flow.shape for name, flow in flows.items()} == dict.fromkeys("12", (2, 130, 150))


def test_a_pair_without_ground_truth_is_refused():
    frames = np.zeros((2, 3, 128, 128), np.float32)
    with pytest.raises(ValueError, match="ground truth"):
        score_pairs(_predict_dis, [LoadedPair(*frames)])
