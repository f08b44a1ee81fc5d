"""The bundled weights find known motion through ``load`` and ``gma flow``: shifts, a rotation, a
zoom, and colours in their order.
"""

from pathlib import Path

import numpy as np
import pytest
from command_line import gma

from gma_lib import load
from gma_lib.flow.files import read_flow
from gma_lib.flow.images import write_frame

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 128, 160
# Flow of the coloured pair at every eighth pixel: bundled weights, 6 updates, OpenVINO, float32.
# Save it anew when the weights change.
STORED = Path(__file__).with_name("coloured_flow.npy")
MOTIONS = {  # name -> 2x3 matrix: where a point of frame 1 is in frame 2, from the centre
    "right 6 px": [[1, 0, 6], [0, 1, 0]],
    "up 4.5 px": [[1, 0, 0], [0, 1, -4.5]],
    "left and down": [[1, 0, -7.25], [0, 1, 3]],
    "rotated by 4 degrees": [[0.99756, -0.06976, 0], [0.06976, 0.99756, 0]],
    "zoomed by 1.06": [[1.06, 0, 0], [0, 1.06, 0]],
}


def paint(points, seed=0, channels=3):
    """Colours (3, H, W), 0..255, at any points (2, H, W): a sum of waves, so that motion by parts
    of a pixel is exact.
    """
    rng = np.random.default_rng(seed)
    colours = np.zeros((channels, HEIGHT, WIDTH))
    for _ in range(60):
        angle, length = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(6), np.log(70)))
        phase = (np.cos(angle) * points[0] + np.sin(angle) * points[1]) * 2 * np.pi / length
        colours += rng.normal(0, 12, (channels, 1, 1)) * np.sin(phase + rng.uniform(0, 2 * np.pi))
    return np.clip(colours + 127.5, 0, 255).round().astype(np.float32)


def make_pair(matrix):
    """Two frames and the true flow from the first to the second."""
    matrix = np.array(matrix, float)
    y, x = np.mgrid[:HEIGHT, :WIDTH] - np.array([HEIGHT / 2, WIDTH / 2]).reshape(2, 1, 1)
    points = np.stack([x, y])
    back = np.linalg.inv(matrix[:, :2])
    before = np.einsum("ij,jhw->ihw", back, points - matrix[:, 2].reshape(2, 1, 1))
    flow = np.einsum("ij,jhw->ihw", matrix[:, :2], points) + matrix[:, 2].reshape(2, 1, 1) - points
    return paint(points), paint(before), flow


@pytest.fixture(scope="module")
def flow_of(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield load(num_updates=6)


@pytest.mark.parametrize("name", MOTIONS)
def test_known_motion_is_found_by_load(flow_of, name):
    frame1, frame2, truth = make_pair(MOTIONS[name])
    errors = np.hypot(*(flow_of(frame1, frame2) - truth))[16:-16, 16:-16]
    assert errors.mean() < 0.4
    assert np.hypot(*truth)[16:-16, 16:-16].mean() > 2  # what zero flow would be wrong by


def test_known_motion_is_found_by_gma_flow(flow_of, tmp_path):
    *frames, truth = make_pair(MOTIONS["zoomed by 1.06"])
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    for file, frame in zip(files, frames, strict=True):
        write_frame(file, frame)
    gma("flow", *files, "-o", tmp_path / "a.flo", "--updates", 6)
    flow = read_flow(tmp_path / "a.flo")
    assert np.hypot(*(flow - truth))[16:-16, 16:-16].mean() < 0.4
    np.testing.assert_array_equal(flow, flow_of(*frames))


def test_colours_are_taken_in_their_order(flow_of):
    """Red moves one way and blue another: swapped channels would be seen as other motion."""
    still, moved, _ = make_pair(MOTIONS["right 6 px"])
    frame1 = np.stack([still[0], still[1], still[2] / 4])
    frame2 = np.stack([moved[0], moved[1], still[2] / 4])
    flow = flow_of(frame1, frame2)[:, ::8, ::8]
    swapped = flow_of(frame1[::-1], frame2[::-1])[:, ::8, ::8]
    np.testing.assert_allclose(flow, np.load(STORED), atol=1e-3, rtol=0)
    assert np.abs(swapped - np.load(STORED)).max() > 1e-2
