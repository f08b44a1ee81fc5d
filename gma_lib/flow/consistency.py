"""Quality without ground truth: flow there and back should meet, and the second frame, warped by
the flow, should look like the first.
"""

import cv2
import numpy as np

LARGEST_SIDE = 2**15 - 2  # px; OpenCV counts sampled pixels in 16 bits


def check_warpable(height: int, width: int) -> None:
    """Raise ValueError for a size that cannot be warped."""
    if max(height, width) > LARGEST_SIDE:
        raise ValueError(f"{width}x{height} px: at most {LARGEST_SIDE:,} px a side can be warped")


def find_occluded(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of the first frame that the second does not show, by the forward-backward check
    (Sundaram, Brox and Keutzer, ECCV 2010).

    Those where the sum of forward and backward flow (2, H, W), in pixels, is longer, squared, than
    a hundredth of their squared lengths and 0.5 px², and those that leave the frame.
    """
    _, height, width = forward.shape
    x_to, y_to = follow(forward)
    back = np.stack([sample(component, x_to, y_to) for component in backward])
    apart = ((forward + back) ** 2).sum(axis=0)
    allowed = 0.01 * ((forward**2).sum(axis=0) + (back**2).sum(axis=0)) + 0.5
    outside = (x_to < 0) | (x_to > width - 1) | (y_to < 0) | (y_to > height - 1)
    occluded: np.ndarray = (apart > allowed) | outside
    return occluded


def warp_to_first(frame2: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The second frame (3, H, W) as the flow (2, H, W) says that the first looks: float32."""
    return np.stack([sample(channel, *follow(flow)) for channel in frame2])


def follow(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where every pixel arrives: x and y, float32 (H, W)."""
    y, x = np.mgrid[: flow.shape[1], : flow.shape[2]].astype(np.float32)
    return x + flow[0], y + flow[1]


def sample(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return values (H, W) between pixels, at x and y; outside, those of the border.

    Raises ValueError for a side of more than 32,766 pixels.
    """
    check_warpable(*values.shape)
    image = np.ascontiguousarray(values, dtype=np.float32)
    sampled = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled)
