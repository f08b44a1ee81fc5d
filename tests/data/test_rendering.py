"""Rendered flow is exact, and the masks agree with it."""

import dataclasses

import numpy as np
import pytest

from gma_lib.data.rendering import PATTERNS, Layer, Motion, Renderer, Scene, Shape, Texture
from gma_lib.flow.metrics import leaves_frame

HEIGHT, WIDTH = 128, 160
COLOURS = {"dark": (30.0, 40.0, 60.0), "light": (220.0, 200.0, 160.0)}

MOTIONS = {
    "still": Motion(start=(80, 64)),
    "shift": Motion(start=(80, 64), step=(7.3, -4.6)),
    "turn": Motion(start=(80, 64), turn=0.08),
    "zoom": Motion(start=(80, 64), zoom=-0.06),
    "everything": Motion(start=(70, 60), step=(11.5, 5.25), turn=-0.1, zoom=0.07),
    "large": Motion(start=(60, 50), step=(41.5, 20.0)),
}


def two_layers(motion: Motion, *, kind: str = "noise") -> Scene:
    """A blob with a hole that moves over a background that drifts."""
    background = Layer(
        Texture("noise", 1, 24.0, **COLOURS), Motion(start=(80, 64), step=(-1.5, 0.75))
    )
    blob = Layer(
        Texture(kind, 2, 20.0, **COLOURS),
        motion,
        Shape(radius=34, lobes=3, depth=0.2, stretch=1.2, hole=0.3),
    )
    return Scene(HEIGHT, WIDTH, (background, blob))


def sampled(frame: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear interpolation of (C, H, W) at points inside it, written apart from the library's."""
    left, above = (
        np.minimum(np.floor(x).astype(int), WIDTH - 2),
        np.minimum(np.floor(y).astype(int), HEIGHT - 2),
    )
    x, y = x - left, y - above
    return (
        (1 - y) * ((1 - x) * frame[:, above, left] + x * frame[:, above, left + 1])
        + y * ((1 - x) * frame[:, above + 1, left] + x * frame[:, above + 1, left + 1])
    )  # fmt: skip


def error_after_warping(
    image1: np.ndarray, image2: np.ndarray, flow: np.ndarray, visible: np.ndarray
) -> np.ndarray:
    """Grey levels between frame 1 and frame 2 fetched along the flow, at visible pixels."""
    rows, columns = np.nonzero(visible)
    fetched = sampled(image2, columns + flow[0, visible], rows + flow[1, visible])
    return np.abs(fetched - image1[:, visible]).mean(axis=0)


def visible_in_both(rendering) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = x + rendering.flow[0], y + rendering.flow[1]
    return ~rendering.occluded & (x >= 0) & (x <= WIDTH - 1) & (y >= 0) & (y <= HEIGHT - 1)


@pytest.mark.parametrize("name", MOTIONS)
def test_warping_the_second_frame_gives_the_first(name):
    renderer = Renderer(two_layers(MOTIONS[name]))
    first, second = renderer.render(0), renderer.render(1)
    visible = visible_in_both(first)
    error = error_after_warping(first.clean, second.clean, first.flow, visible)
    # grey levels of 255: what linear interpolation loses on this texture; outlines, where a pixel
    # mixes two layers, are the last per cents
    assert np.median(error) < 2
    assert np.percentile(error, 90) < 6
    wrong = first.flow + np.array([1.0, 0.5], np.float32)[:, None, None]
    assert np.median(
        error_after_warping(first.clean, second.clean, wrong, _inside_by(visible, wrong))
    ) > 3 * np.median(error)


def _inside_by(visible: np.ndarray, flow: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = x + flow[0], y + flow[1]
    return visible & (x >= 0) & (x <= WIDTH - 1) & (y >= 0) & (y <= HEIGHT - 1)


@pytest.mark.parametrize("kind", PATTERNS)
def test_every_pattern_is_sampled_alike_in_both_frames(kind):
    renderer = Renderer(two_layers(MOTIONS["shift"], kind=kind))
    first, second = renderer.render(0), renderer.render(1)
    assert (
        np.median(
            error_after_warping(first.clean, second.clean, first.flow, visible_in_both(first))
        )
        < 2
    )


def test_the_flow_of_a_shift_is_the_shift():
    flow = Renderer(two_layers(MOTIONS["shift"])).render(0).flow
    on_blob = np.abs(flow[0] - 7.3) < 1e-5
    assert 0.1 < on_blob.mean() < 0.4
    np.testing.assert_allclose(flow[1, on_blob], -4.6, atol=1e-5)
    np.testing.assert_allclose(
        flow[:, ~on_blob].T, [[-1.5, 0.75]] * int((~on_blob).sum()), atol=1e-5
    )


@pytest.mark.parametrize("name", ["shift", "everything", "large"])
def test_occlusion_agrees_with_a_forward_backward_check(name):
    motion = MOTIONS[name]
    scene = two_layers(motion)
    forward = Renderer(scene).render(0)
    backwards = tuple(
        dataclasses.replace(layer, motion=_reversed(layer.motion)) for layer in scene.layers
    )
    backward = Renderer(dataclasses.replace(scene, layers=backwards)).render(0)
    outside = leaves_frame(forward.flow)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    to_x = np.clip(np.rint(x + forward.flow[0]), 0, WIDTH - 1).astype(int)
    to_y = np.clip(np.rint(y + forward.flow[1]), 0, HEIGHT - 1).astype(int)
    gap = np.hypot(*(forward.flow + backward.flow[:, to_y, to_x]))
    disagree = (gap > 2) != forward.occluded
    assert forward.occluded.any()
    # rounding to the nearest pixel decides along outlines
    assert disagree[~outside].mean() < 0.02
    assert not (forward.occluded & outside).any()


def _reversed(motion: Motion) -> Motion:
    """The motion that starts where ``motion`` is at time 1 and undoes it; turn and zoom start from
    there too.
    """

    class Reversed(Motion):
        def to_layer(self, x, y, time):
            return motion.to_layer(x, y, 1 - time)

        def to_frame(self, x, y, time):
            return motion.to_frame(x, y, 1 - time)

    return Reversed(motion.start, zoom=0.0)


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS)
def test_to_frame_undoes_to_layer(motion):
    x, y = np.random.default_rng(0).uniform(-100, 300, (2, 50))
    np.testing.assert_allclose(motion.to_frame(*motion.to_layer(x, y, 1.5), 1.5), (x, y), atol=1e-9)
