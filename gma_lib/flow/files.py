"""Files and arrays: frames, masks, flow fields and raw tensors.

Every writer writes beside its target and renames, so that a file is either whole or absent. Every
reader checks what it read and names the file in its error.
"""

from pathlib import Path

import cv2
import numpy as np

from gma_lib.runs.files import write_atomically

# Middlebury's sanity check, "PIEH" when read as text:
# https://vision.middlebury.edu/flow/code/flow-code/README.txt
FLO_TAG = 202021.25
FLO_HEADER_BYTES = 12
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FLOW_SUFFIXES = (".flo", ".npy", ".png")
UNKNOWN_FLOW = 1e9  # beyond it, a vector marks a pixel without flow, as Middlebury's format says


def _decode(path: Path, flags: int) -> np.ndarray:
    """Decode an image file; OpenCV answers None for whatever it cannot read, which becomes an error
    here.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: {'a folder where' if path.is_dir() else 'no such file;'} an image was expected"
        )
    content = np.fromfile(path, dtype=np.uint8)
    # libpng fills the missing rows of a truncated file with zeros and only warns; PNG ends with an
    # IEND chunk.
    truncated = content[:8].tobytes() == PNG_SIGNATURE and b"IEND" not in content[-12:].tobytes()
    try:
        image = None if truncated or content.size == 0 else cv2.imdecode(content, flags)
    except cv2.error as error:  # it decodes at most 2**30 pixels
        raise ValueError(f"{path}: OpenCV refuses to decode this image: {error.err}") from error
    if image is None:
        raise ValueError(
            f"{path}: not a readable image ({content.size} bytes{', truncated' if truncated else ''})"
        )
    return image


def _encode(path: Path, image: np.ndarray) -> None:
    with write_atomically(path) as partial:
        if not cv2.imwrite(str(partial), image):
            raise OSError(f"{path}: the image could not be written; is the disk full?")


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from a PNG's header without decoding the image."""
    with open(path, "rb") as file:
        header = file.read(24)
    if len(header) < 24 or header[:8] != PNG_SIGNATURE:
        raise ValueError(f"{path}: not a PNG file")
    width, height = np.frombuffer(header[16:24], dtype=">u4").tolist()
    return height, width


def check_whole(path: Path) -> None:
    """Raise ValueError for a PNG or ``.flo`` file that is cut short or something else, without
    decoding it.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(FLO_HEADER_BYTES)
        file.seek(max(0, path.stat().st_size - 12))
        end = file.read()
    if path.suffix == ".png" and (head[:8] != PNG_SIGNATURE or b"IEND" not in end):
        raise ValueError(f"{path}: not a whole PNG file ({path.stat().st_size} bytes); truncated?")
    if path.suffix == ".flo" and np.frombuffer(head[:4].ljust(4), "<f4").item() != FLO_TAG:
        raise ValueError(
            f"{path}: not a .flo file: its first bytes are {head[:4]!r} where b'PIEH' was expected"
        )


def read_frame(path: Path) -> np.ndarray:
    """Read an 8-bit colour image as float32 (3, H, W), RGB, 0..255."""
    image = _decode(path, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1), dtype=np.float32)


def read_photo(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read whatever image file somebody has as a frame, and say what was done to make it one.

    Returns
    -------
    frame, remarks
        float32 (3, H, W), RGB, 0..255, turned upright where the file says how; sentences about grey
        images (repeated three times), an alpha channel (ignored) and 16 bits (scaled to 0..255
        without rounding), none for an ordinary image.

    Raises
    ------
    FileNotFoundError, ValueError
        For what is no image, holds several, or stores floating point numbers, whose range nobody
        knows.
    """
    stored = _decode(path, cv2.IMREAD_UNCHANGED)
    if (pages := cv2.imcount(str(path))) > 1:
        raise ValueError(
            f"{path}: holds {pages} images; give two files with one each, or a folder of frames to `gma video`"
        )
    if stored.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path}: stores {stored.dtype} where an image of 8 or 16 bits was expected"
        )
    remarks = []
    if stored.ndim == 2 or stored.shape[2] == 1:
        remarks.append(f"{path} is grey: its channel is used three times")
    elif stored.shape[2] == 4:
        remarks.append(f"{path} has an alpha channel, which is ignored")
    image = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH).astype(np.float32)
    if stored.dtype == np.uint16:
        remarks.append(f"{path} has 16 bits, scaled to 0..255 without rounding")
        image /= 257
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)), remarks


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
        raise ValueError(
            f"{path}: {len(content)} bytes are too few for a .flo header ({FLO_HEADER_BYTES} bytes)"
        )
    tag = np.frombuffer(content, "<f4", count=1).item()
    if tag != FLO_TAG:
        raise ValueError(
            f"{path}: not a .flo file: its tag is {tag!r} where {FLO_TAG} was expected"
        )
    width, height = np.frombuffer(content, "<i4", count=2, offset=4).tolist()
    wanted = FLO_HEADER_BYTES + 8 * width * height
    if width <= 0 or height <= 0 or len(content) != wanted:
        raise ValueError(
            f"{path}: {len(content)} bytes where a {width}x{height} flow field has {wanted}; truncated?"
        )
    flow = np.frombuffer(content, "<f4", offset=FLO_HEADER_BYTES).reshape(height, width, 2)
    return np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32)


def write_flow(path: Path, flow: np.ndarray) -> None:
    """Write flow (2, H, W) as a Middlebury ``.flo`` file."""
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"{path}: a flow field has shape (2, H, W), not {flow.shape}")
    _, height, width = flow.shape
    with write_atomically(path) as partial, open(partial, "wb") as file:
        np.array([FLO_TAG], "<f4").tofile(file)
        np.array([width, height], "<i4").tofile(file)
        np.ascontiguousarray(flow.transpose(1, 2, 0), dtype="<f4").tofile(file)


def flow_file_bytes(height: int, width: int) -> int:
    """Size of the ``.flo`` file of one field."""
    return FLO_HEADER_BYTES + 8 * height * width


def read_kitti_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read KITTI's 16-bit PNG as (flow (2, H, W), valid (H, W)); the format stores ``64 * flow +
    2**15``.
    """
    stored = _decode(path, cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint16 or stored.ndim != 3 or stored.shape[2] != 3:
        raise ValueError(
            f"{path}: a KITTI flow file is a 16-bit PNG of three channels, not {stored.dtype} {stored.shape}"
        )
    flow = (stored[:, :, 2:0:-1].astype(np.float32) - 2**15) / 64  # OpenCV hands over (valid, v, u)
    return np.ascontiguousarray(flow.transpose(2, 0, 1)), stored[:, :, 0] > 0


def write_kitti_flow(path: Path, flow: np.ndarray, valid: np.ndarray) -> None:
    """Write flow (2, H, W) and its valid mask (H, W) as KITTI's 16-bit PNG, in steps of 1/64 px
    within +-512 px.
    """
    if np.abs(flow[:, valid]).max(initial=0) >= 512:
        raise ValueError(
            f"{path}: KITTI's format holds flow below 512 px; found {np.abs(flow[:, valid]).max():.1f}"
        )
    steps = np.rint(np.where(valid, flow, 0) * 64 + 2**15).astype(np.uint16)
    _encode(path, np.stack([valid.astype(np.uint16), steps[1], steps[0]], axis=-1))


def read_flow_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``.flo``, ``.npy`` or KITTI's ``.png`` as (flow (2, H, W), valid (H, W)); pixels without
    finite flow below 1e9 are not valid.
    """
    path = Path(path)
    if path.suffix == ".png":
        return read_kitti_flow(path)
    check_flow_suffix(path)
    flow = read_flow(path) if path.suffix == ".flo" else _read_npy(path)
    return flow, np.isfinite(flow).all(axis=0) & (np.abs(flow).max(axis=0) < UNKNOWN_FLOW)


def write_flow_file(path: Path, flow: np.ndarray) -> None:
    """Write flow (2, H, W) in the format that the path's ending names: ``.flo``, ``.npy`` (float32)
    or KITTI's 16-bit ``.png``.
    """
    path = Path(path)
    check_flow_suffix(path)
    if path.suffix == ".flo":
        write_flow(path, flow)
    elif path.suffix == ".npy":
        with write_atomically(path) as partial:
            np.save(partial, np.ascontiguousarray(flow, dtype="<f4"))
    else:
        write_kitti_flow(path, flow, np.ones(flow.shape[1:], bool))


def check_flow_suffix(path: Path) -> None:
    """Raise ValueError for a file name that says no format of flow."""
    if Path(path).suffix not in FLOW_SUFFIXES:
        raise ValueError(
            f"{path}: a flow file ends in {', '.join(FLOW_SUFFIXES)} (16-bit, as KITTI's)"
        )


def _read_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such flow file")
    try:
        flow = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable .npy file: {str(error).splitlines()[0]}"
        ) from error
    if flow.ndim != 3 or flow.shape[0] != 2 or not np.issubdtype(flow.dtype, np.floating):
        raise ValueError(
            f"{path}: a flow field is floating point of shape (2, H, W), not {flow.dtype} {flow.shape}"
        )
    return np.ascontiguousarray(flow, dtype=np.float32)
