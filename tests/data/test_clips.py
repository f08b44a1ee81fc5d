"""Frames of a clip: their order and their one size."""

import os
import re
import shlex
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from gma_lib.data import clips
from gma_lib.flow.images import write_frame
from gma_lib.runs.files import BadFile


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        write_frame(tmp_path / f"f{number}.png", np.full((3, 16, 16), number))
    assert [int(frame.mean()) for frame in clips.read_clip(tmp_path)] == [1, 9, 10]


def test_a_frame_of_another_size_stops_a_clip(tmp_path):
    write_frame(tmp_path / "1.png", np.zeros((3, 16, 16)))
    write_frame(tmp_path / "2.png", np.zeros((3, 16, 24)))
    with pytest.raises(BadFile, match=r"2\.png: 24x16 px; expected 16x16 px"):
        list(clips.read_clip(tmp_path))


def test_numbers_in_any_script_and_none_twice(tmp_path):
    for number, name in enumerate(("f²3.png", "f²٤.png", "f²10.PNG"), start=1):
        write_frame(tmp_path / name.lower(), np.full((3, 16, 16), number))
        (tmp_path / name.lower()).rename(tmp_path / name)
    (tmp_path / "._f²4.png").write_text("of macOS")
    frames = list(clips.read_clip(tmp_path))
    assert [int(frame.mean()) for frame in frames] == [1, 2, 3]
    assert frames[0].dtype == np.uint8
    write_frame(tmp_path / "f²04.png", np.zeros((3, 16, 16)))
    with pytest.raises(BadFile, match="are one frame by name"):
        clips.count_frames(tmp_path)


def test_some_frames_of_a_clip(tmp_path):
    for number in range(6):
        write_frame(tmp_path / f"{number}.png", np.full((3, 16, 16), number))
    select = slice(1, 5, 2)
    assert [int(frame.mean()) for frame in clips.read_clip(tmp_path, select=select)] == [1, 3]
    assert clips.count_frames(tmp_path, select) == 2


def test_a_clip_is_known_by_its_content_and_its_names(tmp_path):
    for number in range(2):
        write_frame(tmp_path / f"{number}.png", np.full((3, 16, 16), number))
    digest = clips.hash_clip(tmp_path)
    assert clips.hash_clip(tmp_path) == digest
    (tmp_path / "1.png").rename(tmp_path / "2.png")
    assert clips.hash_clip(tmp_path) != digest
    assert clips.hash_clip(tmp_path / "0.png") != digest


@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_in_a_folder_is_refused_and_never_waited_for(tmp_path, place):
    place(tmp_path / "3.png")
    for look in (clips.hash_clip, clips.count_frames):
        with pytest.raises(BadFile, match=r"3\.png: a (folder|pipe)"):
            look(tmp_path)


def test_a_list_of_pairs_is_bounded(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("a.png 'b c.png'  # one\n\n" * 3)
    assert clips.read_pair_list(path) == [(tmp_path / "a.png", tmp_path / "b c.png")] * 3
    path.write_text("a" * 10**6)
    with pytest.raises(BadFile, match="too long"):
        clips.read_pair_list(path)
    with open(path, "wb") as file:
        file.truncate(2**33)
    start = time.process_time()
    with pytest.raises(BadFile, match="too long"):
        clips.read_pair_list(path)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("line", ["a.png b#.png", "a.png 'b#.png'", "a.png b\\#.png # x"])
def test_a_line_with_a_special_character_is_read_as_a_shell_would(tmp_path, line):
    """The other lines are split at their blanks, in a tenth of the time."""
    path = tmp_path / "pairs.txt"
    path.write_text(f"a.png b.png\n{line}\n")
    pairs = [tuple(map(tmp_path.joinpath, shlex.split(line, comments=True)))]
    assert clips.read_pair_list(path) == [(tmp_path / "a.png", tmp_path / "b.png"), *pairs]


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ((1, 2, 3, 4), []),
        ((0, 5, 10, 15), []),
        ((1, 2, 3, 7, 8), ["f3.png and f7.png;"]),
        ((1, 2, 7, 8, 9, 11), ["f2.png and f7.png, and in 1 more place;"]),
    ],
)
def test_frames_that_are_missing_are_named(tmp_path, numbers, gaps):
    for number in numbers:
        write_frame(tmp_path / f"f{number}.png", np.zeros((3, 16, 16)))
    said = []
    assert len(list(clips.read_clip(tmp_path, say=said.append))) == len(numbers)
    assert len(said) == len(gaps)
    for line, gap in zip(said, gaps, strict=True):
        assert f"frames are missing between {gap}" in line


def test_what_frames_are_converted_from_is_told_once(tmp_path):
    for number, kind in enumerate((np.uint8, np.uint8, np.uint16, np.uint16)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((16, 16), 200, kind))
    said = []
    assert len(list(clips.read_clip(tmp_path, say=said.append))) == 4
    grey, deep = said
    assert "0.png is grey" in grey
    assert "2.png" in deep
    assert "4095" in deep


def make_images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_patterns_are_paired_by_the_numbers_of_their_folders_too(tmp_path):
    numbers = (3, 10, 1, 5, 2, 4)
    make_images(tmp_path, *(f"left/{number}.png" for number in numbers))
    make_images(tmp_path, *(f"right/cam{number}/im.png" for number in numbers))
    said = []
    patterns = tmp_path / "left/*.png", tmp_path / "right/*/im.png"
    pairs = clips.match_images(*patterns, say=said.append)
    assert [(one.stem, other.parent.name) for one, other in pairs] == [
        (str(number), f"cam{number}") for number in sorted(numbers)
    ]
    assert said == []
    make_images(tmp_path, "right/cam03/im.png")
    with pytest.raises(BadFile, match="are one frame by name"):
        clips.match_images(*patterns)


@pytest.mark.parametrize(
    ("left", "right", "doubted"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), None),
        ((1, 2, 3, 4), (2, 3, 4, 5), None),
        ((1, 2, 4, 5), (1, 2, 3, 5), ["l2.png", "r2.png", "l4.png", "r3.png"]),
    ],
)
def test_patterns_that_lack_different_images_are_told(tmp_path, left, right, doubted):
    for place, numbers in (("l", left), ("r", right)):
        make_images(tmp_path, *(f"{place}{number}.png" for number in numbers))
    make_images(tmp_path, "l.png", "r.png")  # no number
    said = []
    pairs = clips.match_images(tmp_path / "l*.png", tmp_path / "r*.png", say=said.append)
    assert len(pairs) == 5
    assert [re.findall(r"[lr]\d+\.png", sentence) for sentence in said] == (
        [doubted] if doubted else []
    )


def test_a_folder_of_a_pattern_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    make_images(tmp_path, *(f"{place}/{side}.png" for place in "ab" for side in ("l", "r")))
    look = os.scandir

    def scan(place="."):
        if os.fspath(place) == str(tmp_path / "a"):
            raise PermissionError(13, "Permission denied", str(place))
        return look(place)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(PermissionError):
        clips.match_images(tmp_path / "*/l*.png", tmp_path / "*/r*.png")


def tell(folder, *names):
    """Order of the names of frames, and what is said about it."""
    for name in names:
        grey = np.full((3, 16, 16), names.index(name))
        write_frame(folder / f"{name}.png", grey)
    said = []
    frames = list(clips.read_clip(folder, say=said.append))
    return [names[int(frame.mean())] for frame in frames], said


@pytest.mark.parametrize(
    ("names", "one", "other"),
    [
        (("left_1", "left_2", "right_1", "right_2"), "left_2", "right_1"),
        (("a_0001", "a_0002", "b_0001"), "a_0002", "b_0001"),
        (("1_left", "1_right", "2_left"), "1_left", "1_right"),
        (("frame_0001", "frame_0001_mask"), "frame_0001", "frame_0001_mask"),
        (("f1", "f1 (1)", "f2"), "f1", "f1 (1)"),
        (("t-2", "t-1", "t0", "t1"), "t1", "t-1"),
    ],
)
def test_flow_from_one_sequence_to_another_is_reported(tmp_path, names, one, other):
    (sentence,) = tell(tmp_path, *names)[1]
    assert f"flow crosses from {one}.png to {other}.png" in sentence
    assert "give each sequence its own folder" in sentence
    assert ("'-' is no sign" in sentence) == ("t0" in names)


def test_names_are_sorted_without_regard_to_case(tmp_path):
    names = "Frame_1", "frame_2", "FRAME_3"
    assert tell(tmp_path, *names) == ([*names], [])


def test_frames_chosen_from_between_others_are_one_sequence(tmp_path):
    tell(tmp_path, "f1", "f1_mask", "f2", "f2_mask")
    said = []
    assert len(list(clips.read_clip(tmp_path, select=slice(0, None, 2), say=said.append))) == 2
    assert said == []


def test_decimals_are_sorted_by_value_and_a_doubtful_order_is_reported(tmp_path):
    names, said = tell(tmp_path, "t0.5", "t0.10", "t0.75")
    assert names == ["t0.10", "t0.5", "t0.75"]
    (sentence,) = said
    assert "t0.10.png comes before t0.5.png; if this is wrong" in sentence


def test_versions_of_two_numbers_are_no_decimals(tmp_path):
    wanted = [f"v1.{number}" for number in range(1, 12)]
    names, said = tell(tmp_path, *wanted)
    assert names == wanted
    (sentence,) = said
    assert "v1.9.png comes before v1.10.png; if this is wrong" in sentence


def test_decimals_that_are_equal_without_their_zeros_differ(tmp_path):
    assert tell(tmp_path, "t0.05", "t0.5") == (["t0.05", "t0.5"], [])


@pytest.mark.parametrize(
    ("names", "gap"),
    [
        (("1305031102.175304", "1305031102.211214", "1305031102.275326"), None),
        (("t0.033", "t0.067", "t0.100", "t0.200"), None),
        (("v2.0001", "v2.0002", "v2.0003", "v2.0007"), "v2.0003.png and v2.0007.png"),
        (("1.2.9", "1.2.10", "1.2.12", "1.2.13"), "1.2.10.png and 1.2.12.png"),
    ],
)
def test_times_have_no_gaps_but_frame_numbers_after_a_point_do(tmp_path, names, gap):
    order, said = tell(tmp_path, *names)
    assert order == [*names]
    assert len(said) == bool(gap)
    assert all(f"frames are missing between {gap};" in sentence for sentence in said)


def test_decimals_of_one_value_do_not_stop_the_search_for_gaps(tmp_path):
    assert tell(tmp_path, "t0.1", "t0.10", "t0.11")[0] == ["t0.1", "t0.10", "t0.11"]


@pytest.mark.parametrize(
    ("left", "right", "doubted"),
    [
        ("a.png b.png c.png", "a.png c.png d.png", "L/a.png with R/a.png, then L/b.png with R/c"),
        ("a.png b.jpg", "a.jpg b.png", None),
        ("artL.png dollsL.png", "artR.png dollsR.png", None),
        ("art/im.png dolls/im.png", "art/view.png dolls/view.png", None),
    ],
)
def test_patterns_that_lack_different_names_are_told(tmp_path, monkeypatch, left, right, doubted):
    monkeypatch.chdir(tmp_path)
    make_images(Path("L"), *left.split())
    make_images(Path("R"), *right.split())
    below = "*/*.png" if "/" in left else "*"
    said = []
    clips.match_images(Path("L", below), Path("R", below), say=said.append)
    assert len(said) == bool(doubted)
    assert all(doubted in sentence for sentence in said)
