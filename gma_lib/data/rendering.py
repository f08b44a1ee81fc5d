"""Scenes of moving, textured layers, rendered with exact flow and exact occlusion.

A scene is a stack of textured layers over a background; each moves by a similarity (shift, turn,
zoom) per frame. Frames are rendered by mapping every pixel back into a layer's own coordinates, so
all frames sample the texture alike, and flow and occlusion follow from the same maps: they are
exact to float precision, also where a point becomes covered or leaves the frame. NumPy only; the
same seed gives the same scene.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TEXTURE_SIDE = 512  # samples; a texture repeats beyond
# texture samples per frame pixel at zoom 1, so that linear interpolation loses little
SAMPLES_PER_PIXEL = 2
BLUR = 1.5  # samples; standard deviation of the low pass of textures
HAZE = (178.0, 190.0, 205.0)  # RGB that the final pass fades towards, farther layers more
SLOPE = 1.6  # noise falls as 1 / f**SLOPE
EDGE = 0.7  # half width, in pixels, of the ramp that smooths an edge


@dataclass(frozen=True)
class Motion:
    """Where a layer is at time t (in frames): its origin at ``start + t * step``, turned and
    zoomed.

    Attributes
    ----------
    start, step
        (x, y) in pixels, and pixels per frame.
    turn
        Radians per frame, clockwise on the screen (y points down).
    zoom
        Natural logarithm of the growth per frame.
    """

    start: tuple[float, float]
    step: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    zoom: float = 0.0

    def to_layer(self, x: np.ndarray, y: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Frame coordinates at ``time`` -> the layer's own coordinates."""
        x, y = x - self.start[0] - time * self.step[0], y - self.start[1] - time * self.step[1]
        cosine, sine = self._rotation(-time)
        return cosine * x - sine * y, sine * x + cosine * y

    def to_frame(self, x: np.ndarray, y: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """The layer's own coordinates -> frame coordinates at ``time``; the inverse of
        ``to_layer``.
        """
        cosine, sine = self._rotation(time)
        return (
            cosine * x - sine * y + self.start[0] + time * self.step[0],
            sine * x + cosine * y + self.start[1] + time * self.step[1],
        )

    def _rotation(self, time: float) -> tuple[float, float]:
        scale = np.exp(time * self.zoom)
        return scale * np.cos(time * self.turn), scale * np.sin(time * self.turn)


@dataclass(frozen=True)
class Shape:
    """The outline of a layer: ``radius`` in pixels, modulated around the circle, with an optional
    hole.

    Attributes
    ----------
    radius
        Mean distance of the outline from the origin.
    lobes, depth
        How many bumps the outline has, and how deep they are as a share of the radius.
    stretch
        Width over height.
    hole
        Radius of a round hole as a share of ``radius``; 0 for none.
    """

    radius: float
    lobes: int = 0
    depth: float = 0.0
    stretch: float = 1.0
    hole: float = 0.0

    def inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance to the outline in pixels, positive inside, to first order."""
        x = x / self.stretch
        distance = np.hypot(x, y)
        outline = self.radius * (1 + self.depth * np.cos(self.lobes * np.arctan2(y, x)))
        inside: np.ndarray = outline - distance
        if self.hole:
            inside = np.minimum(inside, distance - self.hole * self.radius)
        return inside

    @property
    def reach(self) -> float:
        """No point of the shape is farther from its origin."""
        return self.radius * (1 + abs(self.depth)) * max(1.0, self.stretch)


@dataclass(frozen=True)
class Texture:
    """A repeating picture, made from a seed.

    Attributes
    ----------
    kind
        A key of ``PATTERNS``.
    seed
        Seed of the pattern.
    grain
        Size of its features in pixels.
    dark, light
        RGB, 0..255; the pattern runs from one to the other.
    """

    kind: str
    seed: int
    grain: float
    dark: tuple[float, float, float]
    light: tuple[float, float, float]

    def samples(self) -> np.ndarray:
        """The picture, float32 (512, 512, 3), ``SAMPLES_PER_PIXEL`` samples a pixel."""
        values = PATTERNS[self.kind](
            np.random.default_rng(self.seed), self.grain * SAMPLES_PER_PIXEL
        )
        dark, light = np.array(self.dark), np.array(self.light)
        return np.asarray(dark + values[..., None] * (light - dark), np.float32)


def _spectral_noise(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Noise, 0..1, whose spectrum falls as 1 / f**SLOPE beyond features of size ``grain``."""
    frequency = np.fft.fftfreq(TEXTURE_SIDE)
    radius = np.hypot(frequency[:, None], frequency[None])
    spectrum = np.fft.fft2(rng.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE)))
    spectrum *= 1 / (1 + (radius * grain * 2) ** 2) ** (SLOPE / 2) * np.exp(-((radius / 0.3) ** 2))
    noise = np.fft.ifft2(spectrum).real
    low, high = np.percentile(noise, [1, 99])
    return np.asarray(np.clip((noise - low) / (high - low), 0, 1))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Gaussian low pass, so that a texture's own edges are sampled well; cut to 0..1."""
    frequency = np.fft.fftfreq(TEXTURE_SIDE)
    response = np.exp(-2 * (np.pi * BLUR) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))
    return np.clip(np.fft.ifft2(np.fft.fft2(values) * response).real, 0, 1)


def _draw_leaves(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Overlapping discs of many sizes (dead leaves), each of one brightness, with some noise."""
    sides = np.arange(TEXTURE_SIDE, dtype=np.float32)
    values = np.full((TEXTURE_SIDE, TEXTURE_SIDE), 0.5, np.float32)
    for _ in range(260):
        radius = grain * rng.uniform(0.4, 1) / rng.uniform(0.25, 1)
        middle = rng.uniform(0, TEXTURE_SIDE, 2)
        away = (sides - middle[:, None] + TEXTURE_SIDE / 2) % TEXTURE_SIDE - TEXTURE_SIDE / 2
        dx, dy = np.square(away)
        values[dx + dy[:, None] < radius**2] = rng.uniform(0, 1)
    return _smooth(0.85 * values + 0.15 * _spectral_noise(rng, grain / 4))


def _draw_stripes(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Bands that wander a little, with noise over them: what repeats is hard to match."""
    bands = max(2, round(TEXTURE_SIDE / (2 * grain)))
    phase = 2 * np.pi * bands * np.arange(TEXTURE_SIDE) / TEXTURE_SIDE
    waves = 0.5 + 0.5 * np.tanh(3 * np.sin(phase[None] + 2.5 * (_spectral_noise(rng, 60) - 0.5)))
    return _smooth(0.75 * waves + 0.25 * _spectral_noise(rng, grain / 2))


def _draw_tiles(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Squares of random brightness with dark joints."""
    count = max(2, round(TEXTURE_SIDE / (2 * grain)))
    position = np.arange(TEXTURE_SIDE) * count / TEXTURE_SIDE
    cell = position.astype(int)
    values = rng.uniform(0.25, 1, (count, count))[cell[:, None], cell[None]]
    joint = np.minimum(position % 1, 1 - position % 1) < 0.06
    values = np.where(joint[:, None] | joint[None], 0.0, values)
    return _smooth(0.8 * values + 0.2 * _spectral_noise(rng, grain / 3))


PATTERNS: dict[str, Callable[[np.random.Generator, float], np.ndarray]] = {
    "noise": _spectral_noise,
    "leaves": _draw_leaves,
    "stripes": _draw_stripes,
    "tiles": _draw_tiles,
}


@dataclass(frozen=True)
class Layer:
    """A textured shape that moves; without a shape it fills the frame."""

    texture: Texture
    motion: Motion
    shape: Shape | None = None


@dataclass(frozen=True)
class Scene:
    """Layers from back to front; the first fills the frame.

    Attributes
    ----------
    noise_seed
        Seed of the final pass's noise.
    """

    height: int
    width: int
    layers: tuple[Layer, ...]
    noise_seed: int = 0


@dataclass(frozen=True)
class Rendering:
    """One frame of a scene with everything that is known about it.

    Attributes
    ----------
    clean, final
        float32 (3, H, W), RGB, 0..255.
    flow
        float32 (2, H, W): motion of the topmost layer to the next frame, also where it becomes
        covered or leaves the frame.
    occluded
        bool (H, W): covered by another layer in the next frame. Pixels that leave the frame are not
        marked for that; in Sintel some are.
    """

    clean: np.ndarray
    final: np.ndarray
    flow: np.ndarray
    occluded: np.ndarray


class Renderer:
    """Renders a scene's frames; makes its textures once."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self._textures = [layer.texture.samples() for layer in scene.layers]
        self._y, self._x = np.mgrid[: scene.height, : scene.width].astype(np.float64)

    def render(self, time: float) -> Rendering:
        """Frame, flow and occlusion at a time, in frames."""
        clean = np.zeros((self.scene.height, self.scene.width, 3))
        depth = np.zeros((self.scene.height, self.scene.width))
        top = np.zeros((self.scene.height, self.scene.width), int)
        for number, layer in enumerate(self.scene.layers):
            x, y = layer.motion.to_layer(self._x, self._y, time)
            # in frame pixels
            inside = _distance_inside(layer, x, y) * np.exp(time * layer.motion.zoom)
            cover = np.clip(0.5 + inside / (2 * EDGE), 0, 1)
            touched = cover > 0
            colour = (
                _sample_texture(self._textures[number], x[touched], y[touched])
                * _shade(layer, x[touched], y[touched])[:, None]
            )
            share = cover[touched][:, None]
            clean[touched] = (1 - share) * clean[touched] + share * colour
            top[inside >= 0] = number
            depth[touched] += (
                number / max(1, len(self.scene.layers) - 1) - depth[touched]
            ) * share[:, 0]
        flow = self._flow(top, time)
        clean = np.clip(clean, 0, 255).transpose(2, 0, 1)
        return Rendering(
            clean=clean.astype(np.float32),
            final=self._final(clean, flow, depth, time).astype(np.float32),
            flow=flow.astype(np.float32),
            occluded=self._occluded(top, flow, time),
        )

    def _flow(self, top: np.ndarray, time: float) -> np.ndarray:
        flow = np.empty((2, *top.shape))
        for number, layer in enumerate(self.scene.layers):
            mine = top == number
            x, y = self._x[mine], self._y[mine]
            to_x, to_y = layer.motion.to_frame(*layer.motion.to_layer(x, y, time), time + 1)
            flow[0, mine], flow[1, mine] = to_x - x, to_y - y
        return flow

    def _occluded(self, top: np.ndarray, flow: np.ndarray, time: float) -> np.ndarray:
        to_x, to_y = self._x + flow[0], self._y + flow[1]
        occluded = np.zeros(top.shape, bool)
        for number, layer in enumerate(self.scene.layers[1:], start=1):
            behind = top < number
            place = layer.motion.to_layer(to_x[behind], to_y[behind], time + 1)
            occluded[behind] |= _distance_inside(layer, *place) >= 0
        occluded &= (
            (to_x >= 0)
            & (to_x <= self.scene.width - 1)
            & (to_y >= 0)
            & (to_y <= self.scene.height - 1)
        )
        return occluded

    def _final(
        self, clean: np.ndarray, flow: np.ndarray, depth: np.ndarray, time: float
    ) -> np.ndarray:
        """Blur along the motion (a shutter open for half of the frame's time), haze with distance,
        noise.
        """
        shutter = np.linspace(-0.25, 0.25, 7)
        blurred = sum(
            _sample_frame(clean, self._x + share * flow[0], self._y + share * flow[1])
            for share in shutter
        ) / len(shutter)
        haze = 0.28 * (1 - depth) * np.ones_like(blurred)
        hazy = (1 - haze) * blurred + haze * np.array(HAZE)[:, None, None]
        rng = np.random.default_rng([self.scene.noise_seed, round(1000 * time)])
        return np.asarray(np.clip(hazy + rng.normal(0, 2.5, hazy.shape), 0, 255))


def _distance_inside(layer: Layer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.full(x.shape, np.inf) if layer.shape is None else layer.shape.inside(x, y)


def _shade(layer: Layer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light from above left, fixed to the layer, so that shapes look round."""
    if layer.shape is None:
        return np.ones(x.shape)
    light = 1 - 0.28 * np.clip((x + y) / (1.4 * layer.shape.reach), -0.6, 1)
    return np.asarray(light - 0.12 * np.exp(-layer.shape.inside(x, y) / 6))


def _sample_texture(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear interpolation in a repeating texture at layer coordinates (M,): (M, 3)."""
    x, y = x * SAMPLES_PER_PIXEL, y * SAMPLES_PER_PIXEL
    left, above = np.floor(x).astype(int), np.floor(y).astype(int)
    x, y = (x - left)[:, None], (y - above)[:, None]
    left, above = left % TEXTURE_SIDE, above % TEXTURE_SIDE
    right, below = (left + 1) % TEXTURE_SIDE, (above + 1) % TEXTURE_SIDE
    upper = (1 - x) * texture[above, left] + x * texture[above, right]
    lower = (1 - x) * texture[below, left] + x * texture[below, right]
    return np.asarray((1 - y) * upper + y * lower)


def _sample_frame(frame: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear interpolation in a frame (3, H, W) whose edge goes on for ever."""
    _, height, width = frame.shape
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, above = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    x, y = x - left, y - above
    upper = (1 - x) * frame[:, above, left] + x * frame[:, above, left + 1]
    lower = (1 - x) * frame[:, above + 1, left] + x * frame[:, above + 1, left + 1]
    return np.asarray((1 - y) * upper + y * lower)
