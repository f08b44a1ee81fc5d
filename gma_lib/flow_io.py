"""Files and arrays: frames, masks, flow fields and raw tensors.

Every writer writes beside its target and renames, so that a file is either whole or absent. Every reader
checks what it read and names the file in its error.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

# Middlebury's sanity check, "PIEH" when read as text: https://vision.middlebury.edu/flow/code/flow-code/README.txt
FLO_TAG = 202021.25
FLO_HEADER_BYTES = 12


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffix (OpenCV chooses the format by it) and starts with a dot, so no reader of
    this package takes it for a result.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _decode(path: Path, flags: int) -> np.ndarray:
    """Decode an image file; OpenCV answers None for whatever it cannot read, which becomes an error here."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    content = np.fromfile(path, dtype=np.uint8)
    # libpng fills the missing rows of a truncated file with zeros and only warns; PNG ends with an IEND chunk.
    truncated = path.suffix.lower() == ".png" and b"IEND" not in content[-12:].tobytes()
    image = None if truncated or content.size == 0 else cv2.imdecode(content, flags)
    if image is None:
        raise ValueError(f"{path}: not a readable image ({content.size} bytes{', truncated' if truncated else ''})")
    return image


def _encode(path: Path, image: np.ndarray) -> None:
    with written_whole(path) as partial:
        if not cv2.imwrite(str(partial), image):
            raise OSError(f"{path}: the image could not be written; is the disk full?")


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from a PNG's header without decoding the image."""
    with open(path, "rb") as file:
        header = file.read(24)
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path}: not a PNG file")
    width, height = np.frombuffer(header[16:24], dtype=">u4").tolist()
    return height, width


def check_whole(path: Path) -> None:
    """Raise ValueError for a PNG or ``.flo`` file that is cut short or something else, without decoding it."""
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(FLO_HEADER_BYTES)
        file.seek(max(0, path.stat().st_size - 12))
        end = file.read()
    if path.suffix == ".png" and (head[:8] != b"\x89PNG\r\n\x1a\n" or b"IEND" not in end):
        raise ValueError(f"{path}: not a whole PNG file ({path.stat().st_size} bytes); truncated?")
    if path.suffix == ".flo" and np.frombuffer(head[:4].ljust(4), "<f4").item() != FLO_TAG:
        raise ValueError(f"{path}: not a .flo file: its first bytes are {head[:4]!r} where b'PIEH' was expected")


def read_frame(path: Path) -> np.ndarray:
    """Read an 8-bit colour image as float32 (3, H, W), RGB, 0..255."""
    image = _decode(path, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1), dtype=np.float32)


def write_frame(path: Path, frame: np.ndarray) -> None:
    """Write a frame (3, H, W), RGB, 0..255 as 8-bit PNG, rounded to the nearest value."""
    pixels = np.rint(np.clip(frame, 0, 255)).astype(np.uint8).transpose(1, 2, 0)
    _encode(path, np.ascontiguousarray(pixels[:, :, ::-1]))


def read_mask(path: Path) -> np.ndarray:
    """Read an 8-bit mask as bool (H, W); any value above zero is True, as in Sintel's masks."""
    return _decode(path, cv2.IMREAD_GRAYSCALE) > 0


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a bool (H, W) mask as PNG with True = 255."""
    _encode(path, mask.astype(np.uint8) * 255)


def read_flow(path: Path) -> np.ndarray:
    """Read a Middlebury ``.flo`` file as float32 (2, H, W).

    Raises
    ------
    FileNotFoundError, ValueError
        When the file is missing, carries another tag, or is longer or shorter than its header says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such flow file")
    content = path.read_bytes()
    if len(content) < FLO_HEADER_BYTES:
        raise ValueError(f"{path}: {len(content)} bytes are too few for a .flo header ({FLO_HEADER_BYTES} bytes)")
    tag = np.frombuffer(content, "<f4", count=1).item()
    if tag != FLO_TAG:
        raise ValueError(f"{path}: not a .flo file: its tag is {tag!r} where {FLO_TAG} was expected")
    width, height = np.frombuffer(content, "<i4", count=2, offset=4).tolist()
    wanted = FLO_HEADER_BYTES + 8 * width * height
    if width <= 0 or height <= 0 or len(content) != wanted:
        raise ValueError(f"{path}: {len(content)} bytes where a {width}x{height} flow field has {wanted}; truncated?")
    flow = np.frombuffer(content, "<f4", offset=FLO_HEADER_BYTES).reshape(height, width, 2)
    return np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32)


def write_flow(path: Path, flow: np.ndarray) -> None:
    """Write flow (2, H, W) as a Middlebury ``.flo`` file."""
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"{path}: a flow field has shape (2, H, W), not {flow.shape}")
    _, height, width = flow.shape
    with written_whole(path) as partial, open(partial, "wb") as file:
        np.array([FLO_TAG], "<f4").tofile(file)
        np.array([width, height], "<i4").tofile(file)
        np.ascontiguousarray(flow.transpose(1, 2, 0), dtype="<f4").tofile(file)


def flow_file_bytes(height: int, width: int) -> int:
    """Size of the ``.flo`` file of one field."""
    return FLO_HEADER_BYTES + 8 * height * width


def read_kitti_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read KITTI's 16-bit PNG as (flow (2, H, W), valid (H, W)); the format stores ``64 * flow + 2**15``."""
    stored = _decode(path, cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint16 or stored.ndim != 3 or stored.shape[2] != 3:
        raise ValueError(f"{path}: a KITTI flow file is a 16-bit PNG of three channels, not {stored.dtype} {stored.shape}")
    flow = (stored[:, :, 2:0:-1].astype(np.float32) - 2**15) / 64  # OpenCV hands over (valid, v, u)
    return np.ascontiguousarray(flow.transpose(2, 0, 1)), stored[:, :, 0] > 0


def write_kitti_flow(path: Path, flow: np.ndarray, valid: np.ndarray) -> None:
    """Write flow (2, H, W) and its valid mask (H, W) as KITTI's 16-bit PNG, in steps of 1/64 px within +-512 px."""
    if np.abs(flow[:, valid]).max(initial=0) >= 512:
        raise ValueError(f"{path}: KITTI's format holds flow below 512 px; found {np.abs(flow[:, valid]).max():.1f}")
    steps = np.rint(np.where(valid, flow, 0) * 64 + 2**15).astype(np.uint16)
    _encode(path, np.stack([valid.astype(np.uint16), steps[1], steps[0]], axis=-1))


def read_tensor(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a headerless little-endian float32 file of the given shape, as ``ais_bench`` exchanges them."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such tensor file")
    wanted = 4 * int(np.prod(shape))
    if path.stat().st_size != wanted:
        raise ValueError(f"{path}: {path.stat().st_size} bytes where float32 {shape} has {wanted}")
    return np.fromfile(path, dtype="<f4").reshape(shape)


def write_tensor(path: Path, tensor: np.ndarray) -> None:
    """Write an array as headerless little-endian float32."""
    with written_whole(path) as partial:
        np.ascontiguousarray(tensor, dtype="<f4").tofile(partial)
