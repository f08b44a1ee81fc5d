"""Errors of a flow field against the ground truth, and sums that add up over pairs.

Sums are float64 and counts are integers, so pooling over a data set neither drifts nor keeps its
pixels in memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gma_lib.runs.records import Record

THRESHOLDS = (1, 3, 5)
# Weights of the thresholds 0.05, 0.10, ..., 5 px of WAUC, as in the Spring benchmark's evaluation.
_WAUC_STEPS = np.arange(1, 101)
ERROR_STEPS = _WAUC_STEPS / 20
_WAUC_WEIGHTS = 1 - (_WAUC_STEPS - 1) / 100
_FROM_ZERO = np.concatenate([[0.0], ERROR_STEPS])

# Groups of pixels that are scored, as pages name them
GROUP_LABELS = {
    "all": "all pixels",
    "valid": "valid pixels",
    "non_occluded": "not occluded",
    "occluded": "occluded",
    "in_frame_occluded": "occluded, stays in frame",
    "out_of_frame": "leaves the frame",
    "s0_10": "speed below 10 px",
    "s10_40": "speed 10 to 40 px",
    "s40_plus": "speed from 40 px",
}


def endpoint_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the length of ``flow - truth`` in each pixel, float64 (H, W), in pixels.

    Pixels of unknown truth (1e9 px and above) are not left out: select with ``find_known``.

    Parameters
    ----------
    flow, truth
        (2, H, W), in pixels.

    Raises
    ------
    ValueError
        For another shape, shapes that differ, or values that are not finite, which would count as
        misses.
    """
    if flow.shape != truth.shape or flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow and truth have shape (2, H, W); got {flow.shape} and {truth.shape}")
    for name, values in (("flow", flow), ("truth", truth)):
        if count := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(f"the {name} holds {count} values that are not finite")
    difference = flow.astype(np.float64) - truth
    length: np.ndarray = np.hypot(difference[0], difference[1])
    return length


def leaves_frame(truth: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) of the pixels that leave the frame by their true flow (2, H, W).

    ``x + u < 0``, ``x + u > W``, and the same for y, with pixel coordinates from 0, as in
    ``separate_inout_sintel_occ`` (https://github.com/zacjiang/GMA, ``evaluate.py``).
    """
    _, height, width = truth.shape
    y, x = np.mgrid[:height, :width]
    x_to, y_to = x + truth[0], y + truth[1]
    outside: np.ndarray = (x_to < 0) | (x_to > width) | (y_to < 0) | (y_to > height)
    return outside


def group_pixels(
    truth: np.ndarray, occluded: np.ndarray | None = None, invalid: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return a mask (bool, (H, W)) for each group of pixels that is scored.

    ``all``: every pixel, as the guide pools. ``valid``: without those in ``invalid``. With
    ``occluded`` only: ``occluded``, ``non_occluded``, ``in_frame_occluded`` (occluded, stays in the
    frame) and ``out_of_frame`` (see ``leaves_frame``). By true speed: ``s0_10`` below 10 px,
    ``s10_40`` from 10 to below 40 px, ``s40_plus`` from 40 px.

    Parameters
    ----------
    truth
        (2, H, W), in pixels.
    occluded, invalid
        bool (H, W); Sintel's masks. Without ``invalid``, every pixel is valid.

    Raises
    ------
    ValueError
        A mask is of another size than the truth.
    """
    for name, mask in (("occluded", occluded), ("invalid", invalid)):
        if mask is not None and mask.shape != truth.shape[1:]:
            raise ValueError(f"the mask {name} has shape {mask.shape}, the truth {truth.shape}")
    speed = np.hypot(truth[0], truth[1])
    everything = np.ones(truth.shape[1:], bool)
    groups = {"all": everything, "valid": everything if invalid is None else ~invalid}
    if occluded is not None:
        outside = leaves_frame(truth)
        groups |= {
            "occluded": occluded,
            "non_occluded": ~occluded,
            "in_frame_occluded": occluded & ~outside,
            "out_of_frame": outside,
        }
    return groups | {
        "s0_10": speed < 10,
        "s10_40": (speed >= 10) & (speed < 40),
        "s40_plus": speed >= 40,
    }


@dataclass(frozen=True)
class ErrorSums:
    """Sums over pixels, from which ``to_metrics`` computes all metrics; add two with ``+``.

    Attributes
    ----------
    pixels
        Number of pixels.
    error
        Sum of endpoint errors, in pixels.
    below
        Number of pixels with an error below 1, 3 and 5 px.
    outliers
        Number of pixels with an error above both 3 px and 5 % of the true speed (KITTI's Fl).
    at_most
        Number of pixels with an error of at most 0.05, 0.10, ..., 5 px (100 values).
    """

    pixels: int = 0
    error: float = 0.0
    below: tuple[int, ...] = (0,) * len(THRESHOLDS)
    outliers: int = 0
    at_most: tuple[int, ...] = (0,) * len(_WAUC_STEPS)

    def __add__(self, other: "ErrorSums") -> "ErrorSums":
        return ErrorSums(
            self.pixels + other.pixels,
            self.error + other.error,
            tuple(a + b for a, b in zip(self.below, other.below, strict=True)),
            self.outliers + other.outliers,
            tuple(a + b for a, b in zip(self.at_most, other.at_most, strict=True)),
        )

    def shares_within(self) -> list[float]:
        """Return the shares of pixels with an error of at most 0.05, ..., 5 px; [] for none."""
        return [count / self.pixels for count in self.at_most] if self.pixels else []

    def interpolate_median(self) -> float | None:
        """Return the median error in pixels, interpolated between steps of 0.05 px; None above 5 px
        and without pixels.
        """
        within = self.shares_within()
        if not within or within[-1] < 0.5:
            return None
        return float(np.interp(0.5, [0.0, *within], _FROM_ZERO))

    def to_metrics(self) -> Record:
        """Return ``pixels`` (count), ``epe`` and ``median`` (pixels), ``px1``, ``px3``, ``px5`` and
        ``fl`` (shares from 0 to 1) and ``wauc`` (0 to 100, as in Spring); without pixels, all but
        the count None. The median is None above 5 px, too.
        """
        if not self.pixels:
            names = ("epe", "median", *(f"px{threshold}" for threshold in THRESHOLDS), "fl", "wauc")
            return {"pixels": 0} | dict.fromkeys(names)
        shares = {
            f"px{threshold}": count / self.pixels
            for threshold, count in zip(THRESHOLDS, self.below, strict=True)
        }
        wauc = (
            100
            * float(np.dot(_WAUC_WEIGHTS, self.at_most))
            / (self.pixels * float(_WAUC_WEIGHTS.sum()))
        )
        return {
            "pixels": self.pixels,
            "epe": self.error / self.pixels,
            "median": self.interpolate_median(),
            **shares,
            "fl": self.outliers / self.pixels,
            "wauc": wauc,
        }


def sum_errors(
    flow: np.ndarray,
    truth: np.ndarray,
    *,
    occluded: np.ndarray | None = None,
    invalid: np.ndarray | None = None,
) -> dict[str, ErrorSums]:
    """Return the sums of one pair for every group of ``group_pixels``.

    All pixels are scored, also those of unknown truth (see ``endpoint_error``).

    Parameters
    ----------
    flow, truth
        (2, H, W), in pixels.
    occluded, invalid
        bool (H, W).

    Raises
    ------
    ValueError
        As ``endpoint_error``.
    """
    error = endpoint_error(flow, truth)
    speed = np.hypot(truth[0], truth[1])
    return sum_groups(error, speed, group_pixels(truth, occluded, invalid))


def sum_groups(
    error: np.ndarray, speed: np.ndarray, groups: Mapping[str, np.ndarray]
) -> dict[str, ErrorSums]:
    """Return the sums of each group, given errors and true speeds in pixels, and a mask per group.

    All arrays have one shape. Thresholds are applied once, for all groups.
    """
    # The share within a threshold counts errors equal to it, so each error belongs to the first
    # step that reaches it.
    steps = np.searchsorted(ERROR_STEPS, error, side="left").astype(np.uint8)
    below = [error < threshold for threshold in THRESHOLDS]
    outliers = (error > 3) & (error > 0.05 * speed)
    sums = {}
    for name, mask in groups.items():
        per_step = np.bincount(steps[mask], minlength=len(_WAUC_STEPS) + 1)[: len(_WAUC_STEPS)]
        sums[name] = ErrorSums(
            pixels=int(np.count_nonzero(mask)),
            error=float(error[mask].sum(dtype=np.float64)),
            below=tuple(int(np.count_nonzero(each & mask)) for each in below),
            outliers=int(np.count_nonzero(outliers & mask)),
            at_most=tuple(np.cumsum(per_step).tolist()),
        )
    return sums


def pool_scores(scores: Iterable[Mapping[str, ErrorSums]]) -> dict[str, ErrorSums]:
    """Add up the sums of several pairs, group by group, in the given order."""
    pooled: dict[str, ErrorSums] = {}
    for groups in scores:
        for name, sums in groups.items():
            pooled[name] = pooled.get(name, ErrorSums()) + sums
    return pooled


@dataclass(frozen=True)
class Deviation:
    """Distance between two flow fields over all pixels, in pixels.

    Attributes
    ----------
    mean, p99, max
        Mean, 99th percentile and maximum.
    """

    mean: float
    p99: float
    max: float

    @property
    def is_rounding(self) -> bool:
        """Whether float32 rounding explains it: mean below 0.001 px, 99th percentile below 0.005
        px, maximum below 0.5 px.

        Refinement amplifies rounding where little can be matched. Between batch sizes, trained
        weights on real frames differed by 0.0001 px on average (99 % within 0.0007 px, maximum
        0.007 px). Reduced precision differs by more (bfloat16: 0.006 to 0.1 px on average).
        """
        return self.mean < 1e-3 and self.p99 < 5e-3 and self.max < 0.5

    @classmethod
    def between(cls, flow: np.ndarray, reference: np.ndarray) -> "Deviation":
        """Compare two flow fields (..., 2, H, W), in pixels.

        Raises ValueError for shapes that differ, or values that are not finite.
        """
        if flow.shape != reference.shape:
            raise ValueError(f"flow fields differ in shape: {flow.shape} and {reference.shape}")
        if not (np.isfinite(flow).all() and np.isfinite(reference).all()):
            raise ValueError("a flow field holds values that are not finite")
        distance = np.linalg.norm(flow.astype(np.float64) - reference, axis=-3)
        return cls(
            float(distance.mean()), float(np.percentile(distance, 99)), float(distance.max())
        )
