"""Frames, photographs and masks as arrays and as image files.

Every writer writes whole or not at all; every reader checks what it read and names the file in its
error.
"""

import io
import re
import warnings
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from gma_lib.runs.files import BadFile, name_file, read_whole, reading, write_atomically
from gma_lib.runs.for_all_threads import WhileAnyInside

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 2**26  # of a picture or a flow field; more is refused before it is decoded
FEW_BITS = 2**12 - 1  # the largest value of 12 bits
OF_FEW_BITS = f"; no value is above {FEW_BITS}: if it holds 12 bits or fewer, scale them to 16"
FORMATS = ("PNG", "JPEG", "TIFF", "PPM", "BMP", "WEBP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")  # of pictures written here
LOSSY = ("JPEG", "MPO", "WEBP", "jpeg", "tiff_jpeg", "webp")  # formats, and compressions of TIFF
GREY = ("1", "L", "LA", "I", "I;16", "I;16B")
# of a JPEG: the end, or the begin of a segment, whose length follows
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
MOST_SCANS = 100  # of a JPEG; encoders write about ten
AS_STORED = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH  # without alpha, upright


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError for an empty size, or one of more than ``MAX_PIXELS`` pixels."""
    if min(height, width) < 1:
        raise ValueError(f"{width}x{height} px, which is no size")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width}x{height} px; at most {MAX_PIXELS:,} pixels are read")


def read_header(path: Path) -> ImageFile.ImageFile:
    """Read an image's header: ``size``, ``mode`` and ``format`` of the returned, closed image.

    Raises
    ------
    BadFile
        The file is missing, not PNG, JPEG, TIFF, PPM, BMP, WebP or GIF, holds several images,
        begins with a preview, or has more than ``MAX_PIXELS`` (67 million).
    """
    with reading(path, "a picture", "Save it as PNG") as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about tags that no decoder here reads
        try:
            header = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            found = f"not a readable image ({path.stat().st_size} bytes)"
            raise BadFile(path, found, ", ".join(FORMATS), "Save it as PNG") from None
        except Image.DecompressionBombError:  # beyond Pillow's own limit, 178 million
            raise ValueError(f"at most {MAX_PIXELS:,} pixels are read") from None
        with header:
            check_pixels(header.height, header.width)
            _require_one_picture(path, header)
    return header


def _require_one_picture(path: Path, header: ImageFile.ImageFile) -> None:
    # a JPEG of several (MPO) is one photograph and its smaller or stereo versions
    if header.format != "MPO" and getattr(header, "is_animated", False):
        several = "Give one file per picture, or a folder of them to `gma video`"
        raise BadFile(path, "holds several images", "one", several)
    tags = header.tag_v2 if isinstance(header, TiffImageFile) else {}
    if tags.get(254, 0) & 1 and 330 in tags:  # as of a camera's raw file
        raise BadFile(path, "begins with a preview", "the picture itself", "Save it as PNG")


def decode_image(path: Path) -> tuple[np.ndarray, ImageFile.ImageFile]:
    """Decode an image at its stored bit depth, rotated by its orientation tag, without alpha.

    Returns
    -------
    image
        (H, W), or (H, W, 3) in BGR order; uint8, uint16, or another type that the file stores.
    header
        Header of the bytes that were decoded.

    Raises
    ------
    BadFile
        As ``read_header``; also for damaged files and forms that are not read.
    """
    first = read_header(path)
    with reading(path, "a picture", "Save it again, as PNG") as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = _read_content(path, first)
        header = Image.open(io.BytesIO(content), formats=FORMATS)
        _require_one_picture(path, header)
        if (header.format, header.mode, header.size) != (first.format, first.mode, first.size):
            raise ValueError("it changed while it was read")
        _check_content(header, content)
        decode = _decode_with_pillow if _is_for_pillow(header) else _decode_with_opencv
        image = decode(content)
        if image is None or image.shape[0] * image.shape[1] != header.height * header.width:
            raise ValueError("damaged, or in a form that is not read")
    return image, header


def _read_content(path: Path, header: ImageFile.ImageFile) -> bytes:
    return read_whole(path, largest=2**25 + 16 * header.height * header.width)


def _check_content(header: ImageFile.ImageFile, content: bytes) -> None:
    """Raise an error for what decoders take without a word, or without a limit."""
    if header.format == "PNG":  # OpenCV makes room for what a chunk says to hold, up to 4 GB
        Image.open(io.BytesIO(content), formats=["PNG"]).verify()
    elif header.format in ("JPEG", "MPO"):
        if (scans := _count_scans(content)) > MOST_SCANS:
            raise ValueError(f"{scans} scans; at most {MOST_SCANS} are read")
        try:
            simplejpeg.decode_jpeg(content, "GRAY")
        except ValueError as error:  # a form that it does not read may be one that OpenCV reads
            few = re.search(r"data: (\d{1,2}) extraneous bytes before marker 0xd9", str(error))
            # some cameras write a few before the end; damage leaves many
            if re.search("Corrupt|Premature", str(error)) and not (few and int(few[1]) <= 16):
                raise
    elif isinstance(header, TiffImageFile) and not _is_for_pillow(header):
        tags = header.tag_v2
        for found, applies in (
            ("inverted or indexed values", tags.get(262) not in (1, 2)),
            ("separate planes", tags.get(277, 1) > 1 and tags.get(284, 1) != 1),
            ("colours multiplied by alpha", 1 in tags.get(338, ())),
        ):
            if applies:
                raise ValueError(f"{found} of more than 8 bits, a form that is not read")


def _is_for_pillow(header: ImageFile.ImageFile) -> bool:
    """Whether OpenCV would change the values: it multiplies the colours of a TIFF and of a GIF by
    alpha, spreads the 5 bits of a BMP to 0..248, and rounds down what is written as text.
    """
    if not isinstance(header, TiffImageFile):
        is_text = header.format == "PPM" and "plain" in header.tile[0].codec_name
        return header.format in ("BMP", "GIF") or (is_text and header.mode in ("L", "RGB"))
    tags = header.tag_v2
    return bool(max(tags.get(258, (1,))) <= 8 and set(tags.get(339, (1,))) == {1})


def _decode_with_pillow(content: bytes) -> np.ndarray:
    with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        warnings.simplefilter("ignore")
        _forget_xmp(image)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])


def turn_upright(image: Image.Image) -> Image.Image:
    """Return an upright copy of an opened Pillow image, as ``read_photo`` returns files.

    An image made from an opened one is returned as it is: it keeps the orientation tag, so nobody
    can tell whether it was already rotated.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return image
    image = image.copy()
    _forget_xmp(image)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _forget_xmp(image: Image.Image) -> None:
    """Leave the orientation to Exif, by which OpenCV turns pictures; Pillow looks here, too."""
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)


def _decode_with_opencv(content: bytes) -> np.ndarray | None:
    if content[-1:].isdigit():  # as of a PGM in text: it is read only if something follows
        content += b"\n"
    with silence_opencv:
        image: np.ndarray | None = cv2.imdecode(np.frombuffer(content, np.uint8), AS_STORED)
    return image


def _silence() -> int:
    """Keep OpenCV from printing what goes wrong, which the caller reports; return the level."""
    level: int = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return level


silence_opencv = WhileAnyInside(_silence, cv2.utils.logging.setLogLevel)


def _count_scans(content: bytes) -> int:
    """Count the scans of a JPEG, for each of which its decoder goes over all pixels."""
    scans, at = 0, 2
    while (found := JPEG_MARKER.search(content, at)) and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        at = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2]))
    return scans


def check_picture_suffix(path: Path) -> None:
    """Raise BadFile unless a file name ends in ``.png``, ``.jpg``, ``.jpeg``, ``.tif``, ``.tiff``,
    ``.webp`` or ``.bmp``.
    """
    if (suffix := Path(path).suffix).lower() not in SUFFIXES:
        found = f"ends in {suffix or 'no suffix'}"
        raise BadFile(path, found, ", ".join(SUFFIXES), "Name another file")


def encode_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W), or (H, W, 3) in BGR order, in the format of the path's suffix.

    Raises BadFile for an unknown suffix, or an image that does not fit into the format.
    """
    check_picture_suffix(path)
    content: np.ndarray | None = None
    with silence_opencv, suppress(cv2.error):
        content = cv2.imencode(Path(path).suffix, image)[1]
    if content is None or not len(content):
        found = f"{image.shape[1]}x{image.shape[0]} px do not fit into this format"
        raise BadFile(path, found, "a smaller picture", "Name a .png file")
    with write_atomically(path) as partial:
        partial.write_bytes(content.tobytes())


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image in pixels, from its header.

    The orientation tag is not applied (TIFF excepted): ``read_photo`` may return them swapped.
    """
    header = read_header(path)
    return header.height, header.width


def read_orientation(path: Path) -> int:
    """Return an image's Exif orientation, 1 to 8: 1 if it is upright or has no tag."""
    header = read_header(path)
    with reading(path, "a picture", "Save it as PNG") as path:
        if header.format != "PNG":
            with Image.open(path, formats=FORMATS) as image:
                _forget_xmp(image)
                return int(image.getexif().get(0x0112, 1))
        exif = Image.Exif()
        exif.load(_find_exif(_read_content(path, header)))
        return int(exif.get(0x0112, 1))


def _find_exif(content: bytes) -> bytes:
    """The Exif data of a PNG, which may follow the pixels; empty if it has none."""
    at = len(PNG_SIGNATURE)
    while kind := content[at + 4 : at + 8]:
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if kind == b"eXIf":
            return content[at + 8 : end]
        at = end + 4  # behind the checksum
    return b""


def read_frame(path: Path) -> np.ndarray:
    """Read an image file as float32 (3, H, W), RGB, 0..255; see ``read_photo`` for errors."""
    return read_photo(path)[0].astype(np.float32)


def read_photo(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read an image file (PNG, JPEG, TIFF, PPM, BMP, WebP, GIF; 8 or 16 bits) as a frame.

    Images of more than ``MAX_PIXELS`` (67 million) are refused before they are decoded.

    Returns
    -------
    frame
        (3, H, W), RGB, 0..255, rotated by the orientation tag. 8 bits: uint8. 16 bits, or PPM with
        another maximum than 255: scaled, float32; rounded to uint8 if all values are below 2.
    remarks
        A sentence each for grey (its channel is repeated), alpha (ignored), 16 bits (scaled; and
        whether values look like those of 12 bits) and CMYK (converted without its profile).

    Raises
    ------
    BadFile
        As ``decode_image``; also for LAB colours and values of other types, such as floats, whose
        range is unknown.
    """
    stored, header = decode_image(path)
    if stored.dtype not in (np.uint8, np.uint16) or header.mode == "LAB":
        found = "LAB colours" if header.mode == "LAB" else stored.dtype
        raise BadFile(path, f"stores {found}", "RGB or grey of 8 or 16 bits", "Save it as PNG")
    largest = np.iinfo(stored.dtype).max
    # of text, 8 bits were scaled when they were decoded
    is_pnm = header.format == "PPM" and header.mode != "1"
    is_scaled = is_pnm and "plain" in header.tile[0].codec_name and largest == 255
    if is_pnm and not is_scaled and isinstance(header.tile[0].args, tuple):
        largest = header.tile[0].args[-1]  # as its header declares
        if (found := stored.max()) > largest:
            raise BadFile(path, f"stores {found}", f"at most {largest}, as its header says")
    is_dark = largest != 255 and int(stored.max()) * 255 < 2 * largest
    how = "and, almost black, rounded" if is_dark else "without rounding"
    how += OF_FEW_BITS if has_few_bits(stored) and largest == np.iinfo(np.uint16).max else ""
    remarks = [
        f"{name_file(path)} {remark}"
        for remark, applies in (
            ("is grey: its channel is used three times", header.mode in GREY),
            ("has an alpha channel, which is ignored", header.has_transparency_data),
            (f"has 16 bits, scaled to 0..255 {how}", stored.dtype == np.uint16),
            ("is CMYK, converted without its colour profile", header.mode == "CMYK"),
        )
        if applies
    ]
    if largest == 255:
        planes = np.moveaxis(np.atleast_3d(stored), 2, 0)[::-1]  # OpenCV puts blue first
        return np.ascontiguousarray(np.broadcast_to(planes, (3, *stored.shape[:2]))), remarks
    frame = np.empty((3, *stored.shape[:2]), np.float32)
    # What is stored moves to the end of the frame's own memory, which it leaves channel by channel.
    planes = frame.reshape(-1).view(stored.dtype)[-stored.size :].reshape(-1, *stored.shape[:2])
    for number, plane in enumerate(planes[::-1]):
        cv2.extractChannel(stored, number, plane)
    del stored
    for channel, plane in zip(frame, np.broadcast_to(planes, frame.shape), strict=True):
        channel[:] = plane
        channel /= np.float32(largest / 255)
    if is_dark:  # as whole numbers, nobody takes it for 0..1
        frame = np.rint(frame, out=frame).astype(np.uint8)
    return frame, remarks


def has_few_bits(stored: np.ndarray) -> bool:
    """Whether a decoded image of 16 bits holds values of 12 bits or fewer, and so is very dark."""
    return stored.dtype == np.uint16 and int(stored.max()) <= FEW_BITS


def write_frame(path: Path, frame: np.ndarray) -> None:
    """Write a frame (3, H, W), RGB, in 8 bits, in the format of the path's suffix.

    Values are those of ``to_picture``. Raises BadFile as ``encode_image`` does.
    """
    encode_image(path, to_picture(frame)[:, :, ::-1])


def to_picture(frame: np.ndarray) -> np.ndarray:
    """Return a frame (3, H, W) as a picture, uint8 (H, W, 3): clipped to 0..255 and rounded."""
    pixels = np.clip(frame, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def read_mask(path: Path) -> np.ndarray:
    """Read a mask of any bit depth as bool (H, W): True where any channel is above zero.

    Raises BadFile as ``decode_values`` does, for example for JPEG, and for a picture that is no
    mask: one of two colours without black, or of more.
    """
    stored = np.atleast_3d(decode_values(path))
    mask = np.asarray((stored > 0).any(axis=2))
    if (stored[mask] != stored[mask][:1]).any():
        expected = "a mask: black and one other colour"
        raise BadFile(path, "several colours besides black", expected, "Name another file")
    return mask


def decode_values(path: Path) -> np.ndarray:
    """Decode an image that stores flow or a mask: the array that ``decode_image`` returns.

    Raises
    ------
    BadFile
        As ``decode_image``; also for values that are not unsigned integers, lossy compression,
        pixels that are not opaque, or an orientation tag: rotation would not turn the vectors.
    """
    stored, header = decode_image(path)
    wanted = "values stored without loss, opaque and upright"
    with reading(path, wanted, "Save it as PNG, grey or RGB") as path:
        if header.format in LOSSY or header.info.get("compression") in LOSSY:
            raise ValueError("its compression changes values")
        if stored.dtype.kind != "u":
            raise ValueError(f"stores {stored.dtype}")
        has_alpha = header.has_transparency_data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _forget_xmp(header)
            if header.getexif().get(0x0112, 1) != 1:  # may follow the pixels
                raise ValueError("an orientation tag turns it")
            if has_alpha and np.asarray(header.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError("its pixels are not all opaque")
    return stored


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a bool mask (H, W), True as 255, in the path's format; use ``.png``, not ``.jpg``."""
    encode_image(path, mask.astype(np.uint8) * 255)
