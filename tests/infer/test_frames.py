import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from gma_lib.flow.images import read_frame
from gma_lib.infer.frames import as_frames


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (np.zeros((128, 1, 3)), "1x128 px"),
        (np.zeros((20, 30, 4)), "shape"),
        (np.full((20, 30, 3), 0.5), "multiply"),
        (np.full((20, 30, 3), 300.0), "300"),
        (np.full((20, 30, 3), -1.0), "-1"),
        (np.full((20, 30, 3), np.nan), "nan"),
        (np.zeros((20, 30, 3), np.uint16), "uint16"),
        (np.array(["a"]), "frames are"),
        (np.zeros((20, 30, 3), complex), "complex128"),
        (torch.zeros(3, 20, 30).to_sparse(), "no array of numbers"),
        ([[1, 2], [3]], "no array of numbers"),
        (Image.new("I;16", (30, 20)), "uint16"),
        (Image.new("I;16B", (30, 20)), "uint16"),
        (np.full((20, 30, 3), 1.02), "multiply"),
        (np.zeros((0, 3, 20, 30)), "shape"),
        (np.ma.masked_equal(np.arange(3 * 80).reshape(3, 8, 10), 7), "masked"),
    ],
)
def test_what_is_no_frame_is_refused(frame, complaint):
    with pytest.raises(ValueError, match=complaint):
        as_frames(frame, "frame1")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_tensors_of_any_number_format_are_frames(kind):
    frame = torch.arange(3 * 8 * 8).reshape(3, 8, 8).to(kind)
    np.testing.assert_array_equal(as_frames(frame, "frame1")[0], frame.float().numpy())


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_a_picture_of_pillow_is_what_it_shows(mode):
    """A palette's indices are no grey values."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    picture = Image.fromarray(colours).convert(mode)
    shown = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(as_frames(picture, "frame1")[0], shown)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_picture_of_pillow_is_upright_as_its_file(tmp_path, kind):
    """A telephone that was turned stores a picture lying on its side."""
    colours = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    file, tags = tmp_path / f"a.{kind.lower()}", Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(colours).save(file, kind, exif=tags)
    with Image.open(file) as picture:
        shown = as_frames(picture, "frame1")[0]
        np.testing.assert_array_equal(as_frames(picture, "frame1")[0], shown)
    assert shown.shape == (3, 16, 24)
    np.testing.assert_array_equal(shown, read_frame(file))


@pytest.mark.parametrize(
    "make",
    [
        lambda picture: picture.rotate(180),
        lambda picture: picture.resize((8, 12)),
        lambda picture: picture.convert("RGB"),
        lambda picture: ImageOps.exif_transpose(picture),
    ],
    ids=["rotated", "resized", "converted", "transposed"],
)
def test_a_picture_made_from_a_file_is_not_turned_again(tmp_path, make):
    """It keeps the file's tag, even where somebody has turned it by that."""
    colours = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 3
    Image.fromarray(colours).save(tmp_path / "a.png", exif=tags)
    with Image.open(tmp_path / "a.png") as picture:
        made = make(picture)
    shown = np.asarray(made).transpose(2, 0, 1)
    np.testing.assert_array_equal(as_frames(made, "frame1")[0], shown)


def test_grey_and_dark_frames_are_frames():
    assert as_frames(np.zeros((20, 30)), "frame1").shape == (1, 3, 20, 30)
    assert (
        as_frames(np.ones((20, 30, 3), np.uint8), "frame1").max() == 1
    )  # almost black, and whole numbers
