"""``gma train``, ``gma held-out`` and others: which weights they take."""

from pathlib import Path

import pytest
from command_line import gma

from gma_lib.cli import bench, export, train
from gma_lib.runs.files import PROJECT

CONFIG = "--config", PROJECT / "params" / "train.yaml", "--device", "cpu"


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ((train, "train"), ("train", *CONFIG, "--weights")),
        ((train, "score_held_out"), ("held-out", *CONFIG)),
        ((bench, "measure_precisions"), ("precision", "--checkpoint")),
        (
            (export, "export_model"),
            ("export", "-o", "model", "--height", 128, "--width", 128, "--checkpoint"),
        ),
    ],
    ids=["train", "held-out", "precision", "export"],
)
def test_a_file_of_weights_is_that_of_the_current_folder(place, command, tmp_path, monkeypatch):
    given = []

    def take(*values, **named):
        values += tuple(named.values())
        given.extend(str(getattr(value, "checkpoint", value)) for value in values)
        raise ValueError("which weights the command takes is known now")

    monkeypatch.setattr(*place, take)
    monkeypatch.chdir(tmp_path)
    file = Path("README.md")  # the project has one too
    file.write_bytes(b"weights")
    for name, expected in ((file, str(tmp_path / file)), ("seeded", "seeded")):
        gma(*command, name, exit_code=1)
        assert expected in given


@pytest.mark.parametrize("options", [["--resume"], ["--weights", "seeded"]])
def test_a_training_is_resumed_or_begun_and_not_both(options, monkeypatch):
    trained = []
    monkeypatch.setattr(train, "train", lambda *_, **named: trained.append(named))
    gma("train", *CONFIG, *options)
    gma("train", *CONFIG, "--resume", "--weights", "seeded", exit_code=2)
    assert [(one["resume"], one["weights"]) for one in trained] == [
        (options == ["--resume"], None if options == ["--resume"] else "seeded")
    ]
