"""Procedural scenes for training: layers with exact flow and exact masks, drawn in PyTorch on the
device that trains.

Layers move as those of ``gma_lib.data.demo`` (the same ``Motion``), but outlines and textures come
from banks drawn once. Every scene is a function of a random generator alone; what is trained on
which scene stands in ``gma_lib.training.trainer``.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gma_lib.data.rendering import Motion
from gma_lib.training.textures import OUTLINE_REACH, TEXTURE_SIDE

EDGE = 0.7  # half width, in pixels, of the ramp that smooths an edge


WARP_STEPS = (
    6  # fixed-point steps that invert a non-rigid warp; each divides the error by three or more
)


@dataclass(frozen=True)
class LayeredScene:
    """Two frames' worth of layers, back to front, as tensors; L layers, the first fills the frame.

    Attributes
    ----------
    to_layer
        (2, L, 3, 3): homogeneous frame coordinates at each of the two times -> the layer's own, in
        pixels.
    warp
        (L, 2, 3): amplitude in pixels, wave vector length and phase of a wave in x and in y by
        which a layer bends until frame 2.
    outline, texture
        (L,) numbers in the banks.
    outline_map, texture_map
        (L, 2, 3): layer coordinates -> the outline's and the texture's -1..1.
    outline_unit
        (L,) pixels per unit of the outline's distances.
    colour, mix
        (L, 3) and (L, 3, 3): a layer shows ``colour + mix @ (texture - 0.5)``, 0..1.
    shade
        (L, 2) slope of brightness across the layer, per pixel.
    haze
        (L,) share of ``haze_colour`` (3,) in what a layer shows.
    shadow
        (dx, dy, softness) in pixels and darkness of the shadows that layers cast on those behind;
        darkness 0 for none.
    """

    to_layer: Tensor
    warp: Tensor
    outline: Tensor
    texture: Tensor
    outline_map: Tensor
    texture_map: Tensor
    outline_unit: Tensor
    colour: Tensor
    mix: Tensor
    shade: Tensor
    haze: Tensor
    haze_colour: Tensor
    shadow: tuple[float, float, float, float]

    def to(self, device: torch.device) -> "LayeredScene":
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return LayeredScene(
            **{
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in values.items()
            }
        )


def draw_scene(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    min_displacement: float,
    max_displacement: float,
    layers: tuple[int, int],
    photometric: float,
    bank_sizes: tuple[int, int],
    relief: float = 0.0,
    projective: bool = False,
) -> LayeredScene:
    """A scene from a generator.

    Parameters
    ----------
    min_displacement, max_displacement, relief
        See ``Phase``.
    bank_sizes
        How many textures and outlines there are to choose from.
    projective
        Layers move as planes in space do, by homographies.
    """
    count = int(rng.integers(layers[0], layers[1] + 1))
    # precision below a pixel is learnt from scenes that hardly move
    subpixel = min_displacement <= 2 and rng.random() < 0.1
    slowest, fastest = (0.1, 1.5) if subpixel else (min_displacement, max_displacement)
    speed = np.exp(rng.uniform(np.log(slowest), np.log(fastest)))
    camera = _camera(rng, speed, height, width)
    nearness = np.sort(rng.uniform(0, 1, count + 1))
    matrices, size = np.empty((2, count + 1, 3, 3)), np.empty(count + 1)
    for layer in range(count + 1):
        motion = camera if layer == 0 else _object_motion(rng, speed, height, width)
        matrices[0, layer], matrices[1, layer] = _matrix(motion, 0), _matrix(motion, 1)
        if layer:  # objects are carried along by the camera, near ones more
            carried = dataclasses.replace(
                camera, step=tuple((0.6 + 0.8 * nearness[layer]) * np.array(camera.step))
            )
            matrices[1, layer] = (
                matrices[1, layer] @ np.linalg.inv(_matrix(carried, 0)) @ _matrix(carried, 1)
            )
        if projective:
            middle = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
            tilt = np.eye(3) + rng.normal(0, 1, (3, 3)) * [
                [0.02, 0.02, 0],
                [0.02, 0.02, 0],
                [2.5e-4, 2.5e-4, 0],
            ] * min(1, speed / 10)
            matrices[1, layer] = matrices[1, layer] @ middle @ tilt @ np.linalg.inv(middle)
        size[layer] = height * np.clip(np.exp(rng.normal(-1.4, 0.6)), 0.07, 0.9)
    colour, mix = _colours(rng, count + 1)
    hazy = photometric * rng.uniform(0, 0.6) * (rng.random() < 0.4)
    shadowed = photometric * rng.uniform(0.2, 0.7) * (rng.random() < 0.5)
    warp = _warps(rng, speed, size, projective)
    if relief and rng.random() < relief:
        warp[0] = _relief(rng, speed, width)
    tensors = {
        "to_layer": matrices,
        "warp": warp,
        "outline_map": _map(rng, 1 / (size * OUTLINE_REACH), stretch=0.35),
        "texture_map": _map(
            rng, rng.uniform(0.6, 1.8, count + 1) * 2 / TEXTURE_SIDE, stretch=0.15, shift=1.0
        ),
        "outline_unit": size,
        "colour": colour,
        "mix": mix,
        "shade": rng.normal(0, 0.25, (count + 1, 2)) / np.maximum(size, height / 4)[:, None],
        "haze": hazy * (1 - nearness),
        "haze_colour": rng.uniform(0.2, 0.9) + rng.normal(0, 0.08, 3),
    }
    return LayeredScene(
        **{name: torch.as_tensor(value, dtype=torch.float32) for name, value in tensors.items()},
        outline=torch.from_numpy(rng.integers(bank_sizes[1], size=count + 1)),
        texture=torch.from_numpy(rng.integers(bank_sizes[0], size=count + 1)),
        shadow=(*(rng.uniform(-0.06, 0.06, 2) * height).tolist(), rng.uniform(1, 12), shadowed),
    )


def _camera(rng: np.random.Generator, speed: float, height: int, width: int) -> Motion:
    moves = rng.random() < 0.85
    angle, length = rng.uniform(0, 2 * np.pi), speed * rng.uniform(0, 1)
    return Motion(
        start=(width / 2 + rng.normal(0, width / 6), height / 2 + rng.normal(0, height / 6)),
        step=(moves * length * np.cos(angle), moves * 0.6 * length * np.sin(angle)),
        turn=moves * rng.normal(0, min(0.05, 0.004 * speed)) * rng.integers(0, 2),
        zoom=moves * rng.normal(0, min(0.06, 0.006 * speed)) * rng.integers(0, 2),
    )


def _object_motion(rng: np.random.Generator, speed: float, height: int, width: int) -> Motion:
    """Most objects move little, a few move far: a power of a Gaussian, after FlyingChairs'
    generator.
    """
    angle, length = rng.uniform(0, 2 * np.pi), speed * min(1.0, rng.standard_normal() ** 2 / 2.5)
    return Motion(
        start=(rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height),
        step=(length * np.cos(angle), 0.7 * length * np.sin(angle)),
        turn=rng.normal(0, min(0.2, 0.02 * speed)) * (rng.random() < 0.6),
        zoom=rng.normal(0, min(0.1, 0.01 * speed)) * (rng.random() < 0.6),
    )


def _matrix(motion: Motion, time: float) -> np.ndarray:
    """The affine map ``motion.to_layer`` as a homogeneous matrix."""
    origin, right, down = (
        np.array(motion.to_layer(x, y, time)) for x, y in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    return np.vstack([np.stack([right - origin, down - origin, origin], axis=1), [0, 0, 1]])


def _map(
    rng: np.random.Generator, scale: np.ndarray, *, stretch: float, shift: float = 0.0
) -> np.ndarray:
    """Maps (L, 2, 3) that scale, turn at random, stretch and shift."""
    angle, wider = (
        rng.uniform(0, 2 * np.pi, scale.shape),
        np.exp(rng.normal(0, stretch, scale.shape)),
    )
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    offset = rng.uniform(-shift, shift, (2, *scale.shape)) if shift else np.zeros((2, *scale.shape))
    rows = [[cosine * wider, -sine * wider, offset[0]], [sine / wider, cosine / wider, offset[1]]]
    return np.array(rows).transpose(2, 0, 1)


def _warps(rng: np.random.Generator, speed: float, size: np.ndarray, rigid: bool) -> np.ndarray:
    """Waves (L, 2, 3) by which some layers bend; their steepness stays below 1/3, so the bend can
    be undone.
    """
    bends = (rng.random(size.shape) < 0.3) & (not rigid)
    wave = 2 * np.pi / (size * rng.uniform(1.0, 3.0, size.shape))
    amplitude = bends * np.minimum(0.3 / wave * rng.random(size.shape), 0.3 * speed)
    return np.stack(
        [[amplitude, wave, rng.uniform(0, 6.3, size.shape)] for _ in range(2)]
    ).transpose(2, 0, 1)


def _relief(rng: np.random.Generator, speed: float, width: int) -> np.ndarray:
    """A wave (2, 3) as long as the frame, for a background of varying depth, whose motion changes
    gradually, as a ground's does.
    """
    wave = 2 * np.pi / (width * rng.uniform(0.4, 2.0, 2))
    amplitude = np.minimum(0.3 / wave, 0.5 * speed) * rng.uniform(0.05, 1, 2)
    return np.stack([amplitude, wave, rng.uniform(0, 6.3, 2)], axis=-1)


def _colours(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours of layers; a third share the palette of the one behind, so that some edges hardly
    show.
    """
    exposure = np.exp(rng.normal(-0.1, 0.25))
    colour, mix = np.empty((count, 3)), np.empty((count, 3, 3))
    for layer in range(count):
        if layer and rng.random() < 0.35:
            colour[layer], mix[layer] = colour[layer - 1] + rng.normal(0, 0.03, 3), mix[layer - 1]
            continue
        grey, contrast = rng.uniform(0.2, 0.75), rng.uniform(0.2, 1.2)
        colour[layer] = exposure * (grey + rng.normal(0, 0.08, 3))
        mix[layer] = exposure * contrast * (np.full((3, 3), 1 / 3) + rng.normal(0, 0.12, (3, 3)))
    return colour, mix


@dataclass(frozen=True)
class TrainingPair:
    """Two frames (3, H, W), 0..255, the flow (2, H, W) between them in pixels, and which pixels (H,
    W) are covered in the second.
    """

    image1: Tensor
    image2: Tensor
    flow: Tensor
    occluded: Tensor


class SceneRenderer:
    """Draws scenes with a bank of textures and one of outlines, on one device."""

    def __init__(self, textures: Tensor, outlines: Tensor, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.textures, self.outlines = textures.to(self.device), outlines.to(self.device)

    def render(self, scene: LayeredScene, *, height: int, width: int) -> TrainingPair:
        """Both frames without any photometric change, flow and occlusion."""
        scene = scene.to(self.device)
        y, x = torch.meshgrid(
            *(torch.arange(n, dtype=torch.float32, device=self.device) for n in (height, width)),
            indexing="ij",
        )
        pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)  # (P, 3)
        frames, tops, places = [], [], []
        for time_ in (0, 1):
            place = _layer_coordinates(scene, pixels, time_)  # (L, P, 2)
            distance = self._distance(scene, place)  # (L, P)
            frames.append(self._composite(scene, place, distance).T.reshape(3, height, width))
            # The last layer that is there is on top.
            numbers = torch.arange(len(distance), device=self.device)[:, None]
            tops.append(torch.where(distance >= 0, numbers, 0).amax(dim=0))  # (P,)
            places.append(place)
        target = _frame_coordinates(scene, _of_top(places[0], tops[0]), tops[0])
        covered = self._covered(scene, target, tops[0], height, width)
        flow = (target - pixels[:, :2]).T.reshape(2, height, width)
        return TrainingPair(255 * frames[0], 255 * frames[1], flow, covered.reshape(height, width))

    def _distance(self, scene: LayeredScene, place: Tensor) -> Tensor:
        """Distance (L, P) in pixels to each layer's outline, positive inside; the background has no
        end.
        """
        grid = _mapped(scene.outline_map, place)[:, None]  # (L, 1, P, 2)
        distance = F.grid_sample(
            self.outlines[scene.outline], grid, padding_mode="border", align_corners=False
        )
        # Beyond the bank's square the border value would go on for ever; it lies outside every
        # outline.
        beyond = (grid.abs().amax(dim=-1) - 1).clamp(min=0)[:, 0] * OUTLINE_REACH
        distance = (distance[:, 0, 0] - beyond) * scene.outline_unit[:, None]
        return torch.cat([torch.full_like(distance[:1], torch.inf), distance[1:]])

    def _composite(self, scene: LayeredScene, place: Tensor, distance: Tensor) -> Tensor:
        """Colours (P, 3), 0..1, of all layers laid over each other with smooth edges and soft
        shadows.
        """
        grid = _mapped(scene.texture_map, place)[:, None]
        texture = F.grid_sample(
            self.textures[scene.texture], grid, padding_mode="reflection", align_corners=False
        )[:, :, 0]
        colour = scene.colour[:, :, None] + scene.mix @ (texture - 0.5)  # (L, 3, P)
        shade = 1 + (place @ scene.shade[:, :, None])[..., 0].clamp(-0.5, 0.5)
        haze = scene.haze[:, None, None]
        colour = (1 - haze) * colour * shade[:, None] + haze * scene.haze_colour[:, None]
        cover = (0.5 + distance / (2 * EDGE)).clamp(0, 1)
        *offset, softness, darkness = scene.shadow
        if darkness:
            cast = self._distance(
                scene, place - torch.tensor(offset, dtype=torch.float32, device=self.device)
            )
            light = 1 - darkness * (0.5 + cast / (2 * softness)).clamp(0, 1)
        canvas = colour[0]
        for layer in range(1, len(colour)):
            below = canvas * light[layer] if darkness else canvas
            canvas = below + cover[layer] * (colour[layer] - below)
        return canvas.clamp(0, 1).T

    def _covered(
        self, scene: LayeredScene, target: Tensor, top: Tensor, height: int, width: int
    ) -> Tensor:
        """Points (P,) whose place in frame 2 lies in the frame and under another layer."""
        homogeneous = torch.cat([target, torch.ones_like(target[:, :1])], dim=-1)
        distance = self._distance(scene, _layer_coordinates(scene, homogeneous, 1))
        in_front = torch.arange(len(distance), device=self.device)[:, None] > top
        last = torch.tensor([width - 1, height - 1], device=self.device)
        return ((distance >= 0) & in_front).any(dim=0) & ((target >= 0) & (target <= last)).all(
            dim=-1
        )


def _mapped(maps: Tensor, place: Tensor) -> Tensor:
    """Apply maps (L, 2, 3) to points (L, P, 2)."""
    return place @ maps[:, :, :2].transpose(1, 2) + maps[:, None, :, 2]


def _of_top(values: Tensor, top: Tensor) -> Tensor:
    """Of values (L, P, 2), those of the layer that is on top: (P, 2)."""
    return values.gather(0, top[None, :, None].expand(1, -1, 2))[0]


def _bend(warp: Tensor, place: Tensor) -> Tensor:
    """Displacement (..., 2) of points (..., 2) by waves (..., 2, 3): x bends along y, y along x."""
    amplitude, wave, phase = warp.unbind(-1)
    return amplitude * torch.sin(wave * place.flip(-1) + phase)


def _layer_coordinates(scene: LayeredScene, pixels: Tensor, time_: int) -> Tensor:
    """Homogeneous points (P, 3) of a frame -> where they are in each layer, (L, P, 2)."""
    mapped = pixels @ scene.to_layer[time_].transpose(1, 2)  # (L, P, 3)
    place = mapped[..., :2] / mapped[..., 2:]
    bent = scene.warp[:, 0, 0] > 0
    if time_ == 1 and bool(bent.any()):
        bent_place = place[bent]
        warp, flat = scene.warp[bent][:, None], bent_place
        for _ in range(WARP_STEPS):
            flat = bent_place - _bend(warp, flat)
        place = place.clone()
        place[bent] = flat
    return place


def _frame_coordinates(scene: LayeredScene, place: Tensor, top: Tensor) -> Tensor:
    """Points (P, 2) of the layers ``top`` -> where they are in frame 2, (P, 2); the inverse of
    ``_layer_coordinates``.
    """
    place = place + _bend(scene.warp[top], place)
    inverse = torch.linalg.inv(scene.to_layer[1].double()).float()[top]  # (P, 3, 3)
    mapped = (inverse @ torch.cat([place, torch.ones_like(place[:, :1])], dim=-1)[..., None])[
        ..., 0
    ]
    return mapped[:, :2] / mapped[:, 2:]
