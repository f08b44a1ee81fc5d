"""Frames, photographs and masks: what is written is what is read, damage is named."""

import subprocess
import sys
import zlib
from contextlib import ExitStack, nullcontext

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from gma_lib.flow import images
from gma_lib.runs.files import BadFile


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


def test_a_picture_of_a_frame_is_rounded():
    """16 bits are scaled to values between whole ones: truncated, they are darker than stored."""
    frame = np.broadcast_to(np.array([-3, 99.4, 254.6, 300], np.float32), (3, 2, 4))
    picture = images.to_picture(frame)
    assert (picture.dtype, picture.shape) == (np.uint8, (2, 4, 3))
    assert picture[1, :, 2].tolist() == [0, 99, 255, 255]
    assert images.to_picture(picture.transpose(2, 0, 1)).tolist() == picture.tolist()


def test_truncated_png_is_an_error(tmp_path):
    """libpng would fill the missing rows and only warn."""
    path = tmp_path / "a.png"
    images.write_frame(
        path, np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.float32)
    )
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"a\.png.*Truncated"):
        images.read_frame(path)


def test_mask_survives_the_file(tmp_path):
    mask = np.random.default_rng(0).random((4, 6)) < 0.5
    images.write_mask(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), mask)


@pytest.mark.parametrize(("stored", "true"), [(np.uint8, 1), (np.uint16, 1), (np.uint16, 300)])
def test_a_mask_of_any_depth_is_true_above_zero(tmp_path, stored, true):
    mask = np.zeros((8, 8), stored)
    mask[:, :4] = true
    cv2.imwrite(str(tmp_path / "a.png"), mask)
    assert images.read_mask(tmp_path / "a.png").tolist() == [[True] * 4 + [False] * 4] * 8
    coloured = np.dstack(
        [mask * 0, mask * 0, mask, mask * 0 + np.iinfo(stored).max]
    )  # red, and opaque
    cv2.imwrite(str(tmp_path / "b.png"), coloured)
    assert images.read_mask(tmp_path / "b.png").sum() == 32
    Image.fromarray(mask > 0).save(tmp_path / "c.png")  # one bit
    assert images.read_mask(tmp_path / "c.png").sum() == 32


@pytest.mark.parametrize("colours", [[0, 128, 255], [1, 255], [[0, 0, 9], [0, 9, 0]]])
def test_a_picture_of_several_colours_is_no_mask(tmp_path, colours):
    """As a photograph: all of its pixels would be occluded."""
    cv2.imwrite(str(tmp_path / "a.png"), np.array([colours] * 4, np.uint8))
    with pytest.raises(BadFile, match=r"a\.png: several colours besides black; expected a mask"):
        images.read_mask(tmp_path / "a.png")


def test_a_palette_of_black_and_another_colour_is_a_mask(tmp_path):
    mask = np.eye(4, 6, dtype=np.uint8)
    image = Image.fromarray(mask, "P")
    image.putpalette([0, 0, 0, 200, 30, 0])
    image.save(tmp_path / "a.png")
    assert images.read_mask(tmp_path / "a.png").tolist() == mask.astype(bool).tolist()


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


@pytest.mark.parametrize(("brightest", "is_rounded"), [(513, True), (514, False)])
def test_an_almost_black_photo_of_16_bits_says_that_it_is_rounded(tmp_path, brightest, is_rounded):
    stored = np.linspace(0, brightest, 32 * 3).astype(np.uint16).reshape(4, 8, 3)
    cv2.imwrite(str(tmp_path / "deep.png"), stored)
    frame, remarks = images.read_photo(tmp_path / "deep.png")
    assert (len(np.unique(frame)) == 3) == is_rounded
    assert ("without rounding" in remarks[0]) != is_rounded
    assert len(remarks) == 1


@pytest.mark.parametrize(("brightest", "is_told"), [(255, True), (4095, True), (4096, False)])
def test_values_of_12_bits_in_16_are_told(tmp_path, brightest, is_told):
    stored = np.linspace(0, brightest, 32 * 3).astype(np.uint16).reshape(4, 8, 3)
    cv2.imwrite(str(tmp_path / "deep.png"), stored)
    (remark,) = images.read_photo(tmp_path / "deep.png")[1]
    assert ("4095" in remark) == is_told
    header = f"P5 8 4 {max(brightest, 256)}\n".encode()  # says what the largest value can be
    (tmp_path / "deep.pgm").write_bytes(header + stored[:, :, 0].astype(">u2").tobytes())
    assert not any("4095:" in one for one in images.read_photo(tmp_path / "deep.pgm")[1])


def test_a_photo_of_floats_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tiff"), np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="float32"):
        images.read_photo(tmp_path / "a.tiff")


@pytest.fixture
def picture():
    """Smooth colours, 24x40, RGB."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    return cv2.resize(coarse, (40, 24))


ROTATED = Image.Exif()
ROTATED[274] = 6  # as a telephone held upright writes


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        *(("a.png", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        *(("a.tif", mode, {}) for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK")),
        *(("a.webp", "RGB", {"lossless": True}), ("a.gif", "P", {}), ("a.bmp", "RGB", {})),
        *(("a.gif", "P", {"transparency": 3}), ("a.tif", "RGB", {"compression": "zstd"})),
        *(("a.ppm", "RGB", {}), ("a.pgm", "L", {}), ("A.JPG", "RGB", {}), ("a.jpg", "L", {})),
        *((f"a.{kind}", "RGB", {"exif": ROTATED}) for kind in ("png", "jpg", "tif", "webp")),
    ],
)
def test_a_photo_is_what_a_viewer_shows(tmp_path, picture, name, mode, options):
    Image.fromarray(picture).convert(mode).save(tmp_path / name, **options)
    frame, _ = images.read_photo(tmp_path / name)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
    np.testing.assert_array_equal(frame, np.asarray(shown).transpose(2, 0, 1))


def write_tiff(path, pixels, **tags):
    """Write (H, W, channels) as TIFF without compression; tags by number, after an underscore."""
    order = pixels.dtype.newbyteorder("<")
    rows, bits = pixels.astype(order).tobytes(), 8 * pixels.dtype.itemsize
    height, width, channels = pixels.shape
    known = {256: width, 257: height, 258: (bits,) * channels, 259: 1, 262: 2, 277: channels}
    known |= {273: 8, 278: height, 279: len(rows)}
    known |= {int(name[1:]): value for name, value in tags.items()}
    entries, more, at = b"", b"", 8 + len(rows) + 2 + 12 * len(known) + 4
    for tag, value in sorted(known.items()):
        values = value if isinstance(value, tuple) else (value,)
        held = np.array(values, "<u2" if tag in (258, 338) else "<u4").tobytes()
        if len(held) > 4:
            held, more = (at + len(more)).to_bytes(4, "little"), more + held
        head = np.array([tag, 3 if tag in (258, 338) else 4], "<u2").tobytes()
        entries += head + len(values).to_bytes(4, "little") + held.ljust(4, b"\0")
    count = len(known).to_bytes(2, "little")
    path.write_bytes(b"II*\0" + (8 + len(rows)).to_bytes(4, "little") + rows + count + entries)
    with open(path, "ab") as file:
        file.write(bytes(4) + more)


def test_alpha_of_a_tiff_leaves_its_colours(tmp_path, picture):
    """OpenCV would multiply them."""
    alpha = np.random.default_rng(0).integers(0, 256, (24, 40, 1), np.uint8)
    wanted = picture.transpose(2, 0, 1)
    for scale, depth in ((1, np.uint8), (257, np.uint16)):
        pixels = np.dstack([picture, alpha]).astype(depth) * depth(scale)
        write_tiff(tmp_path / "a.tif", pixels, _338=(2,))
        frame, remarks = images.read_photo(tmp_path / "a.tif")
        np.testing.assert_allclose(frame, wanted, atol=1e-4)
        assert "alpha" in remarks[0]


def test_an_inverted_tiff_is_not_read_as_its_negative(tmp_path, picture):
    grey = picture[:, :, :1]
    write_tiff(tmp_path / "a.tif", grey, _262=0)
    np.testing.assert_array_equal(images.read_photo(tmp_path / "a.tif")[0][0], 255 - grey[..., 0])


@pytest.mark.parametrize(
    ("tags", "channels", "complaint"),
    [
        ({"_262": 0}, 1, "inverted"),
        ({"_284": 2, "_278": 8}, 3, "planes"),
        ({"_338": (1,)}, 4, "multiplied"),
        ({"_262": 5}, 4, "inverted or indexed"),
    ],
)
def test_a_deep_tiff_of_another_form_is_refused(tmp_path, picture, tags, channels, complaint):
    pixels = np.resize(picture, (24, 40, channels)).astype(np.uint16)
    write_tiff(tmp_path / "a.tif", pixels, **tags)
    with pytest.raises(BadFile, match=f"{complaint}.*not read"):
        images.read_photo(tmp_path / "a.tif")
    write_tiff(
        tmp_path / "a.tif", pixels[..., :3] if channels > 1 else pixels, _262=min(channels, 2)
    )
    images.read_photo(tmp_path / "a.tif")


def test_white_is_white_in_a_bmp_of_five_bits(tmp_path):
    size = np.array([40, 8, 4, 1 + (16 << 16), 3, 64, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F], "<u4")
    head = b"BM" + np.array([130, 0, 66], "<u4").tobytes() + size.tobytes()
    (tmp_path / "a.bmp").write_bytes(head + b"\xff\xff" * 31 + bytes(2))
    frame, _ = images.read_photo(tmp_path / "a.bmp")
    assert [frame.min(), np.unique(frame).tolist()] == [0, [0, 255]]


def test_values_above_the_largest_of_a_pgm_are_refused(tmp_path):
    path = tmp_path / "a.ppm"
    for content in (b"P5 2 1 100\n\x64\xff", b"P5 2 1 999\n\3\0\9\0", b"P2 2 1 100\n3 101\n"):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=r"its header says|too large"):
            images.read_photo(path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"P2 2 1 5\n1 5", [[51, 255]] * 3),
        (b"P2 # by hand\n2 1\n1000 0 200", [[0, 51]] * 3),
        (b"P3 1 1 255 1 2 3", [[1], [2], [3]]),
        (b"P3 1 1 200 1 99 3", [[1], [126], [4]]),  # to the nearest of 256
    ],
)
def test_a_pgm_in_text_needs_no_last_newline(tmp_path, content, wanted):
    (tmp_path / "a.ppm").write_bytes(content)
    np.testing.assert_allclose(images.read_photo(tmp_path / "a.ppm")[0][:, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_damage_inside_a_jpeg_is_noticed(tmp_path, picture, options, capfd):
    """OpenCV and Pillow would fill in what is missing."""
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).resize((160, 96)).save(path, quality=95, **options)
    content = path.read_bytes()
    images.read_photo(path)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(500) + content[middle + 500 :])
    with pytest.raises(BadFile, match=r"a\.jpg: Corrupt"):
        images.read_photo(path)
    at = content.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0") + 5
    path.write_bytes(content[:at] + (4000).to_bytes(2) * 2 + content[at + 4 :])
    with pytest.raises(BadFile, match=r"a\.jpg: Corrupt"):
        images.read_photo(path)


def test_decoders_print_nothing_of_their_own(tmp_path, picture, capfd):
    (tmp_path / "b.ppm").write_bytes(b"P6 40 24 255\nabc")
    cv2.imwrite(str(tmp_path / "c.tif"), picture.astype(np.uint16) * 257)
    content = bytearray((tmp_path / "c.tif").read_bytes())
    content[20:60] = bytes(40)
    (tmp_path / "c.tif").write_bytes(content)
    for name in ("b.ppm", "c.tif"):
        with pytest.raises(BadFile):
            images.read_photo(tmp_path / name)
    assert capfd.readouterr() == ("", "")
    assert cv2.utils.logging.getLogLevel() > cv2.utils.logging.LOG_LEVEL_SILENT


def test_silence_ends_with_the_last_thread_inside():
    level = cv2.utils.logging.getLogLevel()
    with ExitStack() as second:
        with images.silence_opencv:
            second.enter_context(images.silence_opencv)
        assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT
    assert cv2.utils.logging.getLogLevel() == level > cv2.utils.logging.LOG_LEVEL_SILENT


def test_a_remark_is_one_line(tmp_path, picture):
    Image.fromarray(picture[..., 0]).save(tmp_path / "a\nb.png")
    assert [line.count("\n") for line in images.read_photo(tmp_path / "a\nb.png")[1]] == [0]


def test_a_mask_is_stored_without_loss_opaque_and_upright(tmp_path, picture):
    white = Image.fromarray(np.full((8, 12), 255, np.uint8))
    see_through = white.convert("LA")
    see_through.putpixel((1, 1), (255, 0))
    faults = {"a.jpg": white, "a.webp": white, "b.png": see_through}
    faults["float.tif"] = Image.fromarray(np.full((8, 12), np.nan, np.float32))
    faults["int.tif"] = Image.fromarray(np.full((8, 12), -1, np.int32))
    for name, mask in faults.items():
        mask.save(tmp_path / name)
    white.save(tmp_path / "jpeg.tif", compression="jpeg")
    for name in ("turned.png", "turned.tif"):
        white.save(tmp_path / name, exif=ROTATED)
    for name in (*faults, "jpeg.tif", "turned.png", "turned.tif"):
        with pytest.raises(BadFile, match="opaque and upright"):
            images.read_mask(tmp_path / name)
    for name in ("a.png", "a.tif", "a.gif", "a.bmp", "a.pgm"):
        white.save(tmp_path / name)
        assert images.read_mask(tmp_path / name).all()


@pytest.mark.parametrize("suffix", [*images.SUFFIXES, ".JPG", ".Png"])
def test_pictures_are_written_by_their_suffix(tmp_path, picture, suffix):
    images.write_frame(tmp_path / f"a{suffix}", picture.transpose(2, 0, 1).astype(np.float32))
    assert (
        np.abs(images.read_frame(tmp_path / f"a{suffix}") - picture.transpose(2, 0, 1)).mean() < 9
    )


@pytest.mark.parametrize(
    ("name", "size", "complaint"),
    [
        *((f"a{suffix}", 4, "ends in") for suffix in (".xyz", "", ".exr", ".pbm")),
        *((f"a{suffix}", 70000, "do not fit") for suffix in (".jpg", ".webp")),
    ],
)
def test_a_picture_that_cannot_be_written(tmp_path, name, size, complaint, capfd):
    with pytest.raises(BadFile, match=complaint):
        images.encode_image(tmp_path / name, np.zeros((4, size), np.uint8))
    assert [*tmp_path.iterdir()] == []
    assert capfd.readouterr() == ("", "")


def test_a_cmyk_photo_is_converted_and_it_is_said(tmp_path, picture):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "a.jpg")
    frame, remarks = images.read_photo(tmp_path / "a.jpg")
    shown = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).transpose(2, 0, 1)
    assert np.abs(frame - shown).max() <= 1  # rounding
    assert "CMYK" in remarks[0]


@pytest.mark.parametrize("largest", [100, 255, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_the_largest_value_of_a_pgm_is_white(tmp_path, largest, kind):
    stored = np.linspace(0, largest, 12).round().astype(">u2" if largest > 255 else "u1")
    size = b"4 3" if kind == b"P5" else b"2 2"
    (tmp_path / "a.ppm").write_bytes(kind + b"\n" + size + b" %d\n" % largest + stored.tobytes())
    frame, _ = images.read_photo(tmp_path / "a.ppm")
    wanted = stored.astype(np.float32) * 255 / largest
    wanted = wanted.reshape(3, 4) if kind == b"P5" else wanted.reshape(2, 2, 3)[..., 0]
    np.testing.assert_allclose(frame[0], wanted, atol=1e-4)


def write_refused(folder, picture):
    """Files that are no single picture of known range -> what the error says of them."""
    one = Image.fromarray(picture)
    for name in ("animated.png", "animated.gif", "animated.webp", "pages.tif"):
        one.save(folder / name, save_all=True, append_images=[one.rotate(180)])
    one.convert("LAB").save(folder / "lab.tif")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tif")
    Image.fromarray(np.zeros((4, 4), np.int32)).save(folder / "deep.tif")
    one.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-30])
    (folder / "a.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(100))
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    header = b"\0\0\0\x0dIHDR" + (20000).to_bytes(4) * 2 + b"\x08\2\0\0\0"
    crc = zlib.crc32(header[4:]).to_bytes(4)
    (folder / "large.png").write_bytes(
        images.PNG_SIGNATURE + header + crc + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
    )
    size = b"\x50\xc3" * 2
    (folder / "large.gif").write_bytes(
        b"GIF89a" + size + bytes(3) + b"," + bytes(4) + size + b"\0\2\1\x44\0;"
    )
    (folder / "large.ppm").write_bytes(b"P6 10000 10000 255\n")
    (folder / "none.ppm").write_bytes(b"P6 0 10 255\n")
    one.save(folder / "padded.png")
    with open(folder / "padded.png", "ab") as file:
        file.truncate(2**26)
    return {
        **dict.fromkeys(("animated.png", "animated.gif", "animated.webp"), "several images"),
        **{"pages.tif": "several images", "lab.tif": "LAB", "float.tif": "float32"},
        **{"deep.tif": "int32", "cut.jpg": "Premature end", "padded.png": "at most"},
        **dict.fromkeys(("a.exr", "text.png", "empty.png"), "not a readable image"),
        **{"folder.png": "a folder", "none.png": "no such file", "none.ppm": "expected"},
        **dict.fromkeys(("large.png", "large.gif", "large.ppm"), "at most 67,108,864 pixels"),
    }


def test_what_is_no_single_picture_is_refused(tmp_path, picture):
    for name, complaint in write_refused(tmp_path, picture).items():
        with pytest.raises(BadFile, match=complaint) as error:
            images.read_photo(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))


def test_the_limit_is_of_the_header(tmp_path, picture, monkeypatch):
    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 960)
    assert images.read_photo(tmp_path / "a.png")[0].shape == (3, 24, 40)
    monkeypatch.setattr(images, "MAX_PIXELS", 959)
    with pytest.raises(BadFile, match=r"40x24 px; at most 959 pixels"):
        images.read_photo(tmp_path / "a.png")


def test_room_is_made_for_what_is_there_not_for_what_is_said(tmp_path, picture):
    """OpenCV would make room for a chunk of 4 GB, and take seconds."""
    Image.fromarray(picture).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IDAT") - 4] = 0xFF
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadFile, match=r"a\.png.*Truncated"):
        images.read_mask(tmp_path / "a.png")


def test_bytes_after_the_end_of_a_picture_do_not_matter(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    wanted = images.read_frame(tmp_path / "a.png")
    with open(tmp_path / "a.png", "ab") as file:
        file.write(b"as some cameras add")
    np.testing.assert_array_equal(images.read_frame(tmp_path / "a.png"), wanted)


def test_a_jpeg_of_many_scans_is_refused(tmp_path, picture):
    """Its decoder goes over all pixels for each: minutes, for a file of a few kilobytes."""
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, progressive=True)
    content = path.read_bytes()
    images.read_photo(path)
    scan = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + 100 * scan + content[-2:])
    with pytest.raises(BadFile, match=r"a\.jpg: 1[0-9]+ scans; at most 100"):
        images.read_photo(path)
    path.write_bytes(content + 100 * scan)  # what other programs add after the end
    images.read_photo(path)


def test_a_picture_that_changes_while_it_is_read(tmp_path, picture, monkeypatch):
    path, read_header = tmp_path / "a.png", images.read_header
    Image.fromarray(picture).save(path)

    def read_and_change(path, **options):
        header = read_header(path, **options)
        Image.fromarray(picture[1:]).save(path)
        return header

    monkeypatch.setattr(images, "read_header", read_and_change)
    with pytest.raises(BadFile, match="changed while it was read"):
        images.decode_image(path)


MEASURE = """
import resource, sys
from pathlib import Path
from gma_lib.flow.images import read_photo
read = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
read_photo(Path(sys.argv[2]))
before = read()
read_photo(Path(sys.argv[1]))
print((read() - before) / (2400 * 2400 * 3))
"""


@pytest.mark.parametrize("brightest", [1, 2**16 - 1])
def test_memory_of_16_bits(tmp_path, picture, brightest):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((2400, 2400, 3), brightest, np.uint16))
    Image.fromarray(picture).save(tmp_path / "small.png")
    files = [tmp_path / "a.png", tmp_path / "small.png"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 6


def test_bytes_between_a_jpeg_and_its_end_are_left_out(tmp_path):
    """As some cameras write them; libjpeg warns of them as it does of damage."""
    path, rng = tmp_path / "a.jpg", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    whole = images.read_frame(path)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes(7) + content[-2:])
    np.testing.assert_array_equal(images.read_frame(path), whole)
    path.write_bytes(content[: len(content) // 2] + bytes(90) + content[len(content) // 2 + 90 :])
    with pytest.raises(BadFile, match="Corrupt"):
        images.read_frame(path)


@pytest.mark.parametrize("is_preview", [False, True])
def test_a_tiff_that_begins_with_its_preview_is_refused(is_preview, tmp_path):
    """As cameras' raw files do, whose picture lies in a folder below."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = int(is_preview)
    tags[330] = 8
    Image.new("RGB", (40, 24)).save(tmp_path / "a.tif", tiffinfo=tags)
    with pytest.raises(BadFile, match="preview") if is_preview else nullcontext():
        assert images.read_header(tmp_path / "a.tif").size == (40, 24)


@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.webp"])
def test_a_tag_of_xmp_turns_no_picture(tmp_path, picture, name):
    """Viewers look at Exif."""
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    tags = {"tiffinfo": {700: xmp}} if name == "a.tif" else {"xmp": xmp}
    Image.fromarray(picture).save(tmp_path / name, **tags)
    assert Image.open(tmp_path / name).getexif()[0x112] == 6  # as Pillow understands it
    assert images.read_photo(tmp_path / name)[0].shape[1:] == picture.shape[:2]
    assert images.read_orientation(tmp_path / name) == 1


def write_png(path, pixels, *chunks):
    """Write a PNG whose pixels are stored as they are, and further chunks before or after them."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    content = images.PNG_SIGNATURE
    for kind, data in (
        (b"IHDR", header),
        *[one for one in chunks if one[0] == b"eXIf"],
        (b"IDAT", zlib.compress(rows, 0)),
        *[(b"eXIf", data) for kind, data in chunks if kind == b"late"],
        (b"IEND", b""),
    ):
        content += len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
    path.write_bytes(content)


@pytest.mark.parametrize("chunk", [None, b"eXIf", b"late"])
def test_pixels_are_no_tag_that_turns_a_png(tmp_path, chunk):
    """Of a gigabyte of compressed pixels, four bytes look like the tag's name by chance."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    pixels[5].reshape(-1)[7:11] = np.frombuffer(b"eXIf", np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 6
    write_png(tmp_path / "a.png", pixels, *[(chunk, tags.tobytes()[6:])] * (chunk is not None))
    assert images.read_orientation(tmp_path / "a.png") == (6 if chunk else 1)
    assert images.read_photo(tmp_path / "a.png")[0].shape == ((3, 20, 12) if chunk else (3, 12, 20))
