"""``gma flow``: results, refusals before computing, one line for an error."""

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import FAST, gma, loaded_by

from gma_lib.cli import main
from gma_lib.cli.options import describe_refinement
from gma_lib.flow.consistency import find_occluded
from gma_lib.flow.files import read_flow
from gma_lib.infer.estimator import Estimator

pytestmark = pytest.mark.slow
SEVEN = [*FAST[:-1], "7"]  # a model that no other test has built


def test_flow_of_two_photos_and_its_figure(photos, tmp_path):
    answer = gma(
        "flow",
        photos / "shot 1.png",
        photos / "shot 2.png",
        "-o",
        tmp_path / "a.flo",
        "--figure",
        tmp_path / "a.png",
        *FAST,
    )
    flow = read_flow(tmp_path / "a.flo")
    assert flow.shape == (2, 128, 160)
    assert f"160x128 px, mean speed {np.hypot(*flow).mean():.2f} px" in answer
    assert "seeded weights: this flow is noise" in answer
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] > 400
    gma("flow", photos / "shot 1.png", photos / "shot 2.png", "-o", tmp_path / "a.npy", *FAST)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), flow)


def test_the_result_line_and_the_record_say_how_it_was_computed(photos, tmp_path):
    frames = photos / "shot 1.png", photos / "shot 2.png"
    line = gma("flow", *frames, "-o", tmp_path / "a.flo", *FAST).splitlines()[-1]
    assert re.search(r"; \d+\.\d s on .+ in float32$", line)
    answer = gma("flow", *frames, "-o", tmp_path / "b.flo", "--json", *FAST)
    record = json.loads(answer.splitlines()[-1])
    speed = np.hypot(*read_flow(tmp_path / "b.flo"))
    assert (record["width"], record["height"], record["precision"]) == (160, 128, "float32")
    assert record["fastest_px"] == pytest.approx(speed.max())
    assert record["seconds"] > 0
    assert record["device"]
    quiet = gma("flow", *frames, "-o", tmp_path / "c.flo", "--quiet", *FAST)
    assert quiet == ""
    assert "Estimator('seeded'" in gma("flow", *frames, "-o", tmp_path / "d.flo", "-v", *FAST)


def test_what_kitti_cannot_hold_is_said_beside_the_record(photos, tmp_path, monkeypatch):
    """The record has the network's fastest motion, which the file does not hold."""
    fast = np.full((2, 128, 160), 600, np.float32)
    monkeypatch.setattr(Estimator, "__call__", lambda self, *frames: fast)
    frames = photos / "shot 1.png", photos / "shot 2.png"
    command = ["flow", *map(str, frames), "-o", str(tmp_path / "a.png"), *FAST]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert json.loads(done.stdout)["fastest_px"] > 800
    assert "move by more than 512 px" in done.stderr
    plain = CliRunner().invoke(main, [*command, "--overwrite"])
    assert "move by more than 512 px" in plain.stdout
    for flags in (["-q", "--json"], ["--json", "-q"]):
        quiet = CliRunner().invoke(main, [*command, "--overwrite", *flags])
        assert json.loads(quiet.stdout)["fastest_px"] > 800
        assert quiet.stderr == ""


def test_a_file_beside_the_users_weights_is_no_card_of_theirs(tmp_path):
    """It is read when all is computed: a damaged one would fail the finished run."""
    (tmp_path / "mine.pth.json").write_text("{")
    assert describe_refinement({"checkpoint": str(tmp_path / "mine.pth"), "refine": None}) == ""
    bundled = {"checkpoint": "gma-procedural", "refine": None}
    assert "--refine variational" in describe_refinement(bundled)


def test_flow_is_checked_without_ground_truth(photos, tmp_path):
    frames = photos / "shot 1.png", photos / "shot 2.png"
    answer = gma("flow", *frames, "-o", tmp_path / "a.npy", "--check", *FAST)
    forward, backward = np.load(tmp_path / "a.npy"), np.load(tmp_path / "a.backward.npy")
    gma("flow", *frames[::-1], "-o", tmp_path / "b.npy", *FAST)
    np.testing.assert_array_equal(backward, np.load(tmp_path / "b.npy"))
    occluded = cv2.imread(str(tmp_path / "a.occluded.png"), cv2.IMREAD_GRAYSCALE) > 0
    np.testing.assert_array_equal(occluded, find_occluded(forward, backward))
    assert f"occluded {occluded.mean():.1%}" in answer
    assert cv2.imread(str(tmp_path / "a.warped.png")).shape == (128, 160, 3)
    (tmp_path / "c.occluded.png").touch()
    refused = gma("flow", *frames, "-o", tmp_path / "c.npy", "--check", *FAST, exit_code=1)
    assert "c.occluded.png exists" in refused


def test_many_pairs_by_two_folders_two_patterns_and_a_list(photos, tmp_path):
    left, right = tmp_path / "left", tmp_path / "the right"
    for number, folder in ((1, left), (2, right)):
        shutil.copytree(photos, folder)
        (folder / "shot 4.png").unlink()
        shutil.copy(photos / f"shot {number}.png", folder / "shot 1.png")
    listed = tmp_path / "pairs.txt"
    listed.write_text("# two a line\n'left/shot 1.png' 'the right/shot 1.png'  # the first\n\n")
    ways = {
        "folders": ([left, right], 3),
        "patterns": ([left / "*.png", right / "shot*.png"], 3),
        "list": (["--list", listed], 1),
    }
    for name, (given, count) in ways.items():
        answer = gma("flow", *given, "-o", tmp_path / name, "--format", "npy", "--json", *FAST)
        files = [json.loads(line)["flow"] for line in answer.splitlines() if line[0] == "{"]
        assert files == [str(tmp_path / name / f"shot {n}.npy") for n in range(1, count + 1)]
    gma("flow", left / "shot 1.png", right / "shot 1.png", "-o", tmp_path / "a.npy", *FAST)
    expected = np.load(tmp_path / "a.npy")
    for name in ways:
        np.testing.assert_array_equal(np.load(tmp_path / name / "shot 1.npy"), expected)


@pytest.mark.parametrize(("refine", "times"), [([], 1), (["--refine", "variational"], 4)])
def test_advice_is_given_once_and_refinement_in_every_line(
    photos, tmp_path, monkeypatch, refine, times
):
    monkeypatch.setattr("gma_lib.cli.flow.describe_refinement", lambda network: "; the ending")
    answer = gma("flow", photos, photos, "-o", tmp_path / "flows", *refine, *FAST)
    assert len(list((tmp_path / "flows").iterdir())) == 4
    assert answer.count("; the ending") == times


def test_pairs_that_do_not_match_are_refused(photos, tmp_path):
    other, listed = tmp_path / "other", tmp_path / "pairs.txt"
    shutil.copytree(photos, other)
    (other / "shot 2.png").unlink()
    listed.write_text("one\n")
    three = sorted(photos.iterdir())[:3]
    for given, complaint in (
        ([photos, other], "no image shot 2"),
        ([photos / "*.png", other / "*.png"], "3 images, and 4 in"),
        ([photos / "*.gif", other / "*.gif"], "at least one"),
        (["--list", listed], "a line with 1 paths"),
        (three, "run gma video"),
    ):
        answer = gma("flow", *given, "-o", tmp_path / "out", *FAST, exit_code=1)
        assert complaint in answer.splitlines()[-1]
    gma("flow", *three, "--list", listed, "-o", tmp_path / "out", *FAST, exit_code=2)
    assert not (tmp_path / "out").exists()


def test_a_result_is_not_overwritten_silently(photos, tmp_path):
    (tmp_path / "a.flo").write_text("precious")
    frames = photos / "shot 1.png", photos / "shot 2.png"
    assert "--overwrite" in gma("flow", *frames, "-o", tmp_path / "a.flo", *FAST, exit_code=1)
    assert (tmp_path / "a.flo").read_text() == "precious"
    gma("flow", *frames, "-o", tmp_path / "a.flo", "--overwrite", *FAST)
    assert read_flow(tmp_path / "a.flo").shape == (2, 128, 160)


def test_no_result_replaces_a_frame_or_another_result(photos, tmp_path, monkeypatch):
    """Whatever --overwrite says, and however the file is spelled."""
    folder = tmp_path / "clip"
    shutil.copytree(photos, folder)
    monkeypatch.chdir(folder)
    frames = "shot 1.png", "shot 2.png"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "l.txt").write_text('"clip/shot 2.png" "clip/shot 1.png"\n')
    (tmp_path / "f").mkdir()
    for arguments in (
        (*frames, "-o", "shot 1.png"),
        (*frames, "-o", folder / "shot 2.png"),
        (*frames, "-o", "a.png", "--figure", folder / "a.png"),
        (*frames, "-o", "a.flo", "--check", "--figure", "a.occluded.png"),
        (*frames, "-o", tmp_path / "f"),
        ("--list", tmp_path / "l.txt", "-o", ".", "--format", "png"),
    ):
        gma("flow", *arguments, "--overwrite", *FAST, exit_code=1)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_pipe_is_no_checkpoint(suffix, photos, tmp_path):
    os.mkfifo(tmp_path / f"a.{suffix}")
    frames = photos / "shot 1.png", photos / "shot 2.png"
    weights = "--checkpoint", tmp_path / f"a.{suffix}"
    assert "a pipe" in gma("flow", *frames, "-o", tmp_path / "a.flo", *weights, exit_code=1)


def test_a_place_that_cannot_be_written_to_is_refused_before_computing(
    photos, tmp_path, monkeypatch
):
    frames = photos / "shot 1.png", photos / "shot 2.png"
    assert "cannot write to" in gma(
        "flow", *frames, "-o", photos / "shot 3.png" / "a.flo", *FAST, exit_code=1
    )
    monkeypatch.setattr(
        "os.access", lambda path, mode: mode != os.W_OK
    )  # who runs tests as root may write anywhere
    assert f"cannot write to {tmp_path}" in gma(
        "flow", *frames, "-o", tmp_path / "a.flo", *FAST, exit_code=1
    )
    assert "cannot write to" in gma(
        "video", photos, "-o", tmp_path / "new" / "out", *FAST, exit_code=1
    )


def test_refined_flow_says_so_and_what_cannot_be_refined_is_refused(photos, tmp_path):
    frames = photos / "shot 1.png", photos / "shot 2.png"
    refine = ["--refine", "variational", *FAST]
    assert "; refined (variational)" in gma("flow", *frames, "-o", tmp_path / "a.flo", *refine)
    assert "; refined" not in gma("flow", *frames, "-o", tmp_path / "b.flo", *FAST)
    assert not np.array_equal(read_flow(tmp_path / "a.flo"), read_flow(tmp_path / "b.flo"))
    images = write_unusual(tmp_path / "images")
    fine = np.random.default_rng(0).integers(0, 2**16, (128, 160, 3), np.uint16)
    cv2.imwrite(str(images["deep"]), fine)
    deep = images["deep"], images["deep"], "-o", tmp_path / "c.flo"
    unknown = gma("flow", *frames, "-o", tmp_path / "c.flo", "--refine", "magic", exit_code=2)
    for answer, complaint in (
        (gma("flow", *deep, *refine, exit_code=1), "16 bits"),
        (unknown, "'magic' is not"),
    ):
        assert complaint in answer.splitlines()[-1]
    assert not (tmp_path / "c.flo").exists()


def write_unusual(folder: Path) -> dict[str, Path]:
    """Images that are not plain 8-bit colour, 160x128."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (128, 160, 3), np.uint8)
    folder.mkdir()
    animation = cv2.Animation()
    animation.frames, animation.durations = [colour, colour[::-1].copy()], np.array([40, 40])
    cv2.imwriteanimation(str(folder / "animated.gif"), animation)
    cv2.imwrite(str(folder / "grey.png"), colour[:, :, 0])
    cv2.imwrite(str(folder / "alpha.png"), np.dstack([colour, colour[:, :, 0]]))
    cv2.imwrite(str(folder / "deep.png"), colour.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "plain.png"), colour)
    cv2.imwrite(str(folder / "narrow.png"), colour[:, :1])
    cv2.imwrite(str(folder / "wide.png"), colour[:, :120])
    (folder / "text.png").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:4000])
    return {path.stem: path for path in folder.iterdir()}


def test_unusual_images_are_taken_and_it_is_said(tmp_path):
    images = write_unusual(tmp_path / "images")
    for name, remark in (
        ("grey", "is grey"),
        ("alpha", "alpha channel, which is ignored"),
        ("deep", "16 bits"),
    ):
        assert remark in gma(
            "flow", images[name], images["plain"], "-o", tmp_path / f"{name}.flo", *FAST
        )
    same = gma("flow", images["plain"], images["plain"], "-o", tmp_path / "plain.flo", *FAST)
    assert len(same.splitlines()) <= 2  # nothing to remark
    np.testing.assert_array_equal(
        read_flow(tmp_path / "deep.flo"), read_flow(tmp_path / "plain.flo")
    )


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ("plain", "wide", "160x128 px and 120x128 px"),
        ("narrow", "narrow", "1x128 px"),
        ("animated", "animated", "holds several images"),
        ("plain", "text", "not a readable image (12 bytes)"),
        ("plain", "cut", "Truncated"),
        ("plain", "absent", "no such file"),
        ("plain", "folder", "a folder; expected a picture"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_name(first, second, complaint, tmp_path):
    images = write_unusual(tmp_path / "images") | {
        "absent": tmp_path / "absent.png",
        "folder": tmp_path,
    }
    answer = gma(
        "flow", images[first], images[second], "-o", tmp_path / "a.flo", *FAST, exit_code=1
    )
    assert complaint in answer
    assert len(answer.splitlines()) == 1
    assert not (tmp_path / "a.flo").exists()


def test_flow_of_a_known_size_loads_no_pytorch(photos, tmp_path):
    frames = photos / "shot 1.png", photos / "shot 2.png"
    gma("flow", *frames, "-o", tmp_path / "a.flo", "--updates", 1)
    loaded = loaded_by("flow", *frames, "-o", tmp_path / "b.flo", "--updates", 1)
    assert "openvino" in loaded
    assert not loaded & {"torch", "matplotlib", "pandas", "nncf", "papermill"}


def test_large_images_are_computed_smaller_and_it_is_said(photos, tmp_path):
    for number in (1, 2):
        image = cv2.imread(str(photos / f"shot {number}.png"))
        cv2.imwrite(
            str(tmp_path / f"{number}.png"),
            cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST),
        )
    frames = tmp_path / "1.png", tmp_path / "2.png"
    answer = gma("flow", *frames, "-o", tmp_path / "a.flo", "--max-pixels", 128 * 160, *FAST)
    assert re.search(r"160x128 px.*0\.500", answer)
    gma("flow", photos / "shot 1.png", photos / "shot 2.png", "-o", tmp_path / "b.flo", *FAST)
    large, small = read_flow(tmp_path / "a.flo"), read_flow(tmp_path / "b.flo")
    np.testing.assert_allclose(
        cv2.resize(large[0], (160, 128), interpolation=cv2.INTER_AREA), 2 * small[0], atol=0.7
    )


def test_weights_and_backends_that_do_not_exist(photos, tmp_path):
    frames = photos / "shot 1.png", photos / "shot 2.png"
    assert "gma-procedural" in gma(
        "flow", *frames, "-o", tmp_path / "a.flo", "--checkpoint", "nix", exit_code=1
    )
    assert "onnxruntime" in gma(
        "flow", *frames, "-o", tmp_path / "a.flo", "--backend", "nix", *FAST, exit_code=2
    )
    assert "ends in .jpg" in gma("flow", *frames, "-o", tmp_path / "a.jpg", exit_code=1)
    assert "a figure ends in" in gma(
        "flow", *frames, "-o", tmp_path / "a.flo", "--figure", tmp_path / "a.txt", exit_code=1
    )
    assert not (tmp_path / "a.flo").exists()


def test_a_missing_device_is_one_line(photos, tmp_path, monkeypatch):
    from gma_lib.ascend.chip import NoChipFound
    from gma_lib.infer import estimator

    def no_chip(*arguments, **options):
        raise NoChipFound("no Ascend chip was found")

    monkeypatch.setattr(estimator.Estimator, "_build", no_chip)
    answer = gma(
        "flow",
        photos / "shot 1.png",
        photos / "shot 2.png",
        "-o",
        tmp_path / "a.flo",
        *SEVEN,
        exit_code=1,
    )
    assert answer.splitlines()[-1] == "Error: no Ascend chip was found"


def test_an_interruption_exits_with_130(photos, tmp_path, monkeypatch):
    from gma_lib.infer import estimator

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(estimator.Estimator, "_build", interrupted)
    gma(
        "flow",
        photos / "shot 1.png",
        photos / "shot 2.png",
        "-o",
        tmp_path / "a.flo",
        *SEVEN,
        exit_code=130,
    )
    gma("video", photos, "-o", tmp_path / "out", *SEVEN, exit_code=130)
    assert not [path for path in tmp_path.iterdir() if path != photos]


def test_a_format_of_one_flow_is_its_suffix(photos, tmp_path):
    """`--format png` beside `-o x.flo` wrote .flo."""
    first, second, *_ = sorted(photos.iterdir())
    said = gma("flow", first, second, "-o", tmp_path / "x.flo", "--format", "png", exit_code=2)
    assert "--format" in said
    assert not (tmp_path / "x.flo").exists()
