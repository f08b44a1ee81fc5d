"""A submission is whole, named as the benchmark wants it, and warm along each scene."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import HEIGHT, WIDTH
from PIL import Image

from gma_lib.cli import main
from gma_lib.flow.files import read_flow, write_flow
from gma_lib.flow.images import write_frame
from gma_lib.infer import means, submission
from gma_lib.infer.estimator import Estimator
from gma_lib.infer.frames import as_frames
from gma_lib.runs.leftovers import name_partial

pytestmark = pytest.mark.slow

SCENES = {"cave": 3, "alley": 2}  # scene -> frames


@pytest.fixture
def test_split(tmp_path):
    return write_split(tmp_path, HEIGHT, WIDTH)


def write_split(tmp_path, height, width):
    """Sintel's test split in small: two passes of two scenes, no ground truth."""
    rng = np.random.default_rng(0)
    for pass_name in ("clean", "final"):
        for scene, frames in SCENES.items():
            for number in range(1, frames + 1):
                path = tmp_path / "sintel" / "test" / pass_name / scene / f"frame_{number:04d}.png"
                write_frame(path, rng.integers(0, 256, (3, height, width)).astype(np.float32))
    return tmp_path / "sintel"


class Counting(Estimator):
    """Answers every pair with its number in its sequence, and remembers the sequences."""

    def __init__(self):
        super().__init__("seeded")
        self.sequences = []

    def along(self, frames, *, warm=False):
        frames = list(frames)
        self.sequences.append((len(frames), warm))
        for number in range(1, len(frames)):
            yield np.full((2, *frames[0].shape[1:]), number, np.float32)


EXPECTED = [
    f"{p}/{name}"
    for p in ("clean", "final")
    for name in ("alley/frame0001.flo", "cave/frame0001.flo", "cave/frame0002.flo")
]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_pair_of_both_passes_each_scene_a_sequence_of_its_own(test_split, tmp_path):
    estimator = Counting()
    pairs = submission.write_submission(test_split, tmp_path / "out", estimator)
    assert files(tmp_path / "out") == EXPECTED
    assert len(pairs) == len(EXPECTED)
    assert estimator.sequences == [(2, True), (3, True)] * 2
    assert read_flow(tmp_path / "out/final/cave/frame0002.flo").max() == 2


def test_passes_of_different_frames_are_refused_before_anything_is_computed(test_split, tmp_path):
    (test_split / "test/clean/cave/frame_0003.png").unlink()
    estimator = Counting()
    with pytest.raises(FileNotFoundError, match=r"clean/cave lacks frame 2 or 3.*final/cave has"):
        submission.write_submission(test_split, tmp_path / "out", estimator)
    assert estimator.sequences == []


def test_turned_frames_are_refused_before_anything_is_computed(test_split, tmp_path):
    """The benchmark scores frames as they are stored."""
    frame = test_split / "test/final/cave/frame_0002.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(frame).save(frame, exif=exif)
    with pytest.raises(ValueError, match=r"final/cave/frame_0002\.png"):
        submission.write_submission(test_split, tmp_path / "out", Counting())
    assert not files(tmp_path / "out")


def test_a_worker_computes_scenes_with_a_model_of_its_own(test_split, tmp_path):
    submission.write_submission(test_split, tmp_path / "out", Counting())
    estimator = Counting()
    with ThreadPoolExecutor(2) as executor:
        submission.write_submission(test_split, tmp_path / "by", estimator, executor=executor)
    assert sorted(estimator.sequences) == sorted([(2, True), (3, True)] * 2)
    for name in EXPECTED:
        assert (tmp_path / "by" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    estimator._loaded = (), object()  # what a runtime made of a model
    sent = pickle.loads(pickle.dumps(Estimator("seeded")))
    assert sent.to_record() == estimator.to_record()
    assert estimator.__getstate__()["_loaded"] is None


def test_a_cluster_that_there_is_not_is_refused_by_its_option(tmp_path):
    done = CliRunner().invoke(main, ["submit", "a", "-o", str(tmp_path / "b"), "--cluster", "ray"])
    assert done.exit_code == 2
    assert "'--cluster': ray should be serial" in done.output


def test_the_ledger_of_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = tmp_path.with_name(f"{tmp_path.name}.jsonl")
    assert submission.locate_beside(Path(), ".jsonl") == expected


def test_what_is_whole_is_not_computed_again(test_split, tmp_path):
    submission.write_submission(test_split, tmp_path / "out", Counting())
    (tmp_path / "out/final/cave/frame0002.flo").unlink()
    again = Counting()
    submission.write_submission(test_split, tmp_path / "out", again)
    assert again.sequences == [(3, True)]
    assert files(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize("change", ["values", "not_finite", "of_another_pair", "no_ledger"])
def test_flow_that_was_changed_since_is_computed_again(test_split, tmp_path, change):
    folder, estimator = tmp_path / "out", Counting()
    submission.write_submission(test_split, folder, estimator)
    written = {name: (folder / name).read_bytes() for name in EXPECTED}
    first, second = (folder / f"clean/cave/frame000{number}.flo" for number in (1, 2))
    if change == "values":
        write_flow(first, read_flow(first) + 50)
    elif change == "not_finite":
        write_flow(first, np.full((2, HEIGHT, WIDTH), np.nan, np.float32))
    elif change == "of_another_pair":
        first.write_bytes(second.read_bytes())
    else:  # a folder that was copied without it
        (tmp_path / "out.jsonl").unlink()
    estimator.sequences.clear()
    submission.write_submission(test_split, folder, estimator)
    assert len(estimator.sequences) == (4 if change == "no_ledger" else 1)
    assert {name: (folder / name).read_bytes() for name in EXPECTED} == written


def test_flow_of_two_sets_of_weights_is_never_mixed(test_split, tmp_path):
    submission.write_submission(test_split, tmp_path / "out", Counting())
    (tmp_path / "out/final/cave/frame0002.flo").unlink()
    other = Counting()
    other.num_updates = 5
    with pytest.raises(ValueError, match="other settings, weights or frames"):
        submission.write_submission(test_split, tmp_path / "out", other)
    (tmp_path / "out.json").unlink()
    with pytest.raises(ValueError, match="other settings, weights or frames"):
        submission.write_submission(test_split, tmp_path / "out", Counting())


def test_flow_of_two_processors_is_never_mixed(test_split, tmp_path, monkeypatch):
    submission.write_submission(test_split, tmp_path / "out", Counting())
    (tmp_path / "out/final/cave/frame0002.flo").unlink()
    monkeypatch.setattr(means, "identify_processor", lambda: "another")
    with pytest.raises(ValueError, match="library, processor or GPU"):
        submission.write_submission(test_split, tmp_path / "out", Counting())


@pytest.mark.parametrize(("precision", "is_refused"), [("int8", True), ("float32", False)])
def test_flow_of_two_calibrations_is_never_mixed(
    test_split, tmp_path, monkeypatch, precision, is_refused
):
    """int8 is calibrated on scenes that a file describes, and the training package renders."""
    scenes = tmp_path / "train.yaml"
    scenes.write_text("seed: 1\n")
    monkeypatch.setattr(means, "SCENES", scenes)
    estimator = Counting()
    estimator.precision = precision
    submission.write_submission(test_split, tmp_path / "out", estimator)
    scenes.write_text("seed: 2\n")
    (tmp_path / "out/final/cave/frame0002.flo").unlink()
    if is_refused:
        with pytest.raises(ValueError, match="made with other settings"):
            submission.write_submission(test_split, tmp_path / "out", estimator)
    else:
        submission.write_submission(test_split, tmp_path / "out", estimator)


def test_what_renders_the_scenes_counts_for_int8_alone(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(means, "hash_code", lambda path: hashed.append(path.parent.name))
    means.describe_all_means("openvino", "float32")
    assert "training" not in hashed
    means.describe_all_means("openvino", "int8")
    assert "training" in hashed


def test_flow_of_two_gpus_is_never_mixed(test_split, tmp_path, monkeypatch):
    estimator = Counting()
    estimator.backend = "cuda"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "A")
    submission.write_submission(test_split, tmp_path / "out", estimator)
    (tmp_path / "out/final/cave/frame0002.flo").unlink()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "B")
    with pytest.raises(ValueError, match="processor or GPU"):
        submission.write_submission(test_split, tmp_path / "out", estimator)
    names = iter("AAB")  # of the record, of this process, of a worker
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: next(names))
    with pytest.raises(ValueError, match="a worker computes on B, not A"):
        submission.write_submission(test_split, tmp_path / "out", estimator)


def test_frames_that_change_while_others_are_computed_are_refused(test_split, tmp_path):
    """The record would name those that were there before."""
    last = test_split / "test/final/cave/frame_0003.png"

    class Meanwhile(Counting):
        def along(self, frames, *, warm=False):
            write_frame(last, np.zeros((3, HEIGHT, WIDTH), np.float32))
            return super().along(frames, warm=warm)

    with pytest.raises(ValueError, match=r"frame_0003\.png changed"):
        submission.write_submission(test_split, tmp_path / "out", Meanwhile())
    assert not [name for name in files(tmp_path / "out") if name.startswith("final/cave")]


def test_flow_of_frames_that_have_changed_is_not_kept(test_split, tmp_path):
    submission.write_submission(test_split, tmp_path / "out", Counting())
    frame = test_split / "test/final/cave/frame_0001.png"
    write_frame(frame, np.zeros((3, HEIGHT, WIDTH), np.float32))
    again = Counting()
    with pytest.raises(ValueError, match="other settings, weights or frames"):
        submission.write_submission(test_split, tmp_path / "out", again)
    assert again.sequences == []


def test_almost_black_frames_are_submitted(test_split, tmp_path):
    """Those of a fade-in hold values of 0 and 1, which as fractions would be frames of 0..1."""

    class Checking(Counting):
        def along(self, frames, *, warm=False):
            return super().along([as_frames(frame, "frame")[0] for frame in frames], warm=warm)

    for path in test_split.rglob("*.png"):
        write_frame(path, np.eye(HEIGHT, WIDTH)[None].repeat(3, axis=0))
    submission.write_submission(test_split, tmp_path / "out", Checking())
    assert files(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize(("precision", "is_refused"), [("bfloat16", True), ("float32", False)])
def test_flow_of_other_threads_is_not_mixed(
    test_split, tmp_path, monkeypatch, precision, is_refused
):
    estimator = Counting()
    estimator.precision = precision
    submission.write_submission(test_split, tmp_path / "out", estimator)
    (tmp_path / "out/final/cave/frame0002.flo").unlink()
    monkeypatch.setattr(means, "count_cores", lambda: 1000)
    match = "made with other settings"
    with pytest.raises(ValueError, match=match) if is_refused else nullcontext():
        submission.write_submission(test_split, tmp_path / "out", estimator)


def test_a_call_that_was_killed_while_it_wrote_can_be_repeated(test_split, tmp_path):
    submission.write_submission(test_split, tmp_path / "out", Counting())
    whole = tmp_path / "out/final/cave/frame0002.flo"
    left = name_partial(whole).name.replace(f"-{os.getpid()}-", f"-{2**30}-")  # of no process
    whole.rename(whole.with_name(left))
    submission.write_submission(test_split, tmp_path / "out", Counting())
    assert files(tmp_path / "out") == EXPECTED


def damage_missing(folder):
    (folder / "clean/cave/frame0001.flo").unlink()


def damage_cut(folder):
    path = folder / "clean/cave/frame0001.flo"
    path.write_bytes(path.read_bytes()[:-8])


def damage_size(folder):
    write_flow(folder / "clean/cave/frame0001.flo", np.zeros((2, HEIGHT, WIDTH - 8), np.float32))


def damage_content(folder):
    path = folder / "clean/cave/frame0001.flo"
    path.write_bytes(b"\0" * path.stat().st_size)


def damage_extra(folder):
    (folder / "clean/cave/frame0003.flo").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (damage_missing, "1 of 6 files are missing"),
        (damage_cut, "bytes where the flow of its frame has"),
        (damage_size, "bytes where the flow of its frame has"),
        (damage_content, "not a .flo file"),
        (damage_extra, "holds other things too"),
    ],
)
def test_a_damaged_submission_is_not_called_done(test_split, tmp_path, damage, complaint):
    pairs = submission.write_submission(test_split, tmp_path / "out", Counting())
    submission.check_submission(pairs, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        submission.check_submission(pairs, tmp_path / "out")


def test_a_folder_with_other_things_is_refused_before_anything_is_computed(test_split, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    estimator = Counting()
    with pytest.raises(ValueError, match=r"notes\.txt"):
        submission.write_submission(test_split, tmp_path / "out", estimator)
    assert estimator.sequences == []


@pytest.mark.parametrize("too_few", [130 * 140, 136 * 144 - 1])
def test_frames_are_never_scaled_for_the_benchmark(tmp_path, too_few):
    """What has to fit is the padded frame: it is what the network computes."""
    frames = write_split(tmp_path, 130, 140)
    estimator = Counting()
    estimator.max_pixels = too_few
    with pytest.raises(ValueError, match=r"19584 pixels.*max_pixels"):
        submission.write_submission(frames, tmp_path / "out", estimator)
    assert estimator.sequences == []


def test_frames_that_fit_with_their_padding_are_submitted(tmp_path):
    frames = write_split(tmp_path, 130, 140)
    estimator = Counting()
    estimator.max_pixels = 136 * 144
    submission.write_submission(frames, tmp_path / "out", estimator)
    assert files(tmp_path / "out") == EXPECTED


def test_the_command_says_what_is_not_complete(test_split, tmp_path, monkeypatch):
    monkeypatch.setenv("GMA_CACHE", str(tmp_path / "cache"))
    arguments = [
        "submit",
        str(test_split),
        "-o",
        str(tmp_path / "out"),
        "--checkpoint",
        "seeded",
        "--updates",
        "1",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert files(tmp_path / "out") == EXPECTED
    assert "6 of 1104 pairs" in done.output
