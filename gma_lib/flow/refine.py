"""Sub-pixel precision after the network: variational refinement where the frames can be matched."""

import cv2
import numpy as np

from gma_lib.flow.consistency import check_warpable, follow, sample

REFINEMENTS = ("variational",)
SMALLEST_REFINED = 16  # px a side
# Chosen on rendered held-out scenes (`gma held-out`), numbers 40 to 71, never on Sintel.
_ALPHA, _GAMMA, _DELTA, _EPSILON = 50.0, 20.0, 0.5, 0.03
_WARPS, _FIXED_POINT_ITERATIONS = 3, 5
_SIGMA = 0.8  # px; 8-bit steps and noise would pass for gradients
_LARGEST_CHANGE = 3.0  # px
_LARGEST_RESIDUAL = 5.0  # grey levels, on average over 5x5 px, beyond what half a pixel explains
_OTHER_MOTION = 2.0  # px


def check_refinement(name: str | None) -> None:
    """Raise ValueError for a refinement that does not exist; None is none."""
    if name is not None and name not in REFINEMENTS:
        raise ValueError(f"refine: {name!r} is unknown; expected {' or '.join(REFINEMENTS)}")


def check_refinable(frames: np.ndarray, name: str) -> None:
    """Raise ValueError unless frames (..., H, W), 0..255, are of 8 bits and large enough to refine
    flow.
    """
    height, width = frames.shape[-2:]
    if min(height, width) < SMALLEST_REFINED:
        raise ValueError(
            f"{name} has {width}x{height} px; refinement needs at least "
            f"{SMALLEST_REFINED} px a side"
        )
    check_warpable(height, width)
    _require_whole_levels(frames, name)


def _require_whole_levels(frames: np.ndarray, name: str) -> None:
    if not np.array_equal(frames, np.rint(frames)):
        raise ValueError(
            f"{name} holds fractions of grey levels, as frames of 16 bits do; refinement takes "
            "frames of 8 bits: round to whole numbers, or do not refine"
        )


def refine_flow(frame1: np.ndarray, frame2: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Refine flow that is right to a few pixels, by OpenCV's variational method.

    It minimises differences of image gradients and roughness of the flow (Brox et al., ECCV 2004),
    starting from ``flow``. No pixel moves by more than 3 px. Pixels of ``find_unmatched`` keep
    their flow exactly. Frames without any texture, or of less than 16 px a side, change nothing.

    Parameters
    ----------
    frame1, frame2
        (3, H, W), RGB, whole numbers from 0 to 255.
    flow
        float32 (2, H, W), in pixels.

    Returns
    -------
    np.ndarray
        float32 (2, H, W).

    Raises
    ------
    ValueError
        Flow or frames that are not finite, or frames that hold fractions of grey levels.
    """
    if not all(np.isfinite(array).all() for array in (frame1, frame2, flow)):
        raise ValueError("flow or frames hold values that are not finite")
    # unrounded renders would be refined better than any file of 8 bits
    _require_whole_levels(np.stack([frame1, frame2]), "a frame")
    grey1, grey2 = _smooth_grey(frame1), _smooth_grey(frame2)
    has_texture = min(np.ptp(grey1), np.ptp(grey2)) >= 1  # or only roughness would be minimised
    if not has_texture or min(grey1.shape) < SMALLEST_REFINED:
        return flow.copy()
    method = cv2.VariationalRefinement_create()
    method.setAlpha(_ALPHA)
    method.setGamma(_GAMMA)
    method.setDelta(_DELTA)
    method.setEpsilon(_EPSILON)
    method.setFixedPointIterations(_FIXED_POINT_ITERATIONS)
    refined = np.ascontiguousarray(flow.transpose(1, 2, 0), dtype=np.float32)
    for _ in range(_WARPS):  # each call warps the second frame once
        refined = method.calc(grey1, grey2, refined.copy())
    change = refined.transpose(2, 0, 1) - flow
    change *= np.minimum(1, _LARGEST_CHANGE / np.maximum(np.hypot(*change), 1e-6))
    return np.ascontiguousarray(flow + change * ~find_unmatched(grey1, grey2, flow))


def find_unmatched(grey1: np.ndarray, grey2: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Pixels (H, W) that the second frame does not show, as far as the flow itself can tell.

    Those that leave the frame; those that look different where they arrive, by more than 5 grey
    levels and what half a pixel explains, brightness around them apart; and of pixels that arrive
    at one place with motions that differ by more than 2 px, all but the best matched.

    Parameters
    ----------
    grey1, grey2
        float32 (H, W), 0..255.
    flow
        float32 (2, H, W), in pixels.
    """
    height, width = grey1.shape
    x_to, y_to = follow(flow)
    difference = grey1 - sample(grey2, x_to, y_to)
    residual = cv2.blur(np.abs(difference - cv2.blur(difference, (15, 15))), (5, 5))
    slope = cv2.blur(np.hypot(*np.gradient(grey1)), (5, 5))
    column, row = np.rint(x_to).astype(np.int64), np.rint(y_to).astype(np.int64)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    cell = np.where(outside, height * width, row * width + column).ravel()
    # of all pixels that arrive at a cell, the last one written is the best matched
    order = np.argsort(-residual, axis=None, kind="stable")
    best = np.empty(height * width + 1, np.int64)
    best[cell[order]] = order
    winner = best[cell]
    vectors = flow.reshape(2, -1)
    covered = np.hypot(*(vectors - vectors[:, winner])) > _OTHER_MOTION
    unlike = residual > _LARGEST_RESIDUAL + slope / 2
    doubtful: np.ndarray = unlike | outside | covered.reshape(height, width)
    return doubtful


def _smooth_grey(frame: np.ndarray) -> np.ndarray:
    colours = np.ascontiguousarray(frame.transpose(1, 2, 0), dtype=np.float32)
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), _SIGMA))
