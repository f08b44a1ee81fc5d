"""Flow files: what is written is what is read, and what is damaged is named."""

import os
import zlib

import cv2
import numpy as np
import pytest

from gma_lib.flow import files
from gma_lib.runs.files import BadFile


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
        (lambda content: content[:-4], "288 bytes.* has 292"),
        (lambda content: content[:8], "too few"),
        (lambda content: b"JUNK" + content[4:], "tag"),
        (lambda content: content + b"more", "296 bytes.* has 292"),
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


def test_kitti_clamps_and_marks_invalid_what_it_cannot_hold(tmp_path, messages):
    """As in KITTI's development kit; uint16 would wrap 511.995 px round to -512 px."""
    largest = (2**16 - 1 - 2**15) / 64
    values = [511.98, 511.995, 600, -512, -600, np.nan, np.inf, 2e9, 0.5]
    flow = np.stack([np.full((1, 9), 1, np.float32), np.array([values], np.float32)])
    files.write_flow_file(tmp_path / "a.png", flow)
    read, valid = files.read_flow_file(tmp_path / "a.png")
    assert read[1, 0, :5].tolist() == [largest, largest, largest, -512, -512]
    assert valid[0].tolist() == [True] * 5 + [False] * 3 + [True]
    assert ["2 pixels" in line for line in messages] == [True]
    messages.clear()
    files.write_flow_file(tmp_path / "a.png", flow[:, :, :2])
    assert messages == []


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".png", ".FLO", ".NPY", ".PNG"])
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


def test_doubles_by_column_are_read_in_parts(tmp_path):
    flow = np.asfortranarray(np.random.default_rng(0).normal(0, 9, (2, 800, 700)))
    flow[0, 0, 0] = 1e300  # beyond float32
    np.save(tmp_path / "a.npy", flow)
    read, known = files.read_flow_file(tmp_path / "a.npy")
    np.testing.assert_array_equal(read[:, 1:], flow[:, 1:].astype(np.float32))
    assert not known[0, 0]
    assert known.sum() == known.size - 1


def test_a_photograph_of_16_bits_is_no_kitti_flow(tmp_path):
    photo = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    with pytest.raises(BadFile, match="several values"):
        files.read_flow_file(tmp_path / "a.png")
    photo[:, :, 0] = np.where(photo[:, :, 0] > 2**15, 2**16 - 1, 0)  # some write that for valid
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    np.testing.assert_array_equal(files.read_flow_file(tmp_path / "a.png")[1], photo[:, :, 0] > 0)


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_kitti_flow_is_not_turned(tmp_path, flow, before):
    """A decoder would turn the field, and not its vectors."""
    path = tmp_path / "a.png"
    files.write_flow_file(path, flow)
    tag = b"eXIf" + bytes.fromhex("4d4d002a0000000800010112000300000001000600000000 0000")
    chunk = (len(tag) - 4).to_bytes(4) + tag + zlib.crc32(tag).to_bytes(4)
    content = path.read_bytes()
    at = content.index(before) - 4
    path.write_bytes(content[:at] + chunk + content[at:])
    with pytest.raises(BadFile, match="orientation"):
        files.read_flow_file(path)


def write_faulty(folder):
    """Files that are no flow -> what the error says of them."""
    np.save(folder / "picture.npy", np.zeros((4, 4, 3)))
    np.save(folder / "whole.npy", np.zeros((2, 4, 3), int))
    np.save(folder / "complex.npy", np.zeros((2, 4, 3), complex))
    np.save(folder / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(folder / "good.npy", np.zeros((2, 4, 3)))
    good = (folder / "good.npy").read_bytes()
    (folder / "cut.npy").write_bytes(good[:-8])
    (folder / "longer.npy").write_bytes(good + b"x")
    (folder / "huge.npy").write_bytes(good.replace(b"(2, 4, 3), }", b"(2, 99999, 99999), }")[:-12])
    (folder / "header.npy").write_bytes(good.replace(b"(2, 4, 3)", b"(2, 4, 3("))
    np.savez(folder / "archive.npz", a=np.zeros(3))
    (folder / "archive.npz").rename(folder / "archive.npy")
    (folder / "empty.flo").write_bytes(b"")
    (folder / "none.flo").write_bytes(b"PIEH" + np.array([0, 5], "<i4").tobytes())
    (folder / "minus.flo").write_bytes(b"PIEH" + np.array([-1, -1], "<i4").tobytes() + bytes(8))
    (folder / "huge.flo").write_bytes(b"PIEH" + np.array([2**30, 2**30], "<i4").tobytes())
    cv2.imwrite(str(folder / "colour.png"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(folder / "grey.png"), np.zeros((4, 4), np.uint16))
    (folder / "flow.tif").write_bytes(b"")
    return {
        **{"picture.npy": "shape", "whole.npy": "int64", "complex.npy": "complex128"},
        **{"objects.npy": "object", "cut.npy": "184.*192", "longer.npy": "193.*192"},
        **{"huge.npy": "at most", "header.npy": "expected", "archive.npy": "magic"},
        **{"empty.flo": "too few", "none.flo": "0x5", "minus.flo": "-1x-1", "huge.flo": "at most"},
        **{
            "colour.png": "uint8",
            "grey.png": "shape",
            "flow.tif": "ends in",
            "none.npy": "no such",
        },
    }


def test_other_files_are_no_flow(tmp_path):
    for name, complaint in write_faulty(tmp_path).items():
        with pytest.raises(BadFile, match=complaint) as error:
            files.read_flow_file(tmp_path / name)
        assert name in str(error.value)
    assert files.read_flow_file(tmp_path / "good.npy")[0].shape == (2, 4, 3)


@pytest.mark.parametrize("suffix", [".flo", ".npy"])
@pytest.mark.parametrize("moment", ["check_pixels", "fromfile"])
def test_flow_that_changes_while_it_is_read(tmp_path, suffix, moment, monkeypatch):
    path = tmp_path / f"a{suffix}"
    files.write_flow_file(path, np.ones((2, 40, 50), np.float32))
    owner = files if moment == "check_pixels" else np
    step = getattr(owner, moment)

    def cut_and_go_on(*arguments, **options):
        os.truncate(path, path.stat().st_size // 2)
        return step(*arguments, **options)

    monkeypatch.setattr(owner, moment, cut_and_go_on)
    with pytest.raises(BadFile):
        files.read_flow_file(path)
