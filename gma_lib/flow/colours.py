"""Flow as colours: hue is the direction, saturation the speed."""

from collections.abc import Callable

import flow_vis
import numpy as np

from gma_lib.flow.files import UNKNOWN_FLOW, find_known


def choose_radius(*flows: np.ndarray) -> float:
    """Return the speed, in pixels, that gets full colour: the 99.5th percentile of the known speeds
    of all fields (2, H, W), and at least 1.
    """
    speeds = np.concatenate([np.hypot(flow[0], flow[1]).ravel() for flow in flows])
    known = speeds[speeds < UNKNOWN_FLOW]
    return max(1.0, float(np.percentile(known, 99.5))) if known.size else 1.0


def flow_to_rgb(flow: np.ndarray, radius: float, palette: str = "middlebury") -> np.ndarray:
    """Return the colours of a flow field, uint8 (H, W, 3).

    Hue is the direction, saturation the speed up to ``radius``; pixels faster than that have full
    saturation. Pixels of unknown flow are black. Give a prediction and its ground truth the same
    radius to compare their colours.

    Parameters
    ----------
    flow
        Flow (2, H, W) in pixels, x before y.
    radius
        Speed of full saturation, in pixels.
    palette
        ``middlebury``, the usual colour wheel, or ``twilight``, whose directions colour-blind
        readers tell apart better.
    """
    if palette not in PALETTES:
        raise ValueError(f"palette is one of {', '.join(PALETTES)}, not {palette!r}")
    known = find_known(flow)
    u, v = np.where(known, flow, 0) / radius
    beyond = np.maximum(np.hypot(u, v) * (1 + 1e-6), 1)  # rounding does not reach above 1
    u, v = u / beyond, v / beyond
    return np.where(known[..., None], PALETTES[palette](u, v), 0).astype(np.uint8)


def _twilight(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Matplotlib's cyclic twilight over the direction of flow whose speed is at most 1, faded
    towards no motion: components (H, W) to colours (H, W, 3) from 0 to 255.

    No motion is grey, because one of the directions is almost white and another almost black.
    """
    import matplotlib

    speed = np.hypot(u, v)[..., None]
    colours = matplotlib.colormaps["twilight_shifted"](np.arctan2(v, u) / (2 * np.pi) + 0.5)[
        ..., :3
    ]
    shown: np.ndarray = 255 * (0.5 + speed * (colours - 0.5))
    return shown


PALETTES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "middlebury": flow_vis.flow_uv_to_colors,
    "twilight": _twilight,
}
