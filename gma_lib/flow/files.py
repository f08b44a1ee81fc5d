"""Flow fields as files: Middlebury's ``.flo``, KITTI's 16-bit ``.png``, NumPy's ``.npy``.

Every writer writes whole or not at all; every reader checks what it read and names the file in its
error.
"""

import logging
import math
import struct
from pathlib import Path

import numpy as np

from gma_lib.flow.images import PNG_SIGNATURE, check_pixels, decode_values, encode_image
from gma_lib.runs.files import BadFile, reading, write_atomically

logger = logging.getLogger(__name__)

# Middlebury's sanity check, "PIEH" when read as text:
# https://vision.middlebury.edu/flow/code/flow-code/README.txt
FLO_TAG = 202021.25
FLO_HEADER_BYTES = 12
LARGEST_KITTI = 512  # pixels
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
FLOW_SUFFIXES = (".flo", ".npy", ".png")
UNKNOWN_FLOW = 1e9  # beyond it, a vector marks a pixel without flow, as Middlebury's format says


def check_whole(path: Path) -> None:
    """Raise BadFile for a PNG without signature or end, or a ``.flo`` file without its tag.

    Nothing is decoded: ``read_flow`` detects a truncated ``.flo`` file, this does not. Of other
    files, it only checks that they exist.
    """
    with reading(path, "a whole PNG or .flo file") as path, open(path, "rb") as file:
        head = file.read(FLO_HEADER_BYTES)
        file.seek(max(0, path.stat().st_size - 12))
        if path.suffix.lower() == ".png" and (
            head[:8] != PNG_SIGNATURE or b"IEND" not in file.read()
        ):
            raise ValueError(f"not a whole PNG file ({path.stat().st_size} bytes); truncated?")
        if path.suffix.lower() == ".flo" and head[:4] != b"PIEH":
            raise ValueError(f"not a .flo file: its first bytes are {head[:4]!r}, not b'PIEH'")


def read_flow(path: Path) -> np.ndarray:
    """Read a Middlebury ``.flo`` file as float32 (2, H, W), in pixels.

    Pixels of unknown flow keep their stored values, above 1e9 (see ``find_known``).

    Raises
    ------
    BadFile
        The file is missing, has another tag, is longer or shorter than its header says, or holds
        more than 67 million pixels (``images.MAX_PIXELS``).
    """
    with reading(path, "a .flo file") as path, open(path, "rb") as file:
        head = file.read(FLO_HEADER_BYTES)
        if len(head) < FLO_HEADER_BYTES:
            raise ValueError(f"{len(head)} bytes are too few for its header")
        tag, width, height = struct.unpack("<fii", head)
        if tag != FLO_TAG:
            raise ValueError(f"its tag is {tag!r}, not {FLO_TAG}")
        check_pixels(height, width)
        found, wanted = path.stat().st_size, count_flow_bytes(height, width)
        if found != wanted:
            raise ValueError(f"{found} bytes, where {width}x{height} flow has {wanted}")
        flow = np.fromfile(file, "<f4", count=2 * width * height).reshape(height, width, 2)
    return np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32)


def write_flow(path: Path, flow: np.ndarray) -> None:
    """Write flow (2, H, W), in pixels, as a Middlebury ``.flo`` file in float32.

    Replaces an existing file. Raises ValueError for another shape.
    """
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"{path}: a flow field has shape (2, H, W), not {flow.shape}")
    _, height, width = flow.shape
    with write_atomically(path) as partial, open(partial, "wb") as file:
        np.array([FLO_TAG], "<f4").tofile(file)
        np.array([width, height], "<i4").tofile(file)
        np.ascontiguousarray(flow.transpose(1, 2, 0), dtype="<f4").tofile(file)


def count_flow_bytes(height: int, width: int) -> int:
    """Return the size in bytes of a ``.flo`` file: 12 + 8 * height * width."""
    return FLO_HEADER_BYTES + 8 * height * width


def read_kitti_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read KITTI's 16-bit PNG of 64 * flow + 2**15.

    Returns
    -------
    flow
        float32 (2, H, W), in pixels; meaningless where not valid (-512 px for stored zeros).
    valid
        bool (H, W).

    Raises
    ------
    BadFile
        The file is missing or damaged, no 16-bit PNG of three channels, or its third channel holds
        several values besides zero.
    """
    stored = decode_values(path)
    expected = "KITTI's flow, a 16-bit PNG of three channels, the third one value or zero"
    if stored.dtype != np.uint16 or stored.ndim != 3:
        raise BadFile(path, f"{stored.dtype} of shape {stored.shape}", expected)
    marks = stored[:, :, 0]
    if ((marks > 0) & (marks < marks.max())).any():
        raise BadFile(path, "several values besides zero in the third channel", expected)
    flow = np.empty((2, *stored.shape[:2]), np.float32)
    steps = np.moveaxis(stored[:, :, 2:0:-1], 2, 0)  # OpenCV hands over (valid, v, u)
    np.divide(steps, np.float32(64), out=flow, dtype=np.float32)
    flow -= LARGEST_KITTI
    return flow, marks > 0


def write_kitti_flow(path: Path, flow: np.ndarray, valid: np.ndarray) -> None:
    """Write flow (2, H, W), in pixels, and its valid mask (H, W) as KITTI's 16-bit PNG.

    Values are rounded to 1/64 px and clamped to -512..511.98 px, as in KITTI's development kit; a
    warning counts pixels beyond 512 px. Pixels without finite flow are marked invalid. ``path``
    must end in ``.png``, which is not checked.
    """
    valid = valid & find_known(flow)
    steps = np.rint(np.where(valid, flow, 0) * 64 + 2**15)
    if clamped := int((np.abs(steps - 2**15) > 2**15).any(axis=0).sum()):
        logger.warning("%s: %d pixels move by more than 512 px, stored as 512", path, clamped)
    steps = steps.clip(0, 2**16 - 1).astype(np.uint16)
    encode_image(path, np.stack([valid.astype(np.uint16), steps[1], steps[0]], axis=-1))


def read_flow_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``.flo``, ``.npy`` (floats of shape (2, H, W)) or KITTI's 16-bit ``.png``.

    Returns
    -------
    flow
        float32 (2, H, W), in pixels.
    known
        bool (H, W): pixels whose flow is known. Select them before computing errors.

    Raises
    ------
    BadFile
        Another suffix, or a file that is missing, damaged, or larger than ``read_flow`` reads.
    """
    check_flow_suffix(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".png":
        return read_kitti_flow(path)
    flow = (read_flow if suffix == ".flo" else _read_npy)(path)
    return flow, find_known(flow)


def find_known(flow: np.ndarray) -> np.ndarray:
    """Return a mask (H, W): both components of the flow are finite and below 1e9 px in size."""
    known: np.ndarray = np.logical_and(*(np.abs(channel) < UNKNOWN_FLOW for channel in flow))
    return known


def write_flow_file(path: Path, flow: np.ndarray) -> None:
    """Write flow (2, H, W), in pixels, as ``.flo``, ``.npy`` (float32) or KITTI's 16-bit ``.png``.

    The suffix decides. ``.png`` rounds to 1/64 px and clamps to -512..511.98 px (see
    ``write_kitti_flow``). Raises BadFile for another suffix.
    """
    check_flow_suffix(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".flo":
        write_flow(path, flow)
    elif suffix == ".npy":
        with write_atomically(path) as partial, open(partial, "wb") as file:
            np.save(file, np.ascontiguousarray(flow, dtype="<f4"))
    else:
        write_kitti_flow(path, flow, np.ones(flow.shape[1:], bool))


def check_flow_suffix(path: Path) -> None:
    """Raise BadFile unless a file name ends in ``.flo``, ``.npy`` or ``.png``."""
    if (suffix := Path(path).suffix).lower() not in FLOW_SUFFIXES:
        found, expected = f"ends in {suffix or 'no suffix'}", ", ".join(FLOW_SUFFIXES)
        raise BadFile(path, found, f"{expected} (KITTI's 16-bit PNG)", "Name another file")


def _read_npy(path: Path) -> np.ndarray:
    form = "a .npy file with a flow field: floats of shape (2, H, W)"
    with reading(path, form) as path, open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"version {version} of the format")
        shape, by_column, dtype = NPY_HEADERS[version](file)
        if len(shape) != 3 or shape[0] != 2 or dtype.kind != "f":
            raise ValueError(f"{dtype} of shape {shape}")
        check_pixels(*shape[1:])
        found, wanted = path.stat().st_size - file.tell(), math.prod(shape) * dtype.itemsize
        if found != wanted:
            raise ValueError(f"{found} bytes of values, where its header says {wanted}")
        flow = np.empty(shape, np.float32, order="F" if by_column else "C")
        values = flow.ravel("K")
        for start in range(0, values.size, 2**20):  # doubles take twice the memory of the result
            part = values[start : start + 2**20]
            with np.errstate(over="ignore"):  # becomes infinite, so unknown
                part[:] = np.fromfile(file, dtype, count=part.size)
    return np.ascontiguousarray(flow)
