"""Frames, photographs and masks: what is written is what is read, damage is named."""

import cv2
import numpy as np
import pytest

from gma_lib.flow import images


def test_frame_survives_the_file(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (3, 4, 6)).astype(np.float32)
    images.write_frame(tmp_path / "a.png", frame)
    np.testing.assert_array_equal(images.read_frame(tmp_path / "a.png"), frame)
    assert images.read_image_size(tmp_path / "a.png") == (4, 6)


def test_frame_is_red_green_blue(tmp_path):
    frame = np.zeros((3, 4, 6), np.float32)
    frame[0] = 255
    images.write_frame(tmp_path / "a.png", frame)
    # OpenCV puts blue first
    assert cv2.imread(str(tmp_path / "a.png"))[0, 0].tolist() == [0, 0, 255]


def test_truncated_png_is_an_error(tmp_path):
    """libpng would fill the missing rows and only warn."""
    path = tmp_path / "a.png"
    images.write_frame(
        path, np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.float32)
    )
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"a\.png.*truncated"):
        images.read_frame(path)


def test_mask_survives_the_file(tmp_path):
    mask = np.random.default_rng(0).random((4, 6)) < 0.5
    images.write_mask(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), mask)


def test_an_image_size_is_read_from_png_alone(tmp_path):
    (file := tmp_path / "a.png").write_bytes(b"GIF89a" + bytes(30))
    with pytest.raises(ValueError, match=r"a\.png"):
        images.read_image_size(file)


def test_a_photo_of_16_bits_keeps_its_fractions(tmp_path):
    stored = np.arange(0, 60000, 2500, dtype=np.uint16).reshape(2, 4, 3)
    cv2.imwrite(str(tmp_path / "deep.png"), stored)
    frame, remarks = images.read_photo(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        frame, (stored[:, :, ::-1].astype(np.float32) / 257).transpose(2, 0, 1)
    )
    assert len(remarks) == 1
    cv2.imwrite(str(tmp_path / "plain.png"), (stored // 257).astype(np.uint8))
    assert images.read_photo(tmp_path / "plain.png")[1] == []


def test_a_photo_of_floats_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tiff"), np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="float32"):
        images.read_photo(tmp_path / "a.tiff")
