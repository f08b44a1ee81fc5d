"""Procedural scenes for training: layers with exact flow and exact masks, drawn in PyTorch on the
device that trains.

Layers move as those of ``gma_lib.data.rendering`` (the same ``Motion``), but outlines and textures
come from banks drawn once. Every scene is a function of a random generator alone;
``gma_lib.training.pairs`` says which scenes are trained on and which are held out.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gma_lib.data import LoadedPair, Motion
from gma_lib.runs.records import Record
from gma_lib.training.config import Phase
from gma_lib.training.textures import OUTLINE_REACH, TEXTURE_SIDE

EDGE = 0.7  # half width, in pixels, of the ramp that smooths an edge
# Fixed-point steps that invert a non-rigid warp; each divides the error by three or more.
WARP_STEPS = 6


@dataclass(frozen=True)
class LayeredScene:
    """The L layers of two frames as tensors, back to front; the first fills the frame.

    Attributes
    ----------
    to_layer
        (2, L, 3, 3): homogeneous frame coordinates at each of the two times -> the layer's
        coordinates, in pixels.
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
        """Return the scene with its tensors on a device."""
        fields: Record = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return LayeredScene(**fields)


def draw_scene(
    rng: np.random.Generator,
    phase: Phase,
    *,
    bank_sizes: tuple[int, int],
    projective: bool = False,
) -> LayeredScene:
    """Draw a scene from a generator.

    Parameters
    ----------
    phase
        Decides size, speed, number of layers, and the strength of haze, shadows and relief.
    bank_sizes
        How many textures and outlines there are to choose from.
    projective
        Move layers as planes in space move, by homographies.
    """
    height, width = phase.height, phase.width
    count = int(rng.integers(phase.layers[0], phase.layers[1] + 1)) + 1  # with the background
    # precision below a pixel is learnt from scenes that hardly move
    subpixel = phase.min_displacement <= 2 and rng.random() < 0.1
    slowest, fastest = (0.1, 1.5) if subpixel else (phase.min_displacement, phase.max_displacement)
    speed = np.exp(rng.uniform(np.log(slowest), np.log(fastest)))
    camera = _draw_camera(rng, speed, height, width)
    nearness = np.sort(rng.uniform(0, 1, count))
    matrices, size = _draw_layers(rng, phase, camera, speed, nearness, projective)
    colour, mix = _draw_colours(rng, count)
    hazy = phase.photometric * rng.uniform(0, 0.6) * (rng.random() < 0.4)
    shadowed = phase.photometric * rng.uniform(0.2, 0.7) * (rng.random() < 0.5)
    warp = _draw_warps(rng, speed, size, projective)
    if phase.relief and rng.random() < phase.relief:
        warp[0] = _draw_relief(rng, speed, width)
    tensors = {
        "to_layer": matrices,
        "warp": warp,
        "outline_map": _draw_maps(rng, 1 / (size * OUTLINE_REACH), stretch=0.35),
        "texture_map": _draw_maps(
            rng, rng.uniform(0.6, 1.8, count) * 2 / TEXTURE_SIDE, stretch=0.15, shift=1.0
        ),
        "outline_unit": size,
        "colour": colour,
        "mix": mix,
        "shade": rng.normal(0, 0.25, (count, 2)) / np.maximum(size, height / 4)[:, None],
        "haze": hazy * (1 - nearness),
        "haze_colour": rng.uniform(0.2, 0.9) + rng.normal(0, 0.08, 3),
    }
    return LayeredScene(
        **{name: torch.as_tensor(value, dtype=torch.float32) for name, value in tensors.items()},
        outline=torch.from_numpy(rng.integers(bank_sizes[1], size=count)),
        texture=torch.from_numpy(rng.integers(bank_sizes[0], size=count)),
        shadow=(*(rng.uniform(-0.06, 0.06, 2) * height).tolist(), rng.uniform(1, 12), shadowed),
    )


def _draw_layers(
    rng: np.random.Generator,
    phase: Phase,
    camera: Motion,
    speed: float,
    nearness: np.ndarray,
    projective: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``LayeredScene.to_layer`` (2, L, 3, 3) and the sizes (L,) of the layers in pixels."""
    height, width = phase.height, phase.width
    middle = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    spread, strength = [[0.02, 0.02, 0], [0.02, 0.02, 0], [2.5e-4, 2.5e-4, 0]], min(1, speed / 10)
    matrices, size = np.empty((2, len(nearness), 3, 3)), np.empty(len(nearness))
    for layer, near in enumerate(nearness):
        motion = _draw_object_motion(rng, speed, height, width) if layer else camera
        first, second = _to_matrix(motion, 0), _to_matrix(motion, 1)
        if layer:  # the camera carries objects along, near ones more
            step_x, step_y = (0.6 + 0.8 * near) * np.array(camera.step)
            carried = dataclasses.replace(camera, step=(step_x, step_y))
            second = second @ np.linalg.inv(_to_matrix(carried, 0)) @ _to_matrix(carried, 1)
        if projective:
            tilt = np.eye(3) + rng.normal(0, 1, (3, 3)) * spread * strength
            second = second @ middle @ tilt @ np.linalg.inv(middle)
        matrices[:, layer] = first, second
        size[layer] = height * np.clip(np.exp(rng.normal(-1.4, 0.6)), 0.07, 0.9)
    return matrices, size


def _draw_camera(rng: np.random.Generator, speed: float, height: int, width: int) -> Motion:
    moves = rng.random() < 0.85
    angle, length = rng.uniform(0, 2 * np.pi), speed * rng.uniform(0, 1)
    return Motion(
        start=(width / 2 + rng.normal(0, width / 6), height / 2 + rng.normal(0, height / 6)),
        step=(moves * length * np.cos(angle), moves * 0.6 * length * np.sin(angle)),
        turn=moves * rng.normal(0, min(0.05, 0.004 * speed)) * rng.integers(0, 2),
        zoom=moves * rng.normal(0, min(0.06, 0.006 * speed)) * rng.integers(0, 2),
    )


def _draw_object_motion(rng: np.random.Generator, speed: float, height: int, width: int) -> Motion:
    """Draw a motion, mostly small and rarely large: a power of a Gaussian, after FlyingChairs'
    generator.
    """
    angle, length = rng.uniform(0, 2 * np.pi), speed * min(1.0, rng.standard_normal() ** 2 / 2.5)
    return Motion(
        start=(rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height),
        step=(length * np.cos(angle), 0.7 * length * np.sin(angle)),
        turn=rng.normal(0, min(0.2, 0.02 * speed)) * (rng.random() < 0.6),
        zoom=rng.normal(0, min(0.1, 0.01 * speed)) * (rng.random() < 0.6),
    )


def _to_matrix(motion: Motion, time: float) -> np.ndarray:
    """Return the affine map ``motion.to_layer`` as a homogeneous matrix."""
    corners = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # the origin, right of it, below it
    origin, right, down = np.stack(motion.to_layer(corners[0], corners[1], time), axis=1)
    return np.vstack([np.stack([right - origin, down - origin, origin], axis=1), [0, 0, 1]])


def _draw_maps(
    rng: np.random.Generator, scale: np.ndarray, *, stretch: float, shift: float = 0.0
) -> np.ndarray:
    """Draw maps (L, 2, 3) that scale, turn at random, stretch and shift."""
    angle = rng.uniform(0, 2 * np.pi, scale.shape)
    wider = np.exp(rng.normal(0, stretch, scale.shape))
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    offset = rng.uniform(-shift, shift, (2, *scale.shape)) if shift else np.zeros((2, *scale.shape))
    rows = [[cosine * wider, -sine * wider, offset[0]], [sine / wider, cosine / wider, offset[1]]]
    return np.array(rows).transpose(2, 0, 1)


def _draw_warps(
    rng: np.random.Generator, speed: float, size: np.ndarray, rigid: bool
) -> np.ndarray:
    """Draw waves (L, 2, 3) by which some layers bend; their steepness stays below 1/3, so that the
    bend can be inverted.
    """
    bends = (rng.random(size.shape) < 0.3) & (not rigid)
    wave = 2 * np.pi / (size * rng.uniform(1.0, 3.0, size.shape))
    amplitude = bends * np.minimum(0.3 / wave * rng.random(size.shape), 0.3 * speed)
    return np.stack(
        [[amplitude, wave, rng.uniform(0, 6.3, size.shape)] for _ in range(2)]
    ).transpose(2, 0, 1)


def _draw_relief(rng: np.random.Generator, speed: float, width: int) -> np.ndarray:
    """Draw a wave (2, 3) as long as the frame: a background of varying depth, whose motion changes
    gradually.
    """
    wave = 2 * np.pi / (width * rng.uniform(0.4, 2.0, 2))
    amplitude = np.minimum(0.3 / wave, 0.5 * speed) * rng.uniform(0.05, 1, 2)
    return np.stack([amplitude, wave, rng.uniform(0, 6.3, 2)], axis=-1)


def _draw_colours(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw colours of layers; a third share the palette of the layer behind, so that some edges
    hardly show.
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
    """Two frames (3, H, W), 0..255, the flow (2, H, W) between them in pixels, and which pixels
    (H, W) are occluded in the second.
    """

    image1: Tensor
    image2: Tensor
    flow: Tensor
    occluded: Tensor

    def to_arrays(self) -> LoadedPair:
        """Copy the pair to the CPU as NumPy arrays."""
        return LoadedPair(
            *(field.cpu().numpy() for field in (self.image1, self.image2, self.flow, self.occluded))
        )


class SceneRenderer:
    """Draws scenes with a bank of textures and one of outlines, on one device."""

    def __init__(self, textures: Tensor, outlines: Tensor, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.textures, self.outlines = textures.to(self.device), outlines.to(self.device)

    def render(self, scene: LayeredScene, *, height: int, width: int) -> TrainingPair:
        """Render both frames without any photometric change, flow and occlusion."""
        scene = scene.to(self.device)
        grid = pixel_grid(height, width, self.device).reshape(-1, 2)  # (P, 2)
        frames, tops, places = [], [], []
        for number in (0, 1):
            place = _layer_coordinates(scene, _to_homogeneous(grid), number)  # (L, P, 2)
            distance = self._distance(scene, place)  # (L, P)
            frames.append(self._composite(scene, place, distance).T.reshape(3, height, width))
            # the last layer that covers a pixel is on top
            layers = torch.arange(len(distance), device=self.device)[:, None]
            tops.append(torch.where(distance >= 0, layers, 0).amax(dim=0))  # (P,)
            places.append(place)
        target = _frame_coordinates(scene, _take_top(places[0], tops[0]), tops[0])
        covered = self._find_covered(scene, target, tops[0], height, width)
        return TrainingPair(
            255 * frames[0],
            255 * frames[1],
            (target - grid).T.reshape(2, height, width),
            covered.reshape(height, width),
        )

    def _distance(self, scene: LayeredScene, place: Tensor) -> Tensor:
        """Return the distance (L, P) in pixels to each layer's outline, positive inside; the
        background is infinite.
        """
        grid = _apply_maps(scene.outline_map, place)[:, None]  # (L, 1, P, 2)
        distance = F.grid_sample(
            self.outlines[scene.outline], grid, padding_mode="border", align_corners=False
        )
        # beyond the bank's square, outside every outline, the border value would persist
        beyond = (grid.abs().amax(dim=-1) - 1).clamp(min=0)[:, 0] * OUTLINE_REACH
        distance = (distance[:, 0, 0] - beyond) * scene.outline_unit[:, None]
        return torch.cat([torch.full_like(distance[:1], torch.inf), distance[1:]])

    def _composite(self, scene: LayeredScene, place: Tensor, distance: Tensor) -> Tensor:
        """Lay all layers over each other, with smooth edges and soft shadows: colours (P, 3),
        0..1.
        """
        grid = _apply_maps(scene.texture_map, place)[:, None]
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
            shift = torch.tensor(offset, dtype=torch.float32, device=self.device)
            cast = self._distance(scene, place - shift)
            light = 1 - darkness * (0.5 + cast / (2 * softness)).clamp(0, 1)
        canvas = colour[0]
        for layer in range(1, len(colour)):
            below = canvas * light[layer] if darkness else canvas
            canvas = below + cover[layer] * (colour[layer] - below)
        return canvas.clamp(0, 1).T

    def _find_covered(
        self, scene: LayeredScene, target: Tensor, top: Tensor, height: int, width: int
    ) -> Tensor:
        """Find the points (P,) whose place in frame 2 lies in the frame and under another layer."""
        distance = self._distance(scene, _layer_coordinates(scene, _to_homogeneous(target), 1))
        in_front = torch.arange(len(distance), device=self.device)[:, None] > top
        last = torch.tensor([width - 1, height - 1], device=self.device)
        inside = ((target >= 0) & (target <= last)).all(dim=-1)
        return ((distance >= 0) & in_front).any(dim=0) & inside


def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """Return x and y of every pixel, (H, W, 2)."""
    return torch.stack(
        torch.meshgrid(
            *(torch.arange(n, dtype=torch.float32, device=device) for n in (width, height)),
            indexing="xy",
        ),
        dim=-1,
    )


def _to_homogeneous(points: Tensor) -> Tensor:
    """Append 1 to points (P, 2)."""
    return torch.cat([points, torch.ones_like(points[:, :1])], dim=-1)


def _apply_maps(maps: Tensor, place: Tensor) -> Tensor:
    """Apply maps (L, 2, 3) to points (L, P, 2)."""
    return place @ maps[:, :, :2].transpose(1, 2) + maps[:, None, :, 2]


def _take_top(values: Tensor, top: Tensor) -> Tensor:
    """Take the values (P, 2) of the layer on top from those of all layers (L, P, 2)."""
    return values.gather(0, top[None, :, None].expand(1, -1, 2))[0]


def _bend_by(warp: Tensor, place: Tensor) -> Tensor:
    """Return the displacement (..., 2) of points (..., 2) by waves (..., 2, 3): x bends along y, y
    along x.
    """
    amplitude, wave, phase = warp.unbind(-1)
    return amplitude * torch.sin(wave * place.flip(-1) + phase)


def _layer_coordinates(scene: LayeredScene, pixels: Tensor, number: int) -> Tensor:
    """Map homogeneous points (P, 3) of frame 0 or 1 to where they are in each layer, (L, P, 2)."""
    mapped = pixels @ scene.to_layer[number].transpose(1, 2)  # (L, P, 3)
    place = mapped[..., :2] / mapped[..., 2:]
    bent = scene.warp[:, 0, 0] > 0
    if number == 1 and bool(bent.any()):
        warp, flat = scene.warp[bent][:, None], place[bent]
        for _ in range(WARP_STEPS):
            flat = place[bent] - _bend_by(warp, flat)
        place[bent] = flat
    return place


def _frame_coordinates(scene: LayeredScene, place: Tensor, top: Tensor) -> Tensor:
    """Map points (P, 2) of the layers ``top`` to where they are in frame 2, (P, 2): the inverse of
    ``_layer_coordinates``.
    """
    place = place + _bend_by(scene.warp[top], place)
    inverse = torch.linalg.inv(scene.to_layer[1].double()).float()[top]  # (P, 3, 3)
    mapped: Tensor = (inverse @ _to_homogeneous(place)[..., None])[..., 0]
    return mapped[:, :2] / mapped[:, 2:]
