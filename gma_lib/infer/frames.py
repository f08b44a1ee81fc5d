"""Frames as arrays, tensors or Pillow images, checked and made arrays of one form."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gma_lib.flow.images import turn_upright
from gma_lib.network.sizes import STRIDE

if TYPE_CHECKING:
    import torch


def as_frames(frame: "np.ndarray | torch.Tensor | Image.Image", name: str) -> np.ndarray:
    """Return frames as float32 (N, 3, H, W), RGB, 0..255, checked; errors call them ``name``."""
    if np.ma.is_masked(frame):
        raise ValueError(f"{name} has masked pixels: give it their values, with .filled()")
    array = _to_array(frame, name)
    kind = array.dtype.name  # of either byte order
    if kind == "uint16" or array.dtype.kind not in "uif":
        raise ValueError(f"{name} is {kind}; frames are uint8 or floating point, 0..255")
    fractional = np.issubdtype(array.dtype, np.floating)
    if array.ndim == 2:
        array = np.stack([array] * 3)
    elif array.ndim == 3 and array.shape[2] == 3 and array.shape[0] != 3:
        array = array.transpose(2, 0, 1)
    if array.ndim not in (3, 4) or array.shape[-3] != 3 or not len(array):
        raise ValueError(
            f"{name} has shape {array.shape}; frames are (H, W, 3), (3, H, W), (N, 3, H, W), or "
            "(H, W) when grey"
        )
    if min(array.shape[-2:]) < STRIDE:
        raise ValueError(
            f"{name} has {array.shape[-1]}x{array.shape[-2]} px; "
            f"each side must be at least {STRIDE} px"
        )
    array = np.ascontiguousarray(array, dtype=np.float32)
    _check_range(array, name, fractional=fractional)
    return array if array.ndim == 4 else array[None]


def _to_array(frame: "np.ndarray | torch.Tensor | Image.Image", name: str) -> np.ndarray:
    """The values of an array, a tensor of any kind, or a picture of Pillow of any mode, upright."""
    try:
        if isinstance(frame, Image.Image):
            frame = turn_upright(frame)
            is_plain = frame.mode in ("RGB", "L", "I", "F") or frame.mode.startswith("I;16")
            return np.asarray(frame if is_plain else frame.convert("RGB"))  # not indices
        if isinstance(frame, np.ndarray) or not hasattr(frame, "detach"):
            return np.asarray(frame)
        frame = frame.detach().cpu()
        return np.asarray(frame.float() if frame.is_floating_point() else frame)  # no bfloat16
    except Exception as error:  # sparse tensors and others raise anything
        raise ValueError(f"{name} is no array of numbers: {error}") from error


def _check_range(array: np.ndarray, name: str, *, fractional: bool) -> None:
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255 + 1e-3:
        raise ValueError(f"{name} holds values from {low:g} to {high:g}; frames are 0..255")
    if fractional and 0 < high < 2:  # resizing can take what was 0..1 beyond 1
        raise ValueError(
            f"{name} holds values up to {high:g}; frames are 0..255: multiply by 255 what is 0..1"
        )


def describe_size(frames: np.ndarray) -> str:
    """Width and height of frames (N, 3, H, W), and how many there are, for a message."""
    count = f"{len(frames)} of " if len(frames) > 1 else ""
    return f"{count}{frames.shape[-1]}x{frames.shape[-2]} px"


def match_type(flow: np.ndarray, frame: "np.ndarray | torch.Tensor") -> "np.ndarray | torch.Tensor":
    """Flow as a tensor on the frame's device where the frame is a tensor."""
    if not hasattr(frame, "detach"):
        return flow
    import torch

    return torch.from_numpy(np.ascontiguousarray(flow)).to(frame.device)
