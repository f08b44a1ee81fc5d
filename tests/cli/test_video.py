"""``gma video``: flow along folders and videos; unfinished folders cannot pass for whole ones."""

import json
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import FAST, gma

from gma_lib.cli import video
from gma_lib.data import videos
from gma_lib.flow.files import read_flow, read_flow_file, write_flow
from gma_lib.flow.images import write_frame
from gma_lib.infer import means
from gma_lib.runs.files import hash_file
from gma_lib.runs.processes import lock_path

pytestmark = pytest.mark.slow

TIMES = [Fraction(tick, 100) for tick in (0, 4, 30, 31, 50)]


def write_video(path: Path, folder: Path) -> None:
    pictures = [cv2.imread(str(file))[:, :, ::-1] for file in sorted(folder.iterdir())]
    videos.write_movie(path, iter(pictures), TIMES)


def leave_unfinished(*arguments) -> None:
    """Compute all flow, and end before it is delivered."""

    def refuse(*_):
        raise OSError("no")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        gma(*arguments, exit_code=1)


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
    record = json.loads((tmp_path / "out" / "flow.json").read_text())
    assert record["pairs"] == 3
    shown = [time for time, _ in videos.read_video(tmp_path / "out" / "flow.mp4")]
    if kind == "folder":
        assert record["times_s"] == []
        assert shown == [0, Fraction(1, 25), Fraction(2, 25)]
        gma("flow", photos / "shot 2.png", photos / "shot 3.png", "-o", tmp_path / "a.flo", *FAST)
        np.testing.assert_allclose(
            read_flow(tmp_path / "out" / "frame_0002.flo"), read_flow(tmp_path / "a.flo"), atol=2e-3
        )
    else:
        assert record["times_s"] == [0, 0.04, 0.3, 0.31]
        assert shown == TIMES[:3]


def test_images_that_are_numbered_from_0_are_listed(photos, tmp_path):
    """Regression: frame_0001.flo looked like the flow of frame_0001.png, not of frame_0000.png."""
    clip = tmp_path / "clip"
    clip.mkdir()
    for number, file in enumerate(sorted(photos.iterdir())[:3]):
        shutil.copy(file, clip / f"frame_{number:04d}{file.suffix}")
    said = gma("video", clip, "-o", tmp_path / "out", *FAST)
    assert "frame_0001.flo is the flow from frame_0000" in said
    record = json.loads((tmp_path / "out" / "flow.json").read_text())
    assert [Path(name).stem for name in record["images"]] == [f"frame_{n:04d}" for n in range(3)]


def test_a_movie_with_the_frames_above_their_flow(photos, tmp_path):
    gma("video", photos, "-o", tmp_path / "out", "--movie", "--above", *FAST)
    shown = [picture for _, picture in videos.read_video(tmp_path / "out" / "flow.mp4")]
    assert [picture.shape for picture in shown] == [(3, 256, 160)] * 3
    frame = cv2.imread(str(photos / "shot 2.png"))[:, :, ::-1].transpose(2, 0, 1)
    apart = np.abs(shown[1][:, :128].astype(float) - frame).mean()
    assert apart < np.abs(shown[0][:, :128].astype(float) - frame).mean() / 2
    gma("video", photos, "-o", tmp_path / "b", "--above", exit_code=2)


def test_a_movie_of_frames_between_two_grey_levels_shows_the_nearer(tmp_path, monkeypatch):
    """As those of 16 bits are."""
    write_flow(tmp_path / "a.flo", np.ones((2, 4, 4), np.float32))
    shown = []
    monkeypatch.setattr(
        video, "write_movie", lambda _path, pictures, _times: shown.extend(pictures)
    )
    frames = iter([np.full((3, 4, 4), 99.6, np.float32)])
    video._write_flow_movie(tmp_path / "a.mp4", [tmp_path / "a.flo"], [Fraction(0)], frames)
    assert (shown[0][:4] == 100).all()


def test_a_clip_s_record_on_the_command_line(photos, tmp_path):
    answer = gma("video", photos, "-o", tmp_path / "out", "--json", *FAST)
    record = json.loads(answer.splitlines()[-1])
    assert (record["pairs"], record["computed"], record["precision"]) == (3, 3, "float32")
    assert 0 < record["seconds"] < 60
    assert gma("video", photos, "-o", tmp_path / "quiet", "-q", *FAST) == ""


@pytest.mark.parametrize("fps", ["0", "nan", "inf", "-1", "fast"])
def test_a_frame_rate_that_is_none_is_refused_at_once(fps, photos, tmp_path):
    answer = gma("video", photos, "-o", tmp_path / "out", "--movie", "--fps", fps, exit_code=2)
    assert "--fps" in answer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_no_flow_is_computed_for_a_movie_that_cannot_be_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "ENCODERS", ())
    monkeypatch.setattr(video.Estimator, "along", None)
    answer = gma("video", photos, "-o", tmp_path / "out", "--movie", *FAST, exit_code=1)
    assert "no movie of 160x128 px" in answer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_some_frames_in_another_format(suffix, photos, tmp_path):
    chosen = ["--start", 2, "--end", 4, "--stride", 2, "--format", suffix[1:]]
    gma("video", photos, "-o", tmp_path / "out", *chosen, "--movie", "--fps", 10, *FAST)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "flow.json",
        "flow.mp4",
        f"frame_0002{suffix}",
    ]
    gma("flow", photos / "shot 2.png", photos / "shot 4.png", "-o", tmp_path / "a.flo", *FAST)
    flow, _ = read_flow_file(tmp_path / "out" / f"frame_0002{suffix}")
    np.testing.assert_allclose(flow, read_flow(tmp_path / "a.flo"), atol=1 / 64)


def test_almost_black_frames_are_frames(tmp_path):
    for number in (1, 2):
        frame = np.zeros((3, 128, 160))
        frame[:, :, : 40 * number] = 1
        write_frame(tmp_path / "dark" / f"{number}.png", frame)
    deep = np.full((128, 160, 3), 200, np.uint16)  # of 65535
    cv2.imwrite(str(tmp_path / "dark" / "3.png"), deep)
    gma("video", tmp_path / "dark", "-o", tmp_path / "out", *FAST)
    gma("flow", *(tmp_path / "dark" / f"{n}.png" for n in (2, 3)), "-o", tmp_path / "a.flo", *FAST)


@pytest.mark.exhaustive
def test_a_killed_run_goes_on_where_it_was(photos, tmp_path):
    """SIGKILL in the middle: what is written is kept, and the result is that of one run."""
    warm = ["--warm"]  # the pair at which it was killed may be computed again
    for number in range(5, 9):
        shutil.copy(photos / f"shot {number - 4}.png", photos / f"shot {number}.png")
    gma("video", photos, "-o", tmp_path / "whole", *warm, *FAST)
    arguments = ["video", str(photos), "-o", str(tmp_path / "out"), *warm, *FAST]
    partial = tmp_path / "out.partial"
    with subprocess.Popen([sys.executable, "-m", "gma_lib.cli", *arguments]) as process:
        while not (partial / "frame_0002.flo").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    kept = {path: path.stat().st_mtime_ns for path in partial.glob("*.flo")}
    changed = gma(*arguments[:-1], "2", exit_code=1)
    assert "num_updates 1, not 2" in changed
    answer = gma(*arguments)
    assert "holds" in answer
    times = [(tmp_path / "out" / path.name).stat().st_mtime_ns for path in kept]
    assert sum(map(list(kept.values()).__contains__, times)) >= len(kept) - 1
    whole = {path.name: hash_file(path) for path in (tmp_path / "whole").glob("*.flo")}
    assert {path.name: hash_file(path) for path in (tmp_path / "out").glob("*.flo")} == whole
    assert not list((tmp_path / "out").glob("*.npz"))


@pytest.mark.parametrize("change", ["values", "start"])
def test_what_was_changed_since_is_computed_again(photos, tmp_path, change):
    arguments = ["video", photos, "-o", tmp_path / "out", "--warm", *FAST]
    leave_unfinished(*arguments)
    partial = tmp_path / "out.partial"
    whole = {path.name: path.read_bytes() for path in partial.glob("*.flo")}
    if change == "values":
        first = partial / "frame_0001.flo"
        write_flow(first, read_flow(first) + 50)
    else:
        state = dict(np.load(partial / "warm.npz"))
        np.savez(partial / "warm.npz", **state | {"flow_low": state["flow_low"] + 50})
        (partial / "frame_0003.flo").unlink()
    answer = gma(*arguments)
    assert "holds" not in answer
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.flo")} == whole


def test_a_record_that_was_edited_is_not_gone_on_with(photos, tmp_path):
    arguments = ["video", photos, "-o", tmp_path / "out", "--checkpoint", "seeded", "--updates"]
    leave_unfinished(*arguments, 1)
    record = tmp_path / "out.partial" / "flow.json"
    record.write_text(record.read_text().replace('"num_updates": 1', '"num_updates": 2'))
    assert "flow.json was changed since" in gma(*arguments, 2, exit_code=1)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    assert "not an empty folder" in gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_link_and_the_current_folder_are_refused_before_computing(photos, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for output in (tmp_path / "link", ".", tmp_path / "empty"):
        gma("video", photos, "-o", output, *FAST, exit_code=1)
    assert not any(tmp_path.glob("*.partial*"))
    assert not any(Path.cwd().iterdir())


def test_two_runs_at_once_do_not_write_into_one_folder(photos, tmp_path):
    with lock_path(tmp_path / ".out.partial.lock"):
        answer = gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)
    assert "another process holds" in answer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    gma("video", photos, "-o", tmp_path / "out", "--end", 2, *FAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_what_was_computed_of_a_broken_clip_cannot_pass_for_all_of_it(photos, tmp_path):
    (photos / "shot 3.png").write_text("not an image")
    answer = gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)
    assert "shot 3.png: not a readable image" in answer
    assert "out.partial holds the flow of 1 pair" in answer
    assert not (tmp_path / "out").exists()
    names = sorted(path.name for path in (tmp_path / "out.partial").iterdir())
    assert names == ["flow.json", "frame_0001.flo", "ledger.jsonl"]
    gma("video", photos, "-o", tmp_path / "out", "--end", 2, *FAST)  # the part before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names[:2]
    (tmp_path / "out").rename(tmp_path / "out.partial")
    shutil.copy(photos / "shot 2.png", photos / "shot 3.png")  # another clip now
    answer = gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)
    assert "out.partial was begun with clip_sha256" in answer


@pytest.mark.parametrize(
    ("what", "now"), [("identify_processor", "another"), ("find_versions", {"av": "1"})]
)
def test_what_another_machine_began_is_not_gone_on_with(photos, tmp_path, monkeypatch, what, now):
    gma("video", photos, "-o", tmp_path / "out", "--end", 2, *FAST)
    (tmp_path / "out").rename(tmp_path / "out.partial")
    monkeypatch.setattr(means, what, lambda *names: now)
    answer = gma("video", photos, "-o", tmp_path / "out", *FAST, exit_code=1)
    assert "out.partial was begun by another" in answer
    assert "repeat" not in answer
    assert not (tmp_path / "out").exists()


def test_flow_beyond_an_earlier_end_does_not_stay(photos, tmp_path):
    gma("video", photos, "-o", tmp_path / "out", *FAST)
    (tmp_path / "out").rename(tmp_path / "out.partial")
    gma("video", photos, "-o", tmp_path / "out", "--end", 3, *FAST)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["flow.json", "frame_0001.flo", "frame_0002.flo"]
    assert json.loads((tmp_path / "out" / "flow.json").read_text())["pairs"] == 2


def test_the_seconds_of_a_resumed_run_are_those_of_what_it_computed(photos, tmp_path):
    for computed in (1, 0):
        leave_unfinished("video", photos, "-o", tmp_path / "out", *FAST)
        if computed:
            (tmp_path / "out.partial" / "frame_0003.flo").unlink()
        answer = gma("video", photos, "-o", tmp_path / "out", "--json", *FAST)
        record = json.loads(answer.splitlines()[-1])
        assert (record["computed"], record["seconds"] > 0) == (computed, bool(computed))
        shutil.rmtree(tmp_path / "out")


def test_clips_that_are_none(photos, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 1000)
    (tmp_path / "empty").mkdir()
    for number in (2, 3, 4):
        (photos / f"shot {number}.png").unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    for clip, found in {
        tmp_path / "broken.mp4": "FFmpeg cannot read it",
        tmp_path / "empty": "no frames to read",
        photos: "1 frame to read",
        photos / "shot 1.png": "1 frame to read",
        tmp_path / "none": "no such file",
        Path("-"): "no such file",
    }.items():
        assert found in gma("video", clip, "-o", tmp_path / "a", *FAST, exit_code=1)
    answer = gma(
        "video", photos, "-o", tmp_path / "a", "--start", 3, "--end", 2, *FAST, exit_code=1
    )
    assert "no frames to read" in answer
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_refined_clip_says_so_in_its_record_and_is_not_finished_without(photos, tmp_path):
    answer = gma("video", photos, "-o", tmp_path / "a", "--refine", "variational", *FAST)
    assert "flow of 3 pairs" in answer
    assert "; refined (variational)" in answer
    assert json.loads((tmp_path / "a" / "flow.json").read_text())["refine"] == "variational"
    (tmp_path / "a").rename(tmp_path / "a.partial")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a.partial").iterdir()}
    answer = gma("video", photos, "-o", tmp_path / "a", *FAST, exit_code=1)
    assert "refine" in answer.splitlines()[-1]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a.partial").iterdir()}
    gma("video", photos, "-o", tmp_path / "a", "--refine", "variational", *FAST)
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(before)
