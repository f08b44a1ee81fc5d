"""Where a pair may start refining: from the flow of the pair before, carried on along itself."""

import numpy as np

ROWS_AT_ONCE = 512  # bounds memory: that many distances per cell


def carried_on(flow: np.ndarray) -> np.ndarray:
    """Move a flow field along itself, as a first guess for the next pair.

    Every cell's vector goes to where it points; each cell of the grid then takes the vector that
    landed nearest to it. Vectors that leave the frame are dropped; where all do, the result is
    zero. This is the authors' ``forward_interpolate`` (https://github.com/princeton-vl/RAFT,
    ``core/utils/utils.py``), whose scipy ``griddata`` does the same search.

    Parameters
    ----------
    flow
        (2, h, w), in cells, x before y.

    Returns
    -------
    np.ndarray
        float32 (2, h, w).
    """
    _, height, width = flow.shape
    y, x = np.mgrid[:height, :width]
    landed = np.stack([x + flow[0], y + flow[1]], axis=-1).reshape(-1, 2).astype(np.float64)
    inside = (landed > 0).all(axis=1) & (landed[:, 0] < width) & (landed[:, 1] < height)
    if not inside.any():
        return np.zeros_like(flow, dtype=np.float32)
    landed, vectors = landed[inside], flow.reshape(2, -1)[:, inside]
    cells = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
    nearest = np.concatenate(
        [
            _nearest(cells[first : first + ROWS_AT_ONCE], landed)
            for first in range(0, len(cells), ROWS_AT_ONCE)
        ]
    )
    return np.ascontiguousarray(vectors[:, nearest].reshape(2, height, width), dtype=np.float32)


def _nearest(points: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Index of the point in ``among`` (m, 2) nearest to each of ``points`` (n, 2)."""
    distance = (points[:, None, 0] - among[None, :, 0]) ** 2 + (
        points[:, None, 1] - among[None, :, 1]
    ) ** 2
    return distance.argmin(axis=1)
