"""Banks of textures and outlines, drawn once: what the layers of training scenes show.

A texture is float32 (512, 512, 3), 0..1, with three loosely related channels; each layer mixes the
channels to its own colours.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from torch import Tensor, from_numpy

TEXTURE_SIDE = 512  # samples
OUTLINE_SIDE = 192  # samples
OUTLINE_REACH = 1.25  # outlines lie within one unit; a bank's samples cover a little more


def _noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> np.ndarray:
    """One channel of noise, (512, 512), whose spectrum falls as 1 / f**slope, 0..1."""
    fy, fx = np.meshgrid(np.fft.fftfreq(TEXTURE_SIDE), np.fft.rfftfreq(TEXTURE_SIDE), indexing="ij")
    radius = np.hypot(fx * stretch, fy / stretch)
    radius[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE))) / radius**slope
    noise = np.fft.irfft2(spectrum, s=(TEXTURE_SIDE, TEXTURE_SIDE)).astype(np.float32)
    low, high = np.percentile(noise[::4, ::4], [1, 99])
    return np.asarray(np.clip((noise - low) / (high - low), 0, 1))


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
        middle = rng.uniform(0, TEXTURE_SIDE, 2)
        colour = (rng.random(3) * rng.uniform(0.4, 1) + rng.normal(0, 0.1)).tolist()
        if rng.random() < 0.5:
            axes = (int(radius), max(1, int(radius * rng.uniform(0.3, 1))))
            place, turn = middle.astype(int).tolist(), rng.uniform(0, 360)
            cv2.ellipse(canvas, place, axes, turn, 0, 360, colour, -1)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            corners = middle + radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
            cv2.fillPoly(canvas, [corners.astype(np.int32)], colour)
    return canvas + rng.uniform(0, 0.25) * (_noise_texture(rng) - 0.5)


def _stripes_texture(rng: np.random.Generator) -> np.ndarray:
    """Stripes or checks that wander a little: repetition is hard to match."""
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32)
    wander = 40 * rng.random() * (_noise(rng, 2.0) - 0.5)
    sharpness, period = rng.uniform(1, 6), rng.uniform(9, 60)
    waves: np.ndarray = np.tanh(sharpness * np.sin(2 * np.pi * (x + wander) / period))
    if rng.random() < 0.5:
        waves *= np.tanh(sharpness * np.sin(2 * np.pi * (y + wander) / rng.uniform(9, 60)))
    colour = rng.uniform(-0.5, 0.5, 3)
    return 0.5 + waves[..., None] * colour + rng.uniform(0.05, 0.4) * (_noise_texture(rng) - 0.5)


def _smooth_texture(rng: np.random.Generator) -> np.ndarray:
    """Almost flat: a gradient and a little noise."""
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32) / TEXTURE_SIDE - 0.5
    slope = rng.normal(0, 0.4, (2, 3))
    flat = np.asarray(0.5 + x[..., None] * slope[0] + y[..., None] * slope[1])
    return flat + rng.uniform(0.03, 0.25) * (_noise_texture(rng) - 0.5)


def _marks_texture(rng: np.random.Generator) -> np.ndarray:
    """Writing-like marks on a mottled ground."""
    ground = np.ascontiguousarray(255 * (0.5 + 0.4 * (_noise_texture(rng) - 0.5)))
    canvas = ground.astype(np.uint8)  # the only type that putText draws on
    letters = np.array(list("abcdefghkmnprstuvwxyzABEGHKMRSTX0123456789#&%?"))
    for _ in range(int(rng.integers(30, 160))):
        place = rng.integers(-20, TEXTURE_SIDE, 2).tolist()
        size, colour = rng.uniform(0.4, 2.5), (255 * rng.random(3)).tolist()
        word = "".join(rng.choice(letters, rng.integers(1, 7)))
        font, thickness = int(rng.integers(0, 8)), int(rng.integers(1, 5))
        cv2.putText(canvas, word, place, font, size, colour, thickness, cv2.LINE_8)
    return canvas / np.float32(255)


def _strokes_texture(rng: np.random.Generator) -> np.ndarray:
    """Hair, straw or grass: many curved strokes of about one direction."""
    canvas = np.ascontiguousarray(_smooth_texture(rng), np.float32)
    direction, spread = rng.uniform(0, np.pi), rng.uniform(0.05, 0.8)
    for _ in range(int(rng.integers(400, 1500))):
        angle = direction + rng.normal(0, spread)
        along = np.linspace(0, rng.uniform(20, 120), 6)[:, None] * [np.cos(angle), np.sin(angle)]
        across = np.linspace(0, 1, 6)[:, None] ** 2
        bend = rng.normal(0, 6) * across * [-np.sin(angle), np.cos(angle)]
        points = (rng.uniform(-40, TEXTURE_SIDE, 2) + along + bend).astype(np.int32)
        colour = (rng.random(3) * rng.random()).tolist()
        cv2.polylines(canvas, [points], False, colour, int(rng.integers(1, 5)))
    return canvas


def _patched_texture(rng: np.random.Generator) -> np.ndarray:
    """Two textures side by side, as moss on stone."""
    contrast = rng.uniform(4, 20)
    mask = np.clip(0.5 + contrast * (_noise(rng, 2.0) - rng.uniform(0.3, 0.7)), 0, 1)[..., None]
    first, second = (TRAINING_TEXTURES[rng.integers(6)](rng) for _ in range(2))
    return mask * first + (1 - mask) * second


Maker = Callable[[np.random.Generator], np.ndarray]
TRAINING_TEXTURES: tuple[Maker, ...] = (
    _noise_texture,
    _leaves_texture,
    _stripes_texture,
    _smooth_texture,
    _marks_texture,
    _strokes_texture,
    _patched_texture,
    _patched_texture,
    # the commonest in real pictures come twice
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
    return np.asarray(colours[labels] * (1 - 0.6 * (distance / distance.max())[..., None]))


def _marble_texture(rng: np.random.Generator) -> np.ndarray:
    """Veins: a sine of position bent by smooth noise."""
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32) / TEXTURE_SIDE
    bent = rng.uniform(2, 8) * x + rng.uniform(2, 8) * y + rng.uniform(2, 7) * _noise(rng, 1.8)
    shifts = rng.uniform(0, 1.5, 3)
    return np.stack([0.5 + 0.5 * np.sin(2 * np.pi * bent + one) for one in shifts], axis=-1) ** 2


def _bricks_texture(rng: np.random.Generator) -> np.ndarray:
    """Rows of bricks of random shades with joints."""
    height, width = rng.uniform(18, 50), rng.uniform(30, 110)
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32)
    row = (y // height).astype(int)
    x = x + (row % 2) * width / 2
    shade = rng.uniform(0.3, 1, (64, 64))[row % 64, (x // width).astype(int) % 64]
    from_row = np.minimum(y % height, height - y % height)
    joint = (from_row < 2) | (np.minimum(x % width, width - x % width) < 2)
    rough = 0.3 * (_noise(rng, 1.0) - 0.5)
    return np.where(joint, 0.15, shade + rough)[..., None] * rng.uniform(0.5, 1, 3)


# Pictures that scikit-image ships, each in the public domain or CC0 according to its docstring.
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee"),
    *("grass", "gravel", "hubble_deep_field", "retina", "rocket"),
)


def cut_photograph(rng: np.random.Generator) -> np.ndarray:
    """Cut a piece of a photograph, rotated and mirrored at random; requires scikit-image."""
    try:
        from skimage import data
    except ImportError as error:
        raise ValueError(
            "photographs requires scikit-image: pip install 'gma-lib[training]', or set it to 0"
        ) from error

    name = PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]
    photograph: np.ndarray = getattr(data, name)().astype(np.float32) / 255
    side = int(min(photograph.shape[0], photograph.shape[1], rng.uniform(256, 640)))
    top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
    square, size = photograph[top : top + side, left : left + side], (TEXTURE_SIDE, TEXTURE_SIDE)
    piece: np.ndarray = cv2.resize(square, size, interpolation=cv2.INTER_AREA)
    if piece.ndim == 2:
        piece = np.repeat(piece[..., None], 3, axis=-1)
    return np.rot90(piece, int(rng.integers(4)))[:, :: rng.choice([-1, 1])]


HELD_OUT_TEXTURES = (_cells_texture, _marble_texture, _bricks_texture)


def draw_textures(makers: Sequence[Maker], count: int, seed: int) -> Tensor:
    """Draw a bank of textures, (count, 3, 512, 512), 0..1, by each maker in turn.

    They are low-passed, so that linear interpolation blurs both frames alike.
    """
    bank = np.empty((count, 3, TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        texture = np.asarray(makers[number % len(makers)](rng), np.float32)
        texture = cv2.GaussianBlur(texture, (0, 0), rng.uniform(0.7, 1.1))
        bank[number] = np.clip(texture, 0, 1).transpose(2, 0, 1)
    return from_numpy(bank)


def _draw_outline(rng: np.random.Generator) -> np.ndarray:
    """Draw a silhouette, uint8 (side, side): blobs, polygons and bars joined, sometimes with holes
    that leave only a thin rest.
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
        circle = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1)], axis=-1)
        corners = middle + np.clip(circle * radii[:, None], -1.1 * unit, 1.1 * unit)
        cv2.fillPoly(canvas, [corners.astype(np.int32)], 255)
    if rng.random() < 0.25:
        hole = (OUTLINE_SIDE / 2 + unit * rng.uniform(-0.3, 0.3, 2)).astype(int).tolist()
        cv2.circle(canvas, hole, int(unit * rng.uniform(0.12, 0.4)), 0, -1)
    return canvas


def draw_outlines(count: int, seed: int) -> Tensor:
    """Draw a bank of outlines: signed distances to them, (count, 1, side, side), positive inside,
    in units of the outline's half size.
    """
    bank = np.empty((count, 1, OUTLINE_SIDE, OUTLINE_SIDE), np.float32)
    for number in range(count):
        drawn = _draw_outline(np.random.default_rng([seed, 7, number]))
        inside, outside = (
            cv2.distanceTransform(mask, cv2.DIST_L2, 5) for mask in (drawn, 255 - drawn)
        )
        # where the hole covers the whole outline, every distance is infinite
        distance = np.clip(inside - outside, -OUTLINE_SIDE, OUTLINE_SIDE)
        per_sample = 2 * OUTLINE_REACH / OUTLINE_SIDE
        bank[number, 0] = cv2.GaussianBlur(distance, (0, 0), 1.2) * per_sample
    return from_numpy(bank)
