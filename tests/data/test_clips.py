"""Frames of a clip: their order and their one size."""

import numpy as np
import pytest

from gma_lib.data import clips
from gma_lib.flow.images import write_frame


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        write_frame(tmp_path / f"f{number}.png", np.full((3, 16, 16), number))
    assert [int(frame.mean()) for frame in clips.read_clip(tmp_path)] == [1, 9, 10]


def test_a_frame_of_another_size_stops_a_clip(tmp_path):
    write_frame(tmp_path / "1.png", np.zeros((3, 16, 16)))
    write_frame(tmp_path / "2.png", np.zeros((3, 16, 24)))
    with pytest.raises(ValueError, match=r"2\.png has 24x16 px where the frames before have 16x16"):
        list(clips.read_clip(tmp_path))
