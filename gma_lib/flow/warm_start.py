"""Warm start: the updates of a pair begin at the flow of the pair before, moved along itself."""

import numpy as np


def carry_forward(flow: np.ndarray) -> np.ndarray:
    """Move a flow field along itself, as a first guess for the next pair.

    Every cell's vector goes to where it points; each cell of the grid then takes the vector that
    landed nearest to it. Vectors that leave the frame are dropped; where all do, the result is
    zero. This is the authors' ``forward_interpolate`` (https://github.com/princeton-vl/RAFT,
    ``core/utils/utils.py``), which searches with scipy's ``griddata``.

    Parameters
    ----------
    flow
        (2, h, w), in cells, x before y.

    Returns
    -------
    np.ndarray
        float32 (2, h, w).
    """
    from scipy.spatial import KDTree

    _, height, width = flow.shape
    y, x = np.mgrid[:height, :width]
    landed = np.stack([x + flow[0], y + flow[1]], axis=-1).reshape(-1, 2).astype(np.float64)
    inside = (landed > 0).all(axis=1) & (landed[:, 0] < width) & (landed[:, 1] < height)
    if not inside.any():
        return np.zeros_like(flow, dtype=np.float32)
    cells = np.stack([x, y], axis=-1).reshape(-1, 2)
    _, nearest = KDTree(landed[inside]).query(cells)
    vectors = flow.reshape(2, -1)[:, inside]
    return np.ascontiguousarray(vectors[:, nearest].reshape(2, height, width), dtype=np.float32)
