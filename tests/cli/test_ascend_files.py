"""``gma ascend dry-run``: the folder is made as the run's settings say."""

import pytest
from command_line import gma

from gma_lib.ascend.chip import Card
from gma_lib.cli import ascend_files


@pytest.fixture
def write(monkeypatch):
    """Runs the command for a run of these settings, and returns the card that it writes for."""
    cards = []
    monkeypatch.setattr(ascend_files, "read_index", lambda run: {})
    monkeypatch.setattr(ascend_files, "load_pairs", lambda index: [])
    monkeypatch.setattr(ascend_files, "write_folder", lambda *given, **_: cards.append(given[4]))

    def write(settings, *options, exit_code=0):
        monkeypatch.setattr(ascend_files, "read_given", lambda run: settings(run.batch_size))
        printed = gma("ascend", "dry-run", *options, exit_code=exit_code)
        return cards.pop() if exit_code == 0 else printed

    return write


@pytest.mark.parametrize(
    ("recorded", "options", "card"),
    [
        ({"soc": None, "keep": None}, (), Card(soc="310P3", keep="guide")),
        ({"keep": "coordinates"}, (), Card(soc="310P3", keep="coordinates")),
        ({"soc": "910B3"}, (), Card(soc="910B3", keep="guide")),
        ({}, ("--soc", "910B3", "--keep", "guide"), Card(soc="910B3", keep="guide")),
        (
            {"soc": "310P3", "precision_mode_v2": "fp16"},
            ("--soc", "Ascend310P3"),
            Card(soc="Ascend310P3", keep="guide", precision_mode_v2="fp16"),
        ),
    ],
)
def test_the_card_is_the_one_of_the_run(write, recorded, options, card):
    assert write(lambda size: recorded, *options) == card


@pytest.mark.parametrize(
    ("recorded", "options"),
    [
        ({"keep": "coordinates"}, ("--keep", "guide")),
        ({}, ("--keep", "coordinates")),
        ({"soc": "310P3"}, ("--soc", "910B3")),
    ],
)
def test_an_option_that_contradicts_the_run(write, recorded, options):
    printed = write(lambda size: recorded, *options, exit_code=1)
    assert f"{options[0][2:]} is " in printed
    assert "02_export" in printed


def test_batch_sizes_for_different_cards(write):
    printed = write(lambda size: {"keep": "coordinates" if size == 4 else None}, exit_code=1)
    assert "different cards" in printed
