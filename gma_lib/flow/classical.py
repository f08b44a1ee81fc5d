"""Optical flow without a network, by OpenCV: what a learned method has to beat."""

from collections.abc import Callable

import cv2
import numpy as np

from gma_lib.flow.images import to_picture

DIS_SMALLEST_SIDE = 16  # px; below it, OpenCV raises or crashes


def dis(frame1: np.ndarray, frame2: np.ndarray) -> np.ndarray:
    """Dense inverse search (Kroeger et al., ECCV 2016) at OpenCV's medium preset: flow float32 (2,
    H, W) of frames (3, H, W), 0..255.
    """
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    _, height, width = frame1.shape
    below, right = max(0, DIS_SMALLEST_SIDE - height), max(0, DIS_SMALLEST_SIDE - width)
    grey1, grey2 = (
        cv2.copyMakeBorder(_grey(frame), 0, below, 0, right, cv2.BORDER_REPLICATE)
        for frame in (frame1, frame2)
    )
    return _channels_first(method.calc(grey1, grey2, None)[:height, :width])


def farneback(frame1: np.ndarray, frame2: np.ndarray) -> np.ndarray:
    """Polynomial expansion (Farneback, SCIA 2003) as OpenCV's example sets it, but two more pyramid
    levels for large motion.
    """
    flow = cv2.calcOpticalFlowFarneback(
        _grey(frame1),
        _grey(frame2),
        None,
        pyr_scale=0.5,
        levels=5,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )
    return _channels_first(flow)


def no_motion(frame1: np.ndarray, frame2: np.ndarray) -> np.ndarray:
    """Zero flow: its error is the mean speed, which says how much there was to find."""
    return np.zeros((2, *frame1.shape[1:]), np.float32)


CLASSICAL: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "DIS (OpenCV, medium)": dis,
    "Farneback (OpenCV)": farneback,
    "no motion": no_motion,
}


def _grey(frame: np.ndarray) -> np.ndarray:
    grey: np.ndarray = cv2.cvtColor(to_picture(frame), cv2.COLOR_RGB2GRAY)
    return grey


def _channels_first(flow: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32)
