"""Classical methods find a plain shift; they are what the network is compared with."""

import numpy as np
import pytest

from gma_lib.flow.classical import CLASSICAL, dis, farneback, no_motion


@pytest.fixture
def shifted():
    """Smooth noise, moved by (3, -2) px."""
    import cv2

    rng = np.random.default_rng(0)
    coarse = cv2.GaussianBlur(rng.random((160, 200, 3)).astype(np.float32), (0, 0), 3)
    frame = 255 * (coarse - coarse.min()) / np.ptp(coarse)
    frame = frame.transpose(2, 0, 1)
    return frame, np.roll(frame, (-2, 3), axis=(1, 2))


@pytest.mark.parametrize("method", [dis, farneback])
def test_a_shift_is_found(method, shifted):
    flow = method(*shifted)
    assert flow.dtype == np.float32
    assert flow.shape == (2, 160, 200)
    middle = flow[:, 30:-30, 30:-30].mean(axis=(1, 2))
    np.testing.assert_allclose(middle, (3, -2), atol=0.2)  # px
    backwards = method(*shifted[::-1])[:, 30:-30, 30:-30].mean(axis=(1, 2))
    np.testing.assert_allclose(backwards, (-3, 2), atol=0.2)


@pytest.mark.parametrize("size", [(8, 8), (8, 200), (15, 64), (64, 9), (16, 16)])
@pytest.mark.parametrize("method", CLASSICAL.values())
def test_small_frames_have_finite_flow_of_their_size(method, size, shifted):
    """DIS of OpenCV crashes below 16 px."""
    flow = method(*(frame[:, : size[0], : size[1]] for frame in shifted))
    assert flow.shape == (2, *size)
    assert np.isfinite(flow).all()


def test_no_motion_is_zero(shifted):
    assert not no_motion(*shifted).any()
    assert list(CLASSICAL) == ["DIS (OpenCV, medium)", "Farneback (OpenCV)", "no motion"]
