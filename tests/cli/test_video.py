"""``gma video``: flow along folders and videos; unfinished folders cannot pass for whole ones."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import FAST, gma

from gma_lib.data import clips
from gma_lib.flow.files import (
    read_flow,
)


def write_video(path: Path, folder: Path) -> None:
    pictures = [cv2.imread(str(file))[:, :, ::-1] for file in sorted(folder.iterdir())]
    clips.write_movie(path, iter(pictures), frames_per_second=10)


@pytest.mark.parametrize("kind", ["folder", "mp4"])
def test_flow_along_a_clip(kind, photos, tmp_path):
    clip = photos
    if kind == "mp4":
        clip = tmp_path / "clip.mp4"
        write_video(clip, photos)
    gma("video", clip, "-o", tmp_path / "out", "--movie", *FAST)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "flow.json",
        "flow.mp4",
        "frame_0001.flo",
        "frame_0002.flo",
        "frame_0003.flo",
    ]
    assert json.loads((tmp_path / "out" / "flow.json").read_text())["pairs"] == 3
    assert len(list(clips.read_clip(tmp_path / "out" / "flow.mp4"))) == 3
    if kind == "folder":
        gma("flow", photos / "shot 2.png", photos / "shot 3.png", "-o", tmp_path / "a.flo", *FAST)
        np.testing.assert_allclose(
            read_flow(tmp_path / "out" / "frame_0002.flo"), read_flow(tmp_path / "a.flo"), atol=2e-3
        )


def test_a_folder_with_other_things_is_left_alone(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    assert "not an empty folder" in gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_what_was_computed_of_a_broken_clip_cannot_pass_for_all_of_it(photos, tmp_path):
    (photos / "shot 3.png").write_text("not an image")
    answer = gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)
    assert "shot 3.png: not a readable image" in answer
    assert "out.partial holds the flow of the first 1 pair" in answer
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["frame_0001.flo"]
    assert "out.partial exists" in gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)


def test_clips_that_are_none(photos, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 1000)
    assert "no frames that can be decoded" in gma(
        "video", tmp_path / "broken.mp4", "-o", tmp_path / "a", *FAST, exit_code=1
    )
    (photos / "shot 2.png").unlink()
    (photos / "shot 3.png").unlink()
    (photos / "shot 4.png").unlink()
    assert "1 frame that" in gma("video", photos, "-o", tmp_path / "a", *FAST, exit_code=1)
    assert "no such folder or video" in gma(
        "video", tmp_path / "none", "-o", tmp_path / "a", *FAST, exit_code=1
    )
    assert not (tmp_path / "a").exists()
