"""Frames, photographs and masks as arrays and as image files.

Every writer writes whole or not at all; every reader checks what it read and names the file in its
error.
"""

from pathlib import Path

import cv2
import numpy as np

from gma_lib.runs.files import BadFile, reading, write_atomically

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode_image(path: Path, flags: int) -> np.ndarray:
    """Decode an image file as OpenCV's ``flags`` say; raise ValueError for what it cannot read."""
    with reading(path, "an image", "Save it again, as PNG") as path:
        content = np.fromfile(path, dtype=np.uint8)
        # libpng fills the missing rows of a truncated file with zeros and only warns; PNG ends with
        # an IEND chunk.
        if content[:8].tobytes() == PNG_SIGNATURE and b"IEND" not in content[-12:].tobytes():
            raise ValueError(f"truncated PNG ({content.size} bytes)")
        image: np.ndarray | None = cv2.imdecode(content, flags) if content.size else None
        if image is None:
            raise ValueError(f"not a readable image ({content.size} bytes)")
    return image


def encode_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W) or (H, W, 3), blue first, in the format of the path's suffix."""
    with write_atomically(path) as partial:
        if not cv2.imwrite(str(partial), image):
            raise OSError(f"{path}: cannot write the image; is the disk full?")


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from a PNG's header without decoding the image."""
    with reading(path, "a PNG file") as path, open(path, "rb") as file:
        header = file.read(24)
        if len(header) < 24 or header[:8] != PNG_SIGNATURE:
            raise ValueError("not a PNG file")
    width, height = np.frombuffer(header[16:24], dtype=">u4").tolist()
    return height, width


def read_frame(path: Path) -> np.ndarray:
    """Read an 8-bit colour image as float32 (3, H, W), RGB, 0..255."""
    image = decode_image(path, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1), dtype=np.float32)


def read_photo(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read any 8-bit or 16-bit image file as a frame.

    Returns
    -------
    frame, remarks
        float32 (3, H, W), RGB, 0..255, turned upright by the file's orientation tag; a sentence per
        conversion: grey images are repeated three times, alpha channels ignored, 16 bits scaled to
        0..255 without rounding.

    Raises
    ------
    FileNotFoundError, ValueError
        For files that are no image, hold several images, or store floating point numbers of unknown
        range.
    """
    stored = decode_image(path, cv2.IMREAD_UNCHANGED)
    if (pages := cv2.imcount(str(path))) > 1:
        remedy = "Give two files with one image each, or a folder of frames to `gma video`"
        raise BadFile(path, f"holds {pages} images", "one", remedy)
    if stored.dtype not in (np.uint8, np.uint16):
        raise BadFile(path, f"stores {stored.dtype}", "8 or 16 bits", "Save it as PNG")
    remarks = []
    if stored.ndim == 2 or stored.shape[2] == 1:
        remarks.append(f"{path} is grey: its channel is used three times")
    elif stored.shape[2] == 4:
        remarks.append(f"{path} has an alpha channel, which is ignored")
    image = decode_image(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH).astype(np.float32)
    if stored.dtype == np.uint16:
        remarks.append(f"{path} has 16 bits, scaled to 0..255 without rounding")
        image /= 257
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)), remarks


def write_frame(path: Path, frame: np.ndarray) -> None:
    """Write a frame (3, H, W), RGB, 0..255 as 8-bit PNG, rounded to the nearest value."""
    pixels = np.rint(np.clip(frame, 0, 255)).astype(np.uint8).transpose(1, 2, 0)
    encode_image(path, np.ascontiguousarray(pixels[:, :, ::-1]))


def read_mask(path: Path) -> np.ndarray:
    """Read an 8-bit mask as bool (H, W); any value above zero is True, as in Sintel's masks."""
    return decode_image(path, cv2.IMREAD_GRAYSCALE) > 0


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a bool (H, W) mask as PNG with True = 255."""
    encode_image(path, mask.astype(np.uint8) * 255)
