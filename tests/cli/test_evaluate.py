"""``gma evaluate``: scores of files and folders, and what cannot be scored."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import gma

from gma_lib.cli import main
from gma_lib.flow.files import (
    read_flow_file,
    write_flow,
    write_flow_file,
    write_kitti_flow,
)
from gma_lib.flow.images import write_mask


@pytest.fixture
def fields(tmp_path):
    """Truth of (3, 4) everywhere, a prediction that is half a pixel off on its left half and 8 px
    off on its right.
    """
    truth = np.stack([np.full((10, 20), 3.0), np.full((10, 20), 4.0)]).astype(np.float32)
    prediction = truth.copy()
    prediction[0, :, :10] += 0.5
    prediction[0, :, 10:] += 8
    for folder, flow in (("truth", truth), ("prediction", prediction)):
        for name in ("scene/a", "scene/b"):
            write_flow(tmp_path / folder / f"{name}.flo", flow)
    return tmp_path


def test_evaluate_two_files(fields):
    answer = gma(
        "evaluate", fields / "prediction/scene/a.flo", fields / "truth/scene/a.flo", "--json"
    )
    everything = json.loads(answer)["all"]
    assert everything["epe"] == pytest.approx(4.25)
    assert everything["px1"] == pytest.approx(0.5)
    assert "4.250   50.00   50.00   50.00" in gma(
        "evaluate", fields / "prediction/scene/a.flo", fields / "truth/scene/a.flo"
    )


def test_ground_truth_in_another_format_is_counted(fields):
    folders = fields / "prediction", fields / "truth"
    assert json.loads(gma("evaluate", *folders, "--json"))["other_files"] == 0
    assert "left out" not in gma("evaluate", *folders)
    for name in ("c.pfm", "d.flo5", ".hidden"):
        (fields / "truth/scene" / name).touch()
    assert json.loads(gma("evaluate", *folders, "--json"))["other_files"] == 2
    assert "left out: 2 files" in gma("evaluate", *folders)


def test_predictions_without_ground_truth_are_counted(fields):
    (fields / "truth/scene/a.flo").unlink()
    folders = [str(fields / "prediction"), str(fields / "truth")]
    done = CliRunner().invoke(main, ["evaluate", *folders, "--json"])
    assert json.loads(done.stdout)["predictions_without_truth"] == 1
    (line,) = done.stderr.splitlines()
    assert re.findall(r"\d+|scene/\w+", line) == ["1", "scene/a"]
    two = [fields / folder / "scene/b.flo" for folder in ("prediction", "truth")]
    assert json.loads(gma("evaluate", *two, "--json"))["predictions_without_truth"] == 0


def test_evaluate_folders_with_masks(fields):
    mask = np.zeros((10, 20), bool)
    mask[:, 10:] = True
    for name in ("a", "b"):
        write_mask(fields / "masks/scene" / f"{name}.png", mask)
    scores = json.loads(
        gma(
            "evaluate",
            fields / "prediction",
            fields / "truth",
            "--occlusions",
            fields / "masks",
            "--json",
        )
    )
    assert scores["fields"] == 2
    assert scores["occluded"]["epe"] == pytest.approx(8)
    assert scores["non_occluded"]["epe"] == pytest.approx(0.5)


def test_the_table_fits_a_terminal_of_60_columns(fields, monkeypatch):
    folders = fields / "prediction", fields / "truth"
    monkeypatch.setenv("COLUMNS", "60")
    narrow = gma("evaluate", *folders)
    assert max(map(len, narrow.splitlines())) <= 60
    monkeypatch.setenv("COLUMNS", "80")
    wide = gma("evaluate", *folders)
    assert len(wide.splitlines()) < len(narrow.splitlines())
    assert wide.split()[-12:] == narrow.split()[-12:]


@pytest.mark.parametrize(
    ("speed", "shown"), [(9998, "9998.000"), (9999.9996, "1.00e+04"), (123456, "1.23e+05")]
)
def test_a_large_epe_keeps_its_column(fields, speed, shown):
    flow = np.zeros((2, 10, 20), np.float32)
    flow[0] = speed
    write_flow(fields / "a.flo", flow)
    write_flow(fields / "b.flo", flow * 0)
    table = gma("evaluate", fields / "a.flo", fields / "b.flo")
    head, row = table.splitlines()[1:3]
    assert row.split()[-6:-4] == ["200", shown]
    assert len(row) == len(head)


def test_as_quiet_as_other_commands(fields):
    folders = fields / "prediction", fields / "truth"
    assert gma("evaluate", *folders, "-q") == ""
    assert str(folders[0]) in gma("evaluate", *folders, "-v")


def test_a_missing_prediction_is_an_error(fields):
    (fields / "prediction/scene/b.flo").unlink()
    assert "1 of 2 predictions are missing (first: scene/b)" in gma(
        "evaluate", fields / "prediction", fields / "truth", exit_code=1
    )


def test_unknown_truth_is_left_out_and_unknown_predictions_are_refused(fields):
    flow, _ = read_flow_file(fields / "truth/scene/a.flo")
    known = np.ones((10, 20), bool)
    known[:, 10:] = False
    write_kitti_flow(fields / "truth.png", flow, known)
    scores = json.loads(
        gma("evaluate", fields / "prediction/scene/a.flo", fields / "truth.png", "--json")
    )
    assert scores["all"]["pixels"] == scores["pixels_without_truth"] == 100
    assert scores["all"]["epe"] == pytest.approx(0.5)
    assert "left out: 100 pixels" in gma(
        "evaluate", fields / "prediction/scene/a.flo", fields / "truth.png"
    )
    assert "100 pixels hold no flow" in gma(
        "evaluate", fields / "truth.png", fields / "truth/scene/a.flo", exit_code=1
    )


def test_truth_that_is_known_nowhere_gives_no_score(fields):
    flow, known = read_flow_file(fields / "truth/scene/a.flo")
    write_kitti_flow(fields / "truth.png", flow, ~known)
    assert "known in no pixel" in gma(
        "evaluate", fields / "prediction/scene/a.flo", fields / "truth.png", exit_code=1
    )
    write_flow(fields / "nan.flo", np.full_like(flow, np.nan))
    assert "known in no pixel" in gma(
        "evaluate", fields / "prediction/scene/a.flo", fields / "nan.flo", exit_code=1
    )


def test_fields_of_two_sizes_are_refused(fields):
    write_flow_file(fields / "small.npy", np.zeros((2, 5, 10), np.float32))
    assert "has 10x5 px and its ground truth" in gma(
        "evaluate", fields / "small.npy", fields / "truth/scene/a.flo", exit_code=1
    )
