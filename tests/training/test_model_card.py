"""The card says what the numbers say, and its numbers are those of the file beside it."""

import hashlib
import json

from gma_lib.network.checkpoints import WEIGHTS_FOLDER
from gma_lib.training import model_card as card

NUMBERS = json.loads((WEIGHTS_FOLDER / "gma-procedural.json").read_text(encoding="utf-8"))


def test_the_page_is_the_numbers():
    page = (WEIGHTS_FOLDER / "gma-procedural.md").read_text(encoding="utf-8")
    assert page == card.make_page(NUMBERS)


def test_the_numbers_belong_to_the_weights():
    file = WEIGHTS_FOLDER / "gma-procedural.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == NUMBERS["sha256"]
    assert file.stat().st_size == NUMBERS["bytes"]


def test_another_number_is_another_page():
    changed = json.loads(json.dumps(NUMBERS))
    changed["scores"]["held_out_families"]["layers"]["6"]["all"]["epe"] = 98.765
    assert "98.77" in card.make_page(changed)
    assert card.make_page(changed) != card.make_page(NUMBERS)


def test_the_curve_shows_every_part_to_its_end():
    curve = NUMBERS["how"]["curve"]
    axes = card.plot_training(curve).axes[0]
    assert [text.get_text() for text in axes.texts] == list(
        dict.fromkeys(point["phase"] for point in curve)
    )
    steps = [[int(number) for number in point["steps"].split("-")] for point in curve]
    assert axes.get_xlim()[1] == sum(last - first + 1 for first, last in steps)
    assert (WEIGHTS_FOLDER / "gma-procedural-curve.png").is_file()


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

    worse, mixed = card.compose_note(27, scores(1.8, 0.7)), card.compose_note(27, scores(0.8, 0.7))
    assert "1.80 px" in worse
    assert (
        "behind classical DIS (1.00 px), and 70.0 % of pixels below one pixel, behind its 80.0 %"
        in worse
    )
    assert (
        "ahead of classical DIS (1.00 px), and 70.0 % of pixels below one pixel, behind its 80.0 %"
        in mixed
    )
    assert "ahead of its 80.0 %" in card.compose_note(27, scores(0.8, 0.9))
    assert "Sintel" not in card.compose_note(27, {})
