"""Flow files: what is written is what is read, and what is damaged is named."""

import cv2
import numpy as np
import pytest

from gma_lib.flow import files


@pytest.fixture
def flow():
    return np.random.default_rng(0).normal(0, 30, (2, 5, 7)).astype(np.float32)


def test_flow_survives_the_file(tmp_path, flow):
    files.write_flow(tmp_path / "a.flo", flow)
    np.testing.assert_array_equal(files.read_flow(tmp_path / "a.flo"), flow)
    assert (tmp_path / "a.flo").stat().st_size == files.count_flow_bytes(5, 7)


def test_flow_file_is_middlebury_layout(tmp_path):
    """x before y at every pixel, row after row, behind a tag, the width and the height."""
    flow = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    files.write_flow(tmp_path / "a.flo", flow)
    content = (tmp_path / "a.flo").read_bytes()
    assert content[:4] == b"PIEH"
    assert np.frombuffer(content, "<i4", 2, 4).tolist() == [3, 2]
    values = np.frombuffer(content, "<f4", offset=12)
    assert values.tolist() == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]


def test_flow_agrees_with_opencv(tmp_path, flow):
    files.write_flow(tmp_path / "a.flo", flow)
    np.testing.assert_array_equal(
        cv2.readOpticalFlow(str(tmp_path / "a.flo")).transpose(2, 0, 1), flow
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-4], "truncated"),
        (lambda content: content[:8], "too few"),
        (lambda content: b"JUNK" + content[4:], "tag"),
        (lambda content: content + b"more", "truncated"),
    ],
)
def test_damaged_flow_is_named(tmp_path, flow, damage, message):
    path = tmp_path / "a.flo"
    files.write_flow(path, flow)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        files.read_flow(path)
    assert "a.flo" in str(error.value)


def test_kitti_flow_survives_to_a_64th(tmp_path, flow):
    valid = np.random.default_rng(0).random(flow.shape[1:]) < 0.8
    files.write_kitti_flow(tmp_path / "a.png", flow, valid)
    read, read_valid = files.read_kitti_flow(tmp_path / "a.png")
    np.testing.assert_array_equal(read_valid, valid)
    assert np.abs(read - flow)[:, valid].max() <= 1 / 128


def test_kitti_refuses_what_it_cannot_hold(tmp_path, flow):
    with pytest.raises(ValueError, match="512"):
        files.write_kitti_flow(tmp_path / "a.png", flow + 600, np.ones(flow.shape[1:], bool))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".png"])
def test_every_format_gives_back_what_it_was_given(tmp_path, suffix):
    flow = (
        np.random.default_rng(0).integers(-30_000, 30_000, (2, 7, 9)).astype(np.float32) / 64
    )  # KITTI's steps
    files.write_flow_file(tmp_path / f"flow{suffix}", flow)
    read, known = files.read_flow_file(tmp_path / f"flow{suffix}")
    np.testing.assert_array_equal(read, flow)
    assert read.dtype == np.float32
    assert known.all()


def test_unknown_flow_is_known_to_be(tmp_path):
    flow = np.zeros((2, 2, 2), np.float32)
    flow[0, 0, 0], flow[1, 1, 1] = np.nan, 2e9
    files.write_flow_file(tmp_path / "flow.npy", flow)
    assert files.read_flow_file(tmp_path / "flow.npy")[1].tolist() == [
        [False, True],
        [True, False],
    ]


def test_other_files_are_no_flow(tmp_path):
    np.save(tmp_path / "picture.npy", np.zeros((4, 4, 3)))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    for name, complaint in (
        ("picture.npy", "shape"),
        ("objects.npy", "objects"),
        ("flow.tif", "ends in"),
        ("none.npy", "no such"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            files.read_flow_file(tmp_path / name)
