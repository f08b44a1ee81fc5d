"""Flow fields as files: Middlebury's ``.flo``, KITTI's 16-bit ``.png``, NumPy's ``.npy``.

Every writer writes whole or not at all; every reader checks what it read and names the file in its
error.
"""

import struct
from pathlib import Path

import cv2
import numpy as np

from gma_lib.flow.images import PNG_SIGNATURE, decode_image, encode_image
from gma_lib.runs.files import BadFile, reading, write_atomically

# Middlebury's sanity check, "PIEH" when read as text:
# https://vision.middlebury.edu/flow/code/flow-code/README.txt
FLO_TAG = 202021.25
FLO_HEADER_BYTES = 12
KITTI_FORMAT = "KITTI's flow, a 16-bit PNG of three channels"
FLOW_SUFFIXES = (".flo", ".npy", ".png")
UNKNOWN_FLOW = 1e9  # beyond it, a vector marks a pixel without flow, as Middlebury's format says


def check_whole(path: Path) -> None:
    """Raise BadFile for a truncated or mislabelled PNG or ``.flo`` file, without decoding it."""
    with reading(path, f"a whole {Path(path).suffix} file") as path, open(path, "rb") as file:
        head = file.read(FLO_HEADER_BYTES)
        file.seek(max(0, path.stat().st_size - 12))
        if path.suffix == ".png" and (head[:8] != PNG_SIGNATURE or b"IEND" not in file.read()):
            raise ValueError(f"not a whole PNG file ({path.stat().st_size} bytes); truncated?")
        if path.suffix == ".flo" and head[:4] != b"PIEH":
            raise ValueError(f"not a .flo file: its first bytes are {head[:4]!r}, not b'PIEH'")


def read_flow(path: Path) -> np.ndarray:
    """Read a Middlebury ``.flo`` file as float32 (2, H, W).

    Raises
    ------
    BadFile
        The file is missing, has another tag, or is longer or shorter than its header says.
    """
    with reading(path, "a .flo file") as path, open(path, "rb") as file:
        head = file.read(FLO_HEADER_BYTES)
        if len(head) < FLO_HEADER_BYTES:
            raise ValueError(f"{len(head)} bytes are too few for its header")
        tag, width, height = struct.unpack("<fii", head)
        if tag != FLO_TAG:
            raise ValueError(f"its tag is {tag!r}, not {FLO_TAG}")
        found, wanted = path.stat().st_size, count_flow_bytes(height, width)
        if min(width, height) <= 0 or found != wanted:
            raise ValueError(f"{found} bytes, where {width}x{height} flow has {wanted}; truncated?")
        flow = np.fromfile(file, "<f4").reshape(height, width, 2)
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


def count_flow_bytes(height: int, width: int) -> int:
    """Size of the ``.flo`` file of one field."""
    return FLO_HEADER_BYTES + 8 * height * width


def read_kitti_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read KITTI's 16-bit PNG of 64 * flow + 2**15 as (flow (2, H, W), valid (H, W))."""
    stored = decode_image(path, cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint16 or stored.ndim != 3 or stored.shape[2] != 3:
        raise BadFile(path, f"{stored.dtype} {stored.shape}", KITTI_FORMAT)
    flow = (stored[:, :, 2:0:-1].astype(np.float32) - 2**15) / 64  # OpenCV hands over (valid, v, u)
    return np.ascontiguousarray(flow.transpose(2, 0, 1)), stored[:, :, 0] > 0


def write_kitti_flow(path: Path, flow: np.ndarray, valid: np.ndarray) -> None:
    """Write flow (2, H, W) and its valid mask (H, W) as KITTI's 16-bit PNG, in steps of 1/64 px
    within +-512 px.
    """
    largest = np.abs(flow[:, valid]).max(initial=0)
    if largest >= 512:
        raise ValueError(f"{path}: flow of {largest:.1f} px; KITTI's format holds less than 512 px")
    steps = np.rint(np.where(valid, flow, 0) * 64 + 2**15).astype(np.uint16)
    encode_image(path, np.stack([valid.astype(np.uint16), steps[1], steps[0]], axis=-1))


def read_flow_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``.flo``, ``.npy`` or KITTI's ``.png`` as (flow (2, H, W), known (H, W))."""
    path = Path(path)
    if path.suffix == ".png":
        return read_kitti_flow(path)
    check_flow_suffix(path)
    flow = read_flow(path) if path.suffix == ".flo" else _read_npy(path)
    return flow, find_known(flow)


def find_known(flow: np.ndarray) -> np.ndarray:
    """Mask (H, W) of the pixels with finite flow below 1e9 px."""
    known: np.ndarray = np.isfinite(flow).all(axis=0) & (np.abs(flow).max(axis=0) < UNKNOWN_FLOW)
    return known


def write_flow_file(path: Path, flow: np.ndarray) -> None:
    """Write flow (2, H, W) in the format of the path's suffix: ``.flo``, ``.npy`` (float32) or
    KITTI's 16-bit ``.png``.
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
    """Raise ValueError for a file name whose suffix is no flow format."""
    if Path(path).suffix not in FLOW_SUFFIXES:
        raise ValueError(
            f"{path}: a flow file ends in {', '.join(FLOW_SUFFIXES)} (16-bit PNG, as KITTI's)"
        )


def _read_npy(path: Path) -> np.ndarray:
    with reading(path, "a .npy file with a flow field: floats of shape (2, H, W)") as path:
        flow = np.load(path, allow_pickle=False, mmap_mode="r")
        if flow.ndim != 3 or flow.shape[0] != 2 or not np.issubdtype(flow.dtype, np.floating):
            raise ValueError(f"{flow.dtype} of shape {flow.shape}")
        return np.ascontiguousarray(flow, dtype=np.float32)
