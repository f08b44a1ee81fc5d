"""Scenes for training: flow and masks that are exact."""

import dataclasses

import numpy as np
import pytest
import torch

from gma_lib.training import scenes
from gma_lib.training.pairs import VALIDATION, render_held_out
from gma_lib.training.scenes import LayeredScene, draw_scene

pytestmark = pytest.mark.slow


def misses(pair, extra=(0.0, 0.0)) -> np.ndarray:
    """Difference in grey levels between frame 1 and frame 2 warped back, where both see a point."""
    height, width = pair.occluded.shape
    y, x = np.mgrid[:height, :width]
    flow = pair.flow.numpy() + np.array(extra, np.float32)[:, None, None]
    x, y = x + flow[0], y + flow[1]
    seen = ~pair.occluded.numpy() & (x >= 0) & (x < width - 1) & (y >= 0) & (y < height - 1)
    x, y, first, second = x[seen], y[seen], pair.image1.numpy(), pair.image2.numpy()
    left, above = x.astype(int), y.astype(int)
    x, y = x - left, y - above
    upper = (1 - x) * second[:, above, left] + x * second[:, above, left + 1]
    lower = (1 - x) * second[:, above + 1, left] + x * second[:, above + 1, left + 1]
    return np.abs((1 - y) * upper + y * lower - first[:, seen]).mean(axis=0)


@pytest.mark.parametrize("family", ["layers", "planes"])
def test_warping_the_second_frame_gives_the_first(shipped, shipped_source, family):
    plain = dataclasses.replace(VALIDATION, photometric=0.0, height=192, width=256)
    pairs = render_held_out(shipped, plain)[family]
    right = np.concatenate([misses(pair) for pair in pairs])
    wrong = np.concatenate([misses(pair, extra=(1.0, 0.5)) for pair in pairs])
    # grey levels of 255: what linear interpolation loses; the last per cents are outlines, where a
    # pixel mixes two layers
    assert np.median(right) < 1
    assert np.percentile(right, 90) < 6
    assert wrong.mean() > 2 * right.mean()


def _scene(seed: int, **changes) -> LayeredScene:
    plain = dataclasses.replace(
        VALIDATION, height=192, width=256, max_displacement=40.0, layers=(5, 8), photometric=0.0
    )
    phase = dataclasses.replace(plain, **changes)
    return draw_scene(np.random.default_rng(seed), phase, bank_sizes=(6, 64))


def test_a_background_with_relief_moves_gradually_and_exactly(shipped_source):
    settings = {"layers": (0, 0), "max_displacement": 12.0}
    deep = [_scene(seed, relief=1.0, **settings) for seed in range(6)]
    for seed, scene in enumerate(deep):
        # waves as long as the frame, not so steep that they could not be undone
        wave = scene.warp[0]
        assert 2 * np.pi / wave[:, 1].max() > 0.4 * 256
        assert (wave[:, 0] * wave[:, 1]).max() < 1 / 3
        assert not torch.equal(wave, _scene(seed, **settings).warp[0])
    pairs = [shipped_source.renderer.render(scene, height=192, width=256) for scene in deep]
    right = np.concatenate([misses(pair) for pair in pairs])
    wrong = np.concatenate([misses(pair, extra=(1.0, 0.5)) for pair in pairs])
    assert np.median(right) < 1
    assert wrong.mean() > 2 * right.mean()
    for pair in pairs:
        assert (
            max(pair.flow.diff(dim=axis).abs().max() for axis in (1, 2)) < 0.5
        )  # pixels of flow, from pixel to pixel


def test_relief_follows_what_is_drawn_without_it():
    with_none, again = _scene(6), _scene(6, relief=0.0)
    for field in dataclasses.fields(LayeredScene):
        a, b = getattr(with_none, field.name), getattr(again, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.mark.parametrize("seed", range(4))
def test_masks_agree_with_a_forward_backward_check(shipped_source, seed):
    scene = _scene(seed)
    scene = dataclasses.replace(
        scene, warp=torch.zeros_like(scene.warp)
    )  # so that turning time round is turning the matrices round
    forward = shipped_source.renderer.render(scene, height=192, width=256)
    backward = shipped_source.renderer.render(
        dataclasses.replace(scene, to_layer=scene.to_layer.flip(0)), height=192, width=256
    )
    y, x = torch.meshgrid(torch.arange(192), torch.arange(256), indexing="ij")
    to_x, to_y = (x + forward.flow[0]).round().long(), (y + forward.flow[1]).round().long()
    inside = (to_x >= 0) & (to_x < 256) & (to_y >= 0) & (to_y < 192)
    gap = (forward.flow + backward.flow[:, to_y.clamp(0, 191), to_x.clamp(0, 255)]).norm(dim=0)
    # Both directions of one layer may differ by its turn and zoom over the half pixel of rounding;
    # another layer moves otherwise.
    disagree = (gap > 1.0) & ~forward.occluded & inside
    assert disagree.float().mean() < 0.03
    assert not (forward.occluded & (gap < 0.01) & inside).float().mean() > 0.01


def test_bent_layers_are_where_the_flow_says(shipped_source):
    scene = _scene(2)
    warp = torch.zeros_like(scene.warp)
    warp[:] = torch.tensor([4.0, 0.07, 1.0])
    scene = dataclasses.replace(scene, warp=warp)
    pixels = torch.tensor([[10.0, 20.0, 1.0], [200.0, 150.0, 1.0], [100.0, 90.0, 1.0]])
    place = scenes._layer_coordinates(scene, pixels, 0)
    for layer in range(len(warp)):
        target = scenes._frame_coordinates(scene, place[layer], torch.full((3,), layer))
        back = scenes._layer_coordinates(scene, torch.cat([target, torch.ones(3, 1)], dim=1), 1)[
            layer
        ]
        # 6 fixed-point steps at a steepness of 0.28 leave 4 px * 0.28**6
        assert (back - place[layer]).norm(dim=-1).max() < 0.01
