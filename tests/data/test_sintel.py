"""Frames on disk become pairs; what is missing or does not fit is named."""

import os
import re
import shutil
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
from PIL import Image

from gma_lib.data import sintel
from gma_lib.flow.files import write_flow
from gma_lib.flow.images import read_frame, write_frame
from gma_lib.runs.files import BadFile


def test_pairs_of_the_tiny_set(tiny_sintel):
    pairs = sintel.find_pairs(tiny_sintel, pass_name="final")
    # two scenes of three frames: two pairs each
    assert [pair.name for pair in pairs] == [
        "final/alley/frame_0001",
        "final/alley/frame_0002",
        "final/cave/frame_0001",
        "final/cave/frame_0002",
    ]
    assert [pair.flow is not None for pair in pairs] == [True, True, True, False]
    assert pairs[0].image2.name == "frame_0002.png"


def test_scenes_can_be_chosen(tiny_sintel):
    assert {pair.scene for pair in sintel.find_pairs(tiny_sintel, scenes=["cave"])} == {"cave"}
    with pytest.raises(ValueError, match=r"'street'.*alley, cave"):
        sintel.find_pairs(tiny_sintel, scenes=["street"])


def test_a_pass_whose_folders_hold_no_frames_is_an_error(tiny_sintel):
    clean = tiny_sintel / "training/clean"
    for frame in clean.glob("*/*.png"):
        frame.rename(frame.with_suffix(".jpg"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(clean))):
        sintel.find_pairs(tiny_sintel)
    assert len(sintel.find_pairs(tiny_sintel, pass_name="final")) == 4


def test_stray_files_are_ignored(tiny_sintel):
    before = sintel.find_pairs(tiny_sintel)
    scene = tiny_sintel / "training/clean/alley"
    for name in (".DS_Store", "._frame_0001.png", "Thumbs.db", "frame_0001.jpg", "frame_1.png"):
        (scene / name).write_bytes(b"stray")
    (tiny_sintel / "training/clean/notes.txt").write_text("stray")
    (tiny_sintel / "training/clean/empty").mkdir()
    assert sintel.find_pairs(tiny_sintel) == before


@pytest.mark.parametrize(("name", "is_refused"), [("frame_10000", True), ("frame_0004", False)])
def test_frames_above_9999_are_refused_not_left_out(tiny_sintel, name, is_refused):
    scene = tiny_sintel / "training/clean/alley"
    shutil.copy(scene / "frame_0001.png", scene / f"{name}.png")
    with pytest.raises(BadFile, match=name) if is_refused else nullcontext():
        sintel.find_pairs(tiny_sintel, pass_name="clean")


def test_digits_of_other_scripts_number_no_frame(tiny_sintel):
    before = sintel.find_pairs(tiny_sintel)
    scene = tiny_sintel / "training/clean/alley"
    for name in ("frame_000\u0663.png", "frame_\u00b2\u00b3\u00b9\u00b2.png", "\u00b23.png"):
        shutil.copy(scene / "frame_0001.png", scene / name)
    assert sintel.find_pairs(tiny_sintel) == before


def test_extensions_in_capitals_are_the_same_and_one_number_is_one_frame(tiny_sintel):
    before = [pair.name for pair in sintel.find_pairs(tiny_sintel)]
    scene = tiny_sintel / "training/clean/alley"
    (scene / "frame_0002.png").rename(scene / "frame_0002.PNG")
    truth = tiny_sintel / "training/flow/alley/frame_0001.flo"
    truth.rename(truth.with_suffix(".FLO"))
    pairs = sintel.find_pairs(tiny_sintel)
    assert [pair.name for pair in pairs] == before
    assert pairs[0].load().flow[:, 0, 0].tolist() == [3, 4]
    shutil.copy(scene / "frame_0002.PNG", scene / "frame_0002.png")
    with pytest.raises(BadFile, match=r"frame_0002\.png: the same frame as frame_0002\.PNG"):
        sintel.find_pairs(tiny_sintel)


def test_test_split_has_no_truth(tiny_sintel):
    (tiny_sintel / "test").mkdir()
    shutil.copytree(tiny_sintel / "training/clean", tiny_sintel / "test/clean")
    assert all(pair.flow is None for pair in sintel.find_pairs(tiny_sintel, split="test"))


def test_a_gap_is_an_error(tiny_sintel):
    (tiny_sintel / "training/clean/alley/frame_0002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"alley/frame_0002\.png is missing"):
        sintel.find_pairs(tiny_sintel)


def test_a_missing_last_frame_is_an_error_where_truth_asks_for_it(tiny_sintel):
    (tiny_sintel / "training/clean/alley/frame_0003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"alley/frame_0003\.png is missing"):
        sintel.find_pairs(tiny_sintel)


@pytest.mark.parametrize("kind", ["flow", "occlusions", "invalid"])
def test_missing_first_frames_are_an_error_where_truth_asks_for_them(tiny_sintel, kind):
    """The scene would have fewer pairs without a word."""
    training = tiny_sintel / "training"
    for other in {"flow", "occlusions", "invalid"} - {kind}:
        shutil.rmtree(training / other)
    (training / "clean/cave/frame_0001.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"cave/frame_0001\.png is missing.* needs frames 1 to 3"
    ):
        sintel.find_pairs(tiny_sintel)
    shutil.rmtree(training / kind / "cave")  # a scene may begin at any number
    assert len(sintel.find_pairs(tiny_sintel, scenes=["cave"])) == 1


@pytest.mark.parametrize("kind", ["occlusions", "invalid"])
def test_masks_are_there_for_every_flow_or_for_none(tiny_sintel, kind):
    masks = tiny_sintel / "training" / kind
    (masks / "alley/frame_0002.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{kind}/alley/frame_0002\.png is missing"):
        sintel.find_pairs(tiny_sintel)
    shutil.rmtree(masks)
    assert len(sintel.find_pairs(tiny_sintel)) == 4


@pytest.mark.parametrize("kind", ["occlusions", "invalid"])
@pytest.mark.parametrize("is_emptied", [True, False])
def test_masks_that_a_whole_scene_lacks_are_missed(tiny_sintel, kind, is_emptied):
    """Groups of pixels would be of the other scenes alone; a scene may be named alone."""
    masks = tiny_sintel / "training" / kind / "cave"
    shutil.rmtree(masks)
    if is_emptied:
        masks.mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{kind}/cave/frame_0001\.png is missing"):
        sintel.find_pairs(tiny_sintel)
    assert len(sintel.find_pairs(tiny_sintel, scenes=["cave"])) == 2
    for other in {"flow", "occlusions", "invalid"} - {kind}:  # the mask is then not needed
        shutil.rmtree(tiny_sintel / "training" / other / "cave")
    assert len(sintel.find_pairs(tiny_sintel)) == 4


@pytest.mark.parametrize("kind", ["occlusions", "invalid"])
def test_a_mask_without_its_flow_is_an_error(tiny_sintel, kind):
    """Fewer pairs would be scored without a word."""
    training = tiny_sintel / "training"
    shutil.rmtree(training / ({"occlusions", "invalid"} - {kind}).pop())
    flow = training / "flow/cave/frame_0001.flo"
    flow.rename(tiny_sintel / "flow")
    with pytest.raises(FileNotFoundError, match=rf"{flow.name} is missing.*{kind}/cave"):
        sintel.find_pairs(tiny_sintel)
    (tiny_sintel / "flow").rename(flow)
    mask = training / kind / "cave" / "frame_0003.png"  # of the last frame, as Sintel has invalid
    shutil.copy(mask.with_name("frame_0001.png"), mask)
    assert len(sintel.find_pairs(tiny_sintel)) == 4


def test_what_is_named_twice_is_listed_once(tiny_sintel):
    found = sintel.build_index(
        tiny_sintel, description="", scenes=["cave", "cave"], passes=["clean", "clean"]
    )
    assert [pair["name"] for pair in found["pairs"]] == [
        "clean/cave/frame_0001",
        "clean/cave/frame_0002",
    ]


def test_a_lone_frame_is_an_error(tiny_sintel):
    for number in (2, 3):
        (tiny_sintel / f"training/clean/cave/frame_000{number}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"cave/frame_0002\.png is missing"):
        sintel.find_pairs(tiny_sintel)


def test_wrong_roots_say_which_was_meant(tiny_sintel, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        sintel.find_pairs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no 'training' folder"):
        sintel.find_pairs(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=f"too high: give {tiny_sintel}"):
        sintel.find_pairs(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"too low: give {tiny_sintel}"):
        sintel.find_pairs(tiny_sintel / "training")


@pytest.mark.parametrize("name", ["a $1 'q' \"d\" <b> 😀 {y} [z]", "l" * 200])
def test_a_scene_may_have_any_name_but_with_a_newline_or_outside_utf_8(tiny_sintel, name):
    for place in (tiny_sintel / "training").iterdir():
        (place / "alley").rename(place / name)
    pairs = sintel.find_pairs(tiny_sintel, scenes=[name])
    assert [pair.scene for pair in pairs] == [name] * 2
    assert pairs[0].load().flow.shape == (2, 128, 160)
    scene = tiny_sintel / "training/clean" / name
    for wrong in ("a\nb", os.fsdecode(b"a\xffb")):
        scene = scene.rename(scene.with_name(wrong))
        with pytest.raises(ValueError, match=r"newline.*UTF-8") as refused:
            sintel.find_pairs(tiny_sintel)
        assert len(str(refused.value).encode().splitlines()) == 1


def test_unknown_names_list_the_known(tiny_sintel):
    with pytest.raises(ValueError, match="clean, final"):
        sintel.find_pairs(tiny_sintel, pass_name="albedo")
    with pytest.raises(ValueError, match="training, test"):
        sintel.find_pairs(tiny_sintel, split="validation")


def test_one_size_a_run(tiny_sintel):
    pairs = sintel.find_pairs(tiny_sintel)
    assert sintel.frame_size(pairs) == (128, 160)
    write_frame(
        tiny_sintel / "training/clean/cave/frame_0003.png", np.zeros((3, 128, 168), np.float32)
    )
    with pytest.raises(ValueError, match=r"cave/frame_0003\.png has 168x128 px"):
        sintel.frame_size(pairs)


def test_flow_of_another_size_is_an_error(tiny_sintel):
    write_flow(
        tiny_sintel / "training/flow/alley/frame_0001.flo", np.zeros((2, 100, 160), np.float32)
    )
    with pytest.raises(ValueError, match=r"alley/frame_0001\.flo has"):
        sintel.frame_size(sintel.find_pairs(tiny_sintel))


def test_the_index_gives_the_pairs_back(tiny_sintel):
    index = sintel.build_index(tiny_sintel, description="tiny")
    pairs = [
        pair
        for pass_name in ("clean", "final")
        for pair in sintel.find_pairs(tiny_sintel, pass_name=pass_name)
    ]
    assert sintel.load_pairs(index) == pairs
    assert sintel.load_pairs(index, ["final/cave/frame_0001"]) == [pairs[6]]
    with pytest.raises(ValueError, match="street"):
        sintel.load_pairs(index, ["clean/street/frame_0001"])


def test_a_truncated_frame_is_found_before_anything_runs(tiny_sintel):
    path = tiny_sintel / "training/final/cave/frame_0002.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"final/cave/frame_0002\.png: not a whole PNG"):
        sintel.build_index(tiny_sintel, description="tiny")


@pytest.mark.parametrize(
    ("brightest", "is_refused"),
    [((255, 255), True), ((4095, 4095), True), ((4095, 4096), False), ((2**16 - 1,) * 2, False)],
)
def test_a_scene_of_12_bits_in_16_is_refused(tiny_sintel, brightest, is_refused):
    """It would be read as almost black; a dark frame of a brighter scene is one."""
    folder = tiny_sintel / "training/final/cave"
    for number, path in enumerate(sorted(folder.iterdir())):
        stored = np.linspace(0, brightest[bool(number)], 128 * 160 * 3).astype(np.uint16)
        cv2.imwrite(str(path), stored.reshape(128, 160, 3))
    if is_refused:
        with pytest.raises(BadFile, match=r"final/cave/frame_0001\.png") as raised:
            sintel.build_index(tiny_sintel, description="tiny")
        assert "4095" in str(raised.value)
    else:
        sintel.build_index(tiny_sintel, description="tiny")


def test_a_mistagged_flow_is_found_before_anything_runs(tiny_sintel):
    path = tiny_sintel / "training/flow/alley/frame_0001.flo"
    path.write_bytes(b"HEIP" + path.read_bytes()[4:])
    with pytest.raises(ValueError, match=r"alley/frame_0001\.flo: not a \.flo file"):
        sintel.build_index(tiny_sintel, description="tiny")


def test_counts_per_scene(tiny_sintel):
    rows = sintel.count_pairs(sintel.build_index(tiny_sintel, description="tiny"))
    assert rows[1] == {
        "pass": "clean",
        "scene": "cave",
        "pairs": 2,
        "with flow": 1,
        "with occlusion": 1,
        "with invalid": 1,
    }


def test_a_subset_says_so(tiny_sintel):
    pairs = sintel.find_pairs(tiny_sintel)
    assert sintel.choose_subset(pairs, batch_size=1, full_batch_size=1, pairs_per_scene=1) == (
        pairs,
        "",
    )
    assert sintel.choose_subset(pairs, batch_size=4, full_batch_size=None, pairs_per_scene=1) == (
        pairs,
        "",
    )
    chosen, sentence = sintel.choose_subset(
        pairs, batch_size=4, full_batch_size=1, pairs_per_scene=1
    )
    assert [pair.name for pair in chosen] == ["clean/alley/frame_0001", "clean/cave/frame_0001"]
    assert "2 of 4 pairs" in sentence


def test_the_real_sample(sintel_sample):
    pairs = sintel.find_pairs(sintel_sample)
    assert len(pairs) == 6
    assert [pair.name for pair in pairs if pair.flow] == [
        "clean/alley_1/frame_0002",
        "clean/cave_2/frame_0002",
    ]
    assert sintel.frame_size(pairs) == (436, 1024)


def test_a_pair_loads_its_frames_and_the_truth_that_exists(tiny_sintel):
    scored, without = sintel.find_pairs(tiny_sintel, scenes=["cave"])
    loaded = scored.load()
    np.testing.assert_array_equal(loaded.frame1, read_frame(scored.image1))
    np.testing.assert_array_equal(loaded.frame2, read_frame(scored.image2))
    np.testing.assert_array_equal(loaded.flow, scored.load_flow())
    assert loaded.flow[:, 0, 0].tolist() == [3, 4]
    assert loaded.occluded.sum() == 16 * 128
    assert not loaded.invalid.any()
    loaded = without.load()
    assert loaded.frame1.shape == (3, 128, 160)
    assert (loaded.flow, loaded.occluded, loaded.invalid) == (None, None, None)
    with pytest.raises(FileNotFoundError, match="ground truth"):
        without.load_flow()


def test_a_frame_that_a_tag_turns_is_refused(tiny_sintel):
    """Decoders turn it, and nothing turns its ground truth."""
    frame = next(tiny_sintel.glob("training/clean/*/frame_0001.png"))
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.open(frame).save(frame, exif=exif)
    assert sintel.build_index(tiny_sintel, description="")["pairs"]
    exif[0x0112] = 3
    Image.open(frame).save(frame, exif=exif)
    with pytest.raises(BadFile, match=frame.name):
        sintel.build_index(tiny_sintel, description="")
    content = frame.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    behind = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    frame.write_bytes(behind)
    with pytest.raises(BadFile, match=frame.name):
        sintel.build_index(tiny_sintel, description="")
    with pytest.raises(BadFile, match=frame.name):  # for whoever reads pairs without an index
        [pair.load_frames() for pair in sintel.find_pairs(tiny_sintel) if pair.image1 == frame]


@pytest.mark.parametrize(("frames", "truth"), [("caf\u00e9", "cafe\u0301"), ("cave", "Cave")])
def test_truth_under_another_spelling_of_its_scene_is_refused(tiny_sintel, frames, truth):
    """As a file system that does not keep the two apart leaves it; else no pair would be scored."""
    training = tiny_sintel / "training"
    for kind in sintel.PASSES:
        (training / kind / "cave").rename(training / kind / frames)
    before = sintel.find_pairs(tiny_sintel, scenes=[frames])
    (training / "flow/cave").rename(training / "flow" / truth)
    with pytest.raises(BadFile):
        sintel.find_pairs(tiny_sintel, scenes=[frames])
    (training / "flow" / truth).rename(training / "flow" / frames)
    assert len(sintel.find_pairs(tiny_sintel, scenes=[frames])) == len(before)


@pytest.mark.parametrize(
    "remove", [shutil.rmtree, lambda folder: [*map(os.remove, folder.iterdir())]]
)
def test_a_scene_whose_frames_are_gone_is_missed(tiny_sintel, remove):
    """Its ground truth says that it should be there; a pass without it has another score."""
    remove(tiny_sintel / "training/final/alley")
    assert sintel.find_pairs(tiny_sintel, pass_name="clean")
    assert sintel.find_pairs(tiny_sintel, pass_name="final", scenes=["cave"])
    with pytest.raises(FileNotFoundError, match="alley"):
        sintel.find_pairs(tiny_sintel, pass_name="final")


@pytest.mark.parametrize(("frames", "number"), [("cave", 1), ("cave/frame_0003.png", 2)])
def test_passes_have_the_same_pairs(tiny_sintel, frames, number):
    """Scores of two passes would be of different frames; one pass can be named alone."""
    for kind in ("flow", "occlusions", "invalid"):  # which would ask for the frames
        shutil.rmtree(tiny_sintel / "training" / kind)
    (tiny_sintel / "training/final" / frames).rename(tiny_sintel / "aside")
    with pytest.raises(
        FileNotFoundError, match=rf"final/cave lacks frame {number} .*clean/cave has"
    ):
        sintel.build_index(tiny_sintel, description="")
    assert sintel.build_index(tiny_sintel, description="", passes=["final"])["pairs"]
    assert sintel.build_index(tiny_sintel, description="", scenes=["alley"])["pairs"]


@pytest.mark.parametrize("places", [["clean/alley", "flow/alley"], ["flow/alley"], ["occlusions"]])
def test_a_link_to_nothing_is_refused_and_what_it_should_hold_never_left_out(tiny_sintel, places):
    """As to a disk that is not there; other scenes can be named."""
    for folder in (tiny_sintel / "training" / place for place in places):
        shutil.rmtree(folder, ignore_errors=True)
        folder.symlink_to("gone")
    with pytest.raises(BadFile, match="a link to nothing"):
        sintel.find_pairs(tiny_sintel)
    if places != ["occlusions"]:
        assert sintel.find_pairs(tiny_sintel, scenes=["cave"])


def test_truth_that_leaves_out_pixels_is_refused(tiny_sintel):
    """They would count as errors of a billion pixels."""
    pair = sintel.find_pairs(tiny_sintel)[0]
    flow = pair.load_flow()
    flow[:, 0, 0] = 1e10
    write_flow(pair.flow, flow)
    with pytest.raises(BadFile, match="leaves out"):
        pair.load_flow()
