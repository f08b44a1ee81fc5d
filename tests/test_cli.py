"""The command line as somebody types it: results, refusals, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from gma_lib.cli import COMMANDS, main
from gma_lib.data import clips
from gma_lib.flow.files import (
    read_flow,
    read_flow_file,
    write_flow,
    write_flow_file,
    write_kitti_flow,
)
from gma_lib.flow.images import write_frame, write_mask

FAST = ["--checkpoint", "seeded", "--updates", "1"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def photos(tmp_path, small_frames):
    """A folder of four frames that move by five pixels each."""
    folder = tmp_path / "photos"
    for number in range(1, 5):
        write_frame(folder / f"shot {number}.png", np.roll(small_frames[0][0], 5 * number, axis=2))
    return folder


def gma(*arguments, exit_code=0):
    """Run the command line; returns what it printed, errors included."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == exit_code, done.output
    assert "Traceback" not in done.output
    return done.output


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_screen(command):
    text = gma(*([command] if command else []), "--help")
    assert len(text.splitlines()) <= 32
    assert max(map(len, text.splitlines())) <= 110


def loaded_by(*arguments) -> set[str]:
    """The modules that a command line imports, as a new process."""
    code = "import sys; from gma_lib.cli import main\nmain(sys.argv[1:], standalone_mode=False)"
    code += "\nprint('loaded', *sys.modules)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.partition("loaded ")[2].split())


def test_help_answers_at_once():
    loaded = loaded_by("--help")
    assert "gma_lib.cli" in loaded
    assert not loaded & {"torch", "numpy", "openvino", "cv2", "matplotlib", "gma_lib.cli.flow"}


def test_a_wrong_command_line_exits_with_2(tmp_path):
    gma("flow", "a.png", exit_code=2)
    gma("video", "a", "-o", tmp_path / "b", "--max-pixels", "3", exit_code=2)


# --- flow -----------------------------------------------------------------------------------------


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
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] > 400
    gma("flow", photos / "shot 1.png", photos / "shot 2.png", "-o", tmp_path / "a.npy", *FAST)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), flow)


def test_a_result_is_not_overwritten_silently(photos, tmp_path):
    (tmp_path / "a.flo").write_text("precious")
    frames = photos / "shot 1.png", photos / "shot 2.png"
    assert "--overwrite" in gma("flow", *frames, "-o", tmp_path / "a.flo", *FAST, exit_code=1)
    assert (tmp_path / "a.flo").read_text() == "precious"
    gma("flow", *frames, "-o", tmp_path / "a.flo", "--overwrite", *FAST)
    assert read_flow(tmp_path / "a.flo").shape == (2, 128, 160)


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
        ("animated", "animated", "holds 2 images"),
        ("plain", "text", "not a readable image (12 bytes)"),
        ("plain", "cut", "truncated"),
        ("plain", "absent", "no such file"),
        ("plain", "folder", "a folder where an image was expected"),
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
    assert "computed at 160x128 px, 0.500 of the size, and the flow scaled back" in answer
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
        "flow", *frames, "-o", tmp_path / "a.flo", "--backend", "nix", *FAST, exit_code=1
    )
    assert "a flow file ends in" in gma("flow", *frames, "-o", tmp_path / "a.jpg", exit_code=1)
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
        *FAST,
        "--updates",
        "7",
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
        *FAST,
        "--updates",
        "7",
        exit_code=130,
    )
    gma("video", photos, "-o", tmp_path / "out", *FAST, "--updates", "7", exit_code=130)
    assert not [path for path in tmp_path.iterdir() if path != photos]


# --- video ----------------------------------------------------------------------------------------


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


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        write_frame(tmp_path / f"f{number}.png", np.full((3, 16, 16), number))
    assert [int(frame.mean()) for frame in clips.read_clip(tmp_path)] == [1, 9, 10]


def test_a_frame_of_another_size_stops_a_clip(tmp_path):
    write_frame(tmp_path / "1.png", np.zeros((3, 16, 16)))
    write_frame(tmp_path / "2.png", np.zeros((3, 16, 24)))
    with pytest.raises(ValueError, match=r"2\.png has 24x16 px where the frames before have 16x16"):
        list(clips.read_clip(tmp_path))


# --- evaluate -------------------------------------------------------------------------------------


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


# --- export, doctor -------------------------------------------------------------------------------


def test_export_writes_files_that_say_what_they_are(tmp_path):
    from gma_lib.export.trace import read_description

    gma("export", "-o", tmp_path / "model", "--height", 128, "--width", 160, *FAST)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["gma.onnx"]
    assert read_description(tmp_path / "model" / "gma.onnx")["num_updates"] == "1"
    assert "not an empty folder" in gma(
        "export", "-o", tmp_path / "model", "--height", 128, "--width", 160, *FAST, exit_code=1
    )
    assert "multiples of 8" in gma(
        "export", "-o", tmp_path / "other", "--height", 130, "--width", 160, *FAST, exit_code=1
    )


def test_doctor_answers():
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code in (0, 1)
    assert "Python" in done.output
