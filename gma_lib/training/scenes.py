"""Procedural scenes for training: layers with exact flow and exact masks, drawn in PyTorch on the
device that trains.

Layers move as those of ``gma_lib.data.demo`` (the same ``Motion``), but outlines and textures come
from banks drawn once. Every scene is a function of a random generator alone; what is trained on
which scene stands in ``gma_lib.training.trainer``.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gma_lib.data.demo import Motion

TEXTURE_SIDE = 512  # samples
OUTLINE_SIDE = 192  # samples
OUTLINE_REACH = 1.25  # the bank's outlines lie within one unit; samples cover a little more
EDGE = 0.7  # half width, in pixels, of the ramp that smooths an edge
WARP_STEPS = (
    6  # fixed-point steps that invert a non-rigid warp; each divides the error by three or more
)


# --- banks of textures and outlines ---------------------------------------------------------------
#
# A texture is float32 (512, 512, 3), 0..1, three loosely related channels; scenes mix the channels
# to colours of their own.


def _noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> np.ndarray:
    """One channel of noise, (512, 512), whose spectrum falls as 1 / f**slope, 0..1."""
    fy, fx = np.meshgrid(np.fft.fftfreq(TEXTURE_SIDE), np.fft.rfftfreq(TEXTURE_SIDE), indexing="ij")
    radius = np.hypot(fx * stretch, fy / stretch)
    radius[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE))) / radius**slope
    noise = np.fft.irfft2(spectrum, s=(TEXTURE_SIDE, TEXTURE_SIDE)).astype(np.float32)
    low, high = np.percentile(noise[::4, ::4], [1, 99])
    return np.clip((noise - low) / (high - low), 0, 1)


def _noise_texture(rng: np.random.Generator) -> np.ndarray:
    slope, stretch = rng.uniform(0.7, 2.0), np.exp(rng.normal(0, 0.4))
    grey = _noise(rng, slope, stretch)
    colour = np.stack([_noise(rng, slope + 0.3) for _ in range(3)], axis=-1)
    return 0.6 * grey[..., None] + 0.4 * colour


def _leaves_texture(rng: np.random.Generator) -> np.ndarray:
    """Dead leaves: overlapping shapes whose sizes follow a power law, as in natural pictures."""
    canvas = np.full((TEXTURE_SIDE, TEXTURE_SIDE, 3), rng.random(3), np.float32)
    smallest = rng.uniform(3, 14)
    for _ in range(int(9000 / smallest)):
        radius = min(130.0, smallest / rng.uniform(0.03, 1))
        middle, colour = (
            rng.uniform(0, TEXTURE_SIDE, 2),
            rng.random(3) * rng.uniform(0.4, 1) + rng.normal(0, 0.1),
        )
        if rng.random() < 0.5:
            axes = (int(radius), max(1, int(radius * rng.uniform(0.3, 1))))
            cv2.ellipse(
                canvas,
                middle.astype(int).tolist(),
                axes,
                rng.uniform(0, 360),
                0,
                360,
                colour.tolist(),
                -1,
            )
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            corners = middle + radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
            cv2.fillPoly(canvas, [corners.astype(np.int32)], colour.tolist())
    return canvas + rng.uniform(0, 0.25) * (_noise_texture(rng) - 0.5)


def _stripes_texture(rng: np.random.Generator) -> np.ndarray:
    """Stripes or checks that wander a little: what repeats is hard to match."""
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32)
    wander = 40 * rng.random() * (_noise(rng, 2.0) - 0.5)
    sharpness, period = rng.uniform(1, 6), rng.uniform(9, 60)
    waves = np.tanh(sharpness * np.sin(2 * np.pi * (x + wander) / period))
    if rng.random() < 0.5:
        waves *= np.tanh(sharpness * np.sin(2 * np.pi * (y + wander) / rng.uniform(9, 60)))
    colour = rng.uniform(-0.5, 0.5, 3)
    return 0.5 + waves[..., None] * colour + rng.uniform(0.05, 0.4) * (_noise_texture(rng) - 0.5)


def _smooth_texture(rng: np.random.Generator) -> np.ndarray:
    """Almost flat: a gradient and a breath of noise."""
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32) / TEXTURE_SIDE - 0.5
    slope = rng.normal(0, 0.4, (2, 3))
    return (
        0.5
        + x[..., None] * slope[0]
        + y[..., None] * slope[1]
        + rng.uniform(0.03, 0.25) * (_noise_texture(rng) - 0.5)
    )


def _marks_texture(rng: np.random.Generator) -> np.ndarray:
    """Writing-like marks on a mottled ground."""
    canvas = np.ascontiguousarray(255 * (0.5 + 0.4 * (_noise_texture(rng) - 0.5))).astype(
        np.uint8
    )  # all that putText draws on
    letters = np.array(list("abcdefghkmnprstuvwxyzABEGHKMRSTX0123456789#&%?"))
    for _ in range(int(rng.integers(30, 160))):
        place = rng.integers(-20, TEXTURE_SIDE, 2).tolist()
        size, colour = rng.uniform(0.4, 2.5), (255 * rng.random(3)).tolist()
        word = "".join(rng.choice(letters, rng.integers(1, 7)))
        cv2.putText(
            canvas,
            word,
            place,
            int(rng.integers(0, 8)),
            size,
            colour,
            int(rng.integers(1, 5)),
            cv2.LINE_8,
        )
    return canvas / np.float32(255)


def _strokes_texture(rng: np.random.Generator) -> np.ndarray:
    """Hair, straw or grass: many curved strokes of about one direction."""
    canvas = np.ascontiguousarray(_smooth_texture(rng), np.float32)
    direction, spread = rng.uniform(0, np.pi), rng.uniform(0.05, 0.8)
    for _ in range(int(rng.integers(400, 1500))):
        angle = direction + rng.normal(0, spread)
        along = np.linspace(0, rng.uniform(20, 120), 6)[:, None] * [np.cos(angle), np.sin(angle)]
        bend = (
            rng.normal(0, 6) * np.linspace(0, 1, 6)[:, None] ** 2 * [-np.sin(angle), np.cos(angle)]
        )
        points = (rng.uniform(-40, TEXTURE_SIDE, 2) + along + bend).astype(np.int32)
        cv2.polylines(
            canvas,
            [points],
            False,
            (rng.random(3) * rng.random()).tolist(),
            int(rng.integers(1, 5)),
        )
    return canvas


def _patched_texture(rng: np.random.Generator) -> np.ndarray:
    """Two textures side by side, as moss on stone."""
    mask = np.clip(0.5 + rng.uniform(4, 20) * (_noise(rng, 2.0) - rng.uniform(0.3, 0.7)), 0, 1)[
        ..., None
    ]
    first, second = (TRAINING_TEXTURES[rng.integers(6)](rng) for _ in range(2))
    return mask * first + (1 - mask) * second


TRAINING_TEXTURES: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (
    _noise_texture,
    _leaves_texture,
    _stripes_texture,
    _smooth_texture,
    _marks_texture,
    _strokes_texture,
    _patched_texture,
    _patched_texture,
    # the commonest in pictures of the world come twice
    _noise_texture,
    _leaves_texture,
    _strokes_texture,
    _patched_texture,
)


def _cells_texture(rng: np.random.Generator) -> np.ndarray:
    """Cells around random points (Voronoi), with dark seams."""
    seeds = np.ones((TEXTURE_SIDE, TEXTURE_SIDE), np.uint8)
    count = int(rng.integers(40, 500))
    seeds[rng.integers(0, TEXTURE_SIDE, count), rng.integers(0, TEXTURE_SIDE, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5)
    colours = rng.random((labels.max() + 1, 3)).astype(np.float32)
    return colours[labels] * (1 - 0.6 * (distance / distance.max())[..., None])


def _marble_texture(rng: np.random.Generator) -> np.ndarray:
    """Veins: a sine of position bent by smooth noise."""
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32) / TEXTURE_SIDE
    bent = rng.uniform(2, 8) * x + rng.uniform(2, 8) * y + rng.uniform(2, 7) * _noise(rng, 1.8)
    return (
        np.stack(
            [0.5 + 0.5 * np.sin(2 * np.pi * bent + shift) for shift in rng.uniform(0, 1.5, 3)],
            axis=-1,
        )
        ** 2
    )


def _bricks_texture(rng: np.random.Generator) -> np.ndarray:
    """Rows of bricks of random shades with joints."""
    height, width = rng.uniform(18, 50), rng.uniform(30, 110)
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32)
    row = (y // height).astype(int)
    x = x + (row % 2) * width / 2
    shade = rng.uniform(0.3, 1, (64, 64))[row % 64, (x // width).astype(int) % 64]
    joint = (np.minimum(y % height, height - y % height) < 2) | (
        np.minimum(x % width, width - x % width) < 2
    )
    rough = 0.3 * (_noise(rng, 1.0) - 0.5)
    return np.where(joint, 0.15, shade + rough)[..., None] * rng.uniform(0.5, 1, 3)


# Pictures that come inside scikit-image, each in the public domain or CC0 as its docstring there
# says.
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "retina",
    "rocket",
)


def photograph_texture(rng: np.random.Generator) -> np.ndarray:
    """A piece of a photograph, turned and mirrored at random; scikit-image is needed."""
    try:
        from skimage import data
    except ImportError as error:
        raise ValueError(
            "photographs needs scikit-image: pip install scikit-image, or set it to 0"
        ) from error

    photograph = (
        getattr(data, PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))])().astype(np.float32) / 255
    )
    side = int(min(photograph.shape[0], photograph.shape[1], rng.uniform(256, 640)))
    top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
    piece = cv2.resize(
        photograph[top : top + side, left : left + side],
        (TEXTURE_SIDE, TEXTURE_SIDE),
        interpolation=cv2.INTER_AREA,
    )
    if piece.ndim == 2:
        piece = np.repeat(piece[..., None], 3, axis=-1)
    piece = np.rot90(piece, rng.integers(4))
    return piece[:, :: rng.choice([-1, 1])]


HELD_OUT_TEXTURES = (_cells_texture, _marble_texture, _bricks_texture)


def texture_bank(makers: tuple, count: int, seed: int) -> Tensor:
    """(count, 3, 512, 512), 0..1, low-passed so that linear interpolation blurs both frames alike."""
    bank = np.empty((count, 3, TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        texture = np.asarray(makers[number % len(makers)](rng), np.float32)
        texture = cv2.GaussianBlur(texture, (0, 0), rng.uniform(0.7, 1.1))
        bank[number] = np.clip(texture, 0, 1).transpose(2, 0, 1)
    return torch.from_numpy(bank)


def _drawn_outline(rng: np.random.Generator) -> np.ndarray:
    """A silhouette, uint8 (side, side): blobs, polygons and bars joined, sometimes with holes or
    only a thin rest.
    """
    canvas = np.zeros((OUTLINE_SIDE, OUTLINE_SIDE), np.uint8)
    unit = OUTLINE_SIDE / (2 * OUTLINE_REACH)
    for part in range(int(rng.integers(1, 6))):
        middle = OUTLINE_SIDE / 2 + unit * rng.uniform(-0.5, 0.5, 2) * (part > 0)
        kind, size = rng.integers(4), unit * rng.uniform(0.25, 0.5 if part else 0.95)
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        radii = np.full(60, size)
        if kind == 0:  # a wavy blob
            radii *= 1 + sum(
                rng.normal(0, 0.25 / k) * np.cos(k * angles + rng.uniform(0, 6.3))
                for k in range(2, 7)
            )
        elif kind == 1:  # a polygon, convex or a star
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 14)))
            radii = size * rng.uniform(0.35, 1, len(angles))
        elif kind == 2:  # a bar
            angles = np.array([-0.1, 0.1, np.pi - 0.1, np.pi + 0.1]) + rng.uniform(0, np.pi)
            radii = np.full(4, min(unit, 1.6 * size))
        points = (
            np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1)], axis=-1)
            * radii[:, None]
        )
        cv2.fillPoly(
            canvas, [(middle + np.clip(points, -1.1 * unit, 1.1 * unit)).astype(np.int32)], 255
        )
    if rng.random() < 0.25:
        hole = (OUTLINE_SIDE / 2 + unit * rng.uniform(-0.3, 0.3, 2)).astype(int).tolist()
        cv2.circle(canvas, hole, int(unit * rng.uniform(0.12, 0.4)), 0, -1)
    return canvas


def outline_bank(count: int, seed: int) -> Tensor:
    """Signed distances to outlines, (count, 1, side, side), positive inside, in units of the
    outline's half size.
    """
    bank = np.empty((count, 1, OUTLINE_SIDE, OUTLINE_SIDE), np.float32)
    for number in range(count):
        drawn = _drawn_outline(np.random.default_rng([seed, 7, number]))
        inside, outside = (
            cv2.distanceTransform(mask, cv2.DIST_L2, 5) for mask in (drawn, 255 - drawn)
        )
        # a drawing that its own hole swallowed is infinitely far from everything
        distance = np.clip(inside - outside, -OUTLINE_SIDE, OUTLINE_SIDE)
        bank[number, 0] = cv2.GaussianBlur(distance, (0, 0), 1.2) * (
            2 * OUTLINE_REACH / OUTLINE_SIDE
        )
    return torch.from_numpy(bank)


# --- scenes ---------------------------------------------------------------------------------------


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


# --- rendering ------------------------------------------------------------------------------------


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


# --- what a camera adds ---------------------------------------------------------------------------


def photographed(pair: TrainingPair, rng: np.random.Generator, strength: float) -> TrainingPair:
    """The pair as a camera might see it: light that stays where it is, other exposure, blur, noise.
    Flow stays exact.
    """
    frames = [pair.image1 / 255, pair.image2 / 255]
    if rng.random() < 0.5 * strength:
        light = _light(rng, frames[0])
        frames = [frame * light for frame in frames]
    common = _exposure(rng, 0.25 * strength)
    frames = [_exposed(frame, *common) for frame in frames]
    frames = [_exposed(frame, *_exposure(rng, 0.05 * strength)) for frame in frames]
    if rng.random() < 0.35 * strength:
        frames = _moving_blur(frames, pair.flow, rng.uniform(0.1, 0.5))
    if rng.random() < 0.25 * strength:
        frames = [_soft(frame, float(rng.uniform(0.4, 1.5))) for frame in frames]
    if rng.random() < 0.6 * strength:
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        sigma = float(0.04 * rng.random() ** 2)
        frames = [
            frame + sigma * torch.randn(frame.shape, generator=noise).to(frame.device)
            for frame in frames
        ]
    image1, image2 = (255 * frame.clamp(0, 1) for frame in frames)
    return dataclasses.replace(pair, image1=image1, image2=image2)


def dimmed(pair: TrainingPair, rng: np.random.Generator) -> TrainingPair:
    """The pair in so little light that grey is 8 to 60 on average, in whole levels as files hold
    them; darker pairs stay as they are.
    """
    gain = min(
        1.0, float(np.exp(rng.uniform(np.log(8), np.log(60)))) / max(1.0, float(pair.image1.mean()))
    )
    return dataclasses.replace(
        pair, image1=(gain * pair.image1).round(), image2=(gain * pair.image2).round()
    )


def _light(rng: np.random.Generator, frame: Tensor) -> Tensor:
    """A field of brightness (1, H, W) that does not move with anything."""
    coarse = torch.from_numpy(rng.uniform(0.55, 1.3, (1, 1, 3, 4)).astype(np.float32)).to(
        frame.device
    )
    return F.interpolate(coarse, size=frame.shape[-2:], mode="bicubic", align_corners=True)[0]


def _exposure(rng: np.random.Generator, spread: float) -> tuple[float, float, np.ndarray]:
    return (
        float(np.exp(rng.normal(0, spread))),
        float(np.exp(rng.normal(0, spread))),
        np.exp(rng.normal(0, spread / 4, 3)),
    )


def _exposed(frame: Tensor, gain: float, gamma: float, tint: np.ndarray) -> Tensor:
    tint = torch.from_numpy(tint.astype(np.float32)).to(frame.device)[:, None, None]
    return (gain * tint * frame).clamp(0, 1) ** gamma


def _soft(frame: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-4, 5, dtype=torch.float32, device=frame.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(frame[:, None], (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))[
        :, 0
    ]


def _moving_blur(frames: list[Tensor], flow: Tensor, shutter: float) -> list[Tensor]:
    """Blur along the motion, as in Sintel's final pass; frame 2 takes the motion at the same place
    of frame 1.
    """
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=flow.device) for n in (height, width)),
        indexing="ij",
    )
    size = torch.tensor([width, height], dtype=torch.float32, device=flow.device)
    shares = torch.linspace(-0.5, 0.5, 7, device=flow.device) * shutter
    grid = torch.stack([x, y], dim=-1) + shares[:, None, None, None] * flow.permute(
        1, 2, 0
    )  # (7, H, W, 2)
    grid = (2 * grid + 1) / size - 1
    blurred = [
        F.grid_sample(
            frame.expand(len(shares), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
        for frame in frames
    ]
    return [samples.mean(dim=0) for samples in blurred]
