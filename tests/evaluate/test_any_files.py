"""Anybody's flow files are matched by name and scored where the ground truth is known."""

import os
import shutil

import cv2
import numpy as np
import pytest

from gma_lib.evaluate.any_files import match_files, score_files
from gma_lib.flow.files import write_flow
from gma_lib.flow.images import write_mask
from gma_lib.runs.files import BadFile


@pytest.fixture
def folders(tmp_path):
    """Ground truth of 3, 4 px in two fields, one pixel of which is unknown; zero predictions."""
    truth = np.full((2, 10, 12), [[[3.0]], [[4.0]]], np.float32)
    for name in ("a/one", "a/two"):
        write_flow(tmp_path / f"truth/{name}.flo", truth)
        write_flow(tmp_path / f"mine/{name}.flo", np.zeros_like(truth))
    truth[:, 0, 0] = np.inf
    np.save(tmp_path / "truth/a/two.npy", truth)
    (tmp_path / "truth/a/two.flo").unlink()
    return tmp_path / "mine", tmp_path / "truth"


def test_fields_are_pooled_over_known_pixels(folders):
    files = match_files(*folders)
    assert list(files) == ["a/one", "a/two"]
    sums, unknown = score_files(files)
    assert (sums["all"].pixels, unknown) == (2 * 120 - 1, 1)
    assert sums["all"].error == 5 * (2 * 120 - 1)
    assert "occluded" not in sums


def test_masks_have_the_names_of_the_truth(folders, tmp_path):
    mask = np.zeros((10, 12), np.uint8)
    mask[5:] = 255
    for name in ("one", "two"):
        (tmp_path / "masks/a").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / f"masks/a/{name}.png"), mask)
    sums, _ = score_files(match_files(*folders), occlusions=tmp_path / "masks")
    assert sums["occluded"].pixels == 2 * 60
    with pytest.raises(ValueError, match="one mask for 2 fields"):
        score_files(match_files(*folders), occlusions=tmp_path / "masks/a/one.png")


def test_a_missing_prediction_is_an_error(folders):
    (folders[0] / "a/two.flo").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 predictions are missing \(first: a/two\)"):
        match_files(*folders)
    with pytest.raises(ValueError, match="two flow files or two folders"):
        match_files(folders[0], folders[1] / "a/one.flo")


def test_a_folder_of_truth_without_a_flow_file_is_an_error(folders):
    """No field at all would be a mean of nothing."""
    for path in folders[1].rglob("*.*"):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(BadFile) as refused:
        match_files(*folders)
    assert refused.value.args[0] == folders[1]


def test_the_same_field_twice_is_an_error(folders):
    np.save(folders[0] / "a/two.npy", np.zeros((2, 10, 12), np.float32))
    with pytest.raises(ValueError, match="same field twice"):
        match_files(*folders)


def test_what_gma_submit_writes_is_scored_against_sintels_names(folders):
    mine, truth = folders
    for folder, name in ((mine, "frame0001.flo"), (truth, "frame_0001.flo")):
        (folder / "a/one.flo").rename(folder / "a" / name)
    assert list(match_files(*folders)) == ["a/frame_0001", "a/two"]
    write_flow(mine / "a/frame_0001.flo", np.zeros((2, 10, 12), np.float32))
    with pytest.raises(ValueError, match="same field twice"):
        match_files(*folders)


def test_hidden_files_are_left_out_and_capitals_are_the_same(folders, tmp_path):
    mine, truth = folders
    (mine / "a/one.flo").rename(mine / "a/one.FLO")
    (truth / "a/._two.flo").write_bytes(b"of macOS")
    (tmp_path / "masks/a").mkdir(parents=True)
    for name in ("one", "two"):
        write_mask(tmp_path / f"masks/a/{name}.PNG", np.eye(10, 12, dtype=bool))
    sums, _ = score_files(match_files(*folders), occlusions=tmp_path / "masks")
    assert sums["occluded"].pixels == 2 * 10 - 1  # one is unknown
    (tmp_path / "masks/a/two.PNG").unlink()
    with pytest.raises(BadFile, match=r"a/two\.png: no such mask"):
        score_files(match_files(*folders), occlusions=tmp_path / "masks")


def test_what_is_no_file_is_named(folders, tmp_path):
    os.mkfifo(tmp_path / "pipe.flo")
    for wrong in (tmp_path / "pipe.flo", tmp_path / "none.flo"):
        with pytest.raises(BadFile, match=wrong.name):
            score_files(match_files(wrong, folders[1] / "a/one.flo"))


def test_a_mask_of_a_folder_is_found_for_two_files(folders, tmp_path):
    mine, truth = folders
    (truth / "a/one.flo").rename(truth / "a/frame0001.flo")
    write_mask(tmp_path / "masks/frame_0001.png", np.eye(10, 12, dtype=bool))
    files = match_files(mine / "a/one.flo", truth / "a/frame0001.flo")
    sums, _ = score_files(files, occlusions=tmp_path / "masks")
    assert sums["occluded"].pixels == 10


def test_fields_behind_links_are_scored(folders, tmp_path):
    mine, truth = folders
    (truth / "a").rename(tmp_path / "elsewhere")
    for name in ("a", "b"):  # one truth for two passes
        (truth / name).symlink_to(tmp_path / "elsewhere")
    shutil.copytree(mine / "a", mine / "b")
    assert list(match_files(mine, truth)) == ["a/one", "a/two", "b/one", "b/two"]


@pytest.mark.parametrize("target", ["nowhere", "..", "."])
def test_a_link_to_nothing_or_in_a_circle_is_an_error(folders, target):
    (folders[1] / "a/b").symlink_to(target)
    with pytest.raises(BadFile, match=r"a/b: a link to"):
        match_files(*folders)


def test_a_folder_that_cannot_be_listed_is_an_error(folders, monkeypatch):
    shutil.copytree(folders[1] / "a", folders[1] / "b")

    def refuse(look):
        def replacement(place="."):
            if os.fspath(place) == str(folders[1] / "b"):
                raise PermissionError(13, "Permission denied", str(place))
            return look(place)

        return replacement

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    with pytest.raises(PermissionError):
        match_files(*folders)
