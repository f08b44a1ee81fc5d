"""Quality without ground truth: flow there and back should meet, and the second frame, warped by
the flow, should look like the first.
"""

import cv2
import numpy as np


def find_occluded(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of the first frame that the second does not show, by the forward-backward check
    (Sundaram, Brox and Keutzer, ECCV 2010).

    Those whose forward and backward flow (2, H, W), in pixels, do not cancel to within a tenth of
    their length and half a pixel, and those that leave the frame.
    """
    _, height, width = forward.shape
    x_to, y_to = _follow(forward)
    back = np.stack([_sample(component, x_to, y_to) for component in backward])
    apart = ((forward + back) ** 2).sum(axis=0)
    allowed = 0.01 * ((forward**2).sum(axis=0) + (back**2).sum(axis=0)) + 0.5
    outside = (x_to < 0) | (x_to > width - 1) | (y_to < 0) | (y_to > height - 1)
    occluded: np.ndarray = (apart > allowed) | outside
    return occluded


def warp_to_first(frame2: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The second frame (3, H, W) as the flow (2, H, W) says that the first looks: float32."""
    return np.stack([_sample(channel, *_follow(flow)) for channel in frame2])


def _follow(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where every pixel arrives: x and y."""
    y, x = np.mgrid[: flow.shape[1], : flow.shape[2]].astype(np.float32)
    return x + flow[0], y + flow[1]


def _sample(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values (H, W) between pixels; outside, those of the border."""
    image = np.ascontiguousarray(values, dtype=np.float32)
    sampled = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled)
