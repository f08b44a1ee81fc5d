"""Procedural scenes with exact flow and exact occlusion: the demo set, and the scene descriptions
that training renders.

A scene is a stack of textured layers over a background; each moves by a similarity (shift, turn,
zoom) per frame. Frames are rendered by mapping every pixel back into a layer's own coordinates, so
all frames sample the texture alike, and flow and occlusion follow from the same maps: they are
exact to float precision, also where a point becomes covered or leaves the frame. NumPy only; the
same seed gives the same scene.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gma_lib.flow.files import flow_file_bytes, write_flow
from gma_lib.flow.images import write_frame, write_mask
from gma_lib.runs.files import require_free_space

TEXTURE_SIDE = 512  # samples; a texture repeats beyond
SAMPLES_PER_PIXEL = (
    2  # texture samples per frame pixel at zoom 1, so that linear interpolation loses little
)
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
        inside = outline - distance
        return np.minimum(inside, distance - self.hole * self.radius) if self.hole else inside

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
        Of its randomness.
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
        return (dark + values[..., None] * (light - dark)).astype(np.float32)


def _spectral_noise(rng: np.random.Generator, grain: float, slope: float = 1.6) -> np.ndarray:
    """Noise whose spectrum falls as 1 / f**slope beyond features of size ``grain``, scaled to 0..1."""
    frequency = np.fft.fftfreq(TEXTURE_SIDE)
    radius = np.hypot(frequency[:, None], frequency[None])
    spectrum = np.fft.fft2(rng.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE)))
    spectrum *= 1 / (1 + (radius * grain * 2) ** 2) ** (slope / 2) * np.exp(-((radius / 0.3) ** 2))
    noise = np.fft.ifft2(spectrum).real
    low, high = np.percentile(noise, [1, 99])
    return np.clip((noise - low) / (high - low), 0, 1)


def _smoothed(values: np.ndarray, width: float = 1.5) -> np.ndarray:
    """Gaussian low pass in samples, so that a texture's own edges are sampled well; then scaled
    back to 0..1.
    """
    frequency = np.fft.fftfreq(TEXTURE_SIDE)
    response = np.exp(-2 * (np.pi * width) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))
    return np.clip(np.fft.ifft2(np.fft.fft2(values) * response).real, 0, 1)


def _leaves(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Overlapping discs of many sizes (dead leaves), each of one brightness, with a little noise."""
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32)
    values = np.full((TEXTURE_SIDE, TEXTURE_SIDE), 0.5, np.float32)
    for _ in range(260):
        radius = grain * rng.uniform(0.4, 1) / rng.uniform(0.25, 1)
        middle = rng.uniform(0, TEXTURE_SIDE, 2)
        dx = (x - middle[0] + TEXTURE_SIDE / 2) % TEXTURE_SIDE - TEXTURE_SIDE / 2
        dy = (y - middle[1] + TEXTURE_SIDE / 2) % TEXTURE_SIDE - TEXTURE_SIDE / 2
        values[dx**2 + dy**2 < radius**2] = rng.uniform(0, 1)
    return _smoothed(0.85 * values + 0.15 * _spectral_noise(rng, grain / 4))


def _stripes(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Bands that wander a little, with noise over them: what repeats is hard to match."""
    bands = max(2, round(TEXTURE_SIDE / (2 * grain)))
    phase = 2 * np.pi * bands * np.arange(TEXTURE_SIDE) / TEXTURE_SIDE
    waves = 0.5 + 0.5 * np.tanh(3 * np.sin(phase[None] + 2.5 * (_spectral_noise(rng, 60) - 0.5)))
    return _smoothed(0.75 * waves + 0.25 * _spectral_noise(rng, grain / 2))


def _tiles(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Squares of random brightness with dark joints."""
    count = max(2, round(TEXTURE_SIDE / (2 * grain)))
    position = np.arange(TEXTURE_SIDE) * count / TEXTURE_SIDE
    cell = position.astype(int)
    values = rng.uniform(0.25, 1, (count, count))[cell[:, None], cell[None]]
    joint = np.minimum(position % 1, 1 - position % 1) < 0.06
    values = np.where(joint[:, None] | joint[None], 0.0, values)
    return _smoothed(0.8 * values + 0.2 * _spectral_noise(rng, grain / 3))


PATTERNS: dict[str, Callable[[np.random.Generator, float], np.ndarray]] = {
    "noise": _spectral_noise,
    "leaves": _leaves,
    "stripes": _stripes,
    "tiles": _tiles,
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
    haze
        RGB that the final pass fades towards, farther layers more.
    noise_seed
        Of the final pass's noise.
    """

    height: int
    width: int
    layers: tuple[Layer, ...]
    haze: tuple[float, float, float] = (178.0, 190.0, 205.0)
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
        marked, as in Sintel.
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
            inside = _inside(layer, x, y) * np.exp(time * layer.motion.zoom)  # in frame pixels
            cover = np.clip(0.5 + inside / (2 * EDGE), 0, 1)
            touched = cover > 0
            colour = (
                _sampled(self._textures[number], x[touched], y[touched])
                * _shading(layer, x[touched], y[touched])[:, None]
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
            cover = (
                _inside(layer, *layer.motion.to_layer(to_x[behind], to_y[behind], time + 1)) >= 0
            )
            occluded[behind] |= cover
        in_frame = (
            (to_x >= 0)
            & (to_x <= self.scene.width - 1)
            & (to_y >= 0)
            & (to_y <= self.scene.height - 1)
        )
        return occluded & in_frame

    def _final(
        self, clean: np.ndarray, flow: np.ndarray, depth: np.ndarray, time: float
    ) -> np.ndarray:
        """Blur along the motion (a shutter open for half of the frame's time), haze with distance,
        noise.
        """
        shutter = np.linspace(-0.25, 0.25, 7)
        blurred = sum(
            _sampled_frame(clean, self._x + share * flow[0], self._y + share * flow[1])
            for share in shutter
        ) / len(shutter)
        haze = 0.28 * (1 - depth) * np.ones_like(blurred)
        hazy = (1 - haze) * blurred + haze * np.array(self.scene.haze)[:, None, None]
        rng = np.random.default_rng([self.scene.noise_seed, round(1000 * time)])
        return np.clip(hazy + rng.normal(0, 2.5, hazy.shape), 0, 255)


def _inside(layer: Layer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.full(x.shape, np.inf) if layer.shape is None else layer.shape.inside(x, y)


def _shading(layer: Layer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light from above left, fixed to the layer, so that shapes look round."""
    if layer.shape is None:
        return np.ones(x.shape)
    return (
        1
        - 0.28 * np.clip((x + y) / (1.4 * layer.shape.reach), -0.6, 1)
        - 0.12 * np.exp(-layer.shape.inside(x, y) / 6)
    )


def _sampled(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear interpolation in a repeating texture at layer coordinates (M,): (M, 3)."""
    x, y = x * SAMPLES_PER_PIXEL, y * SAMPLES_PER_PIXEL
    left, above = np.floor(x).astype(int), np.floor(y).astype(int)
    x, y = (x - left)[:, None], (y - above)[:, None]
    left, above = left % TEXTURE_SIDE, above % TEXTURE_SIDE
    right, below = (left + 1) % TEXTURE_SIDE, (above + 1) % TEXTURE_SIDE
    upper = (1 - x) * texture[above, left] + x * texture[above, right]
    lower = (1 - x) * texture[below, left] + x * texture[below, right]
    return (1 - y) * upper + y * lower


def _sampled_frame(frame: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear interpolation in a frame (3, H, W) whose edge goes on for ever."""
    _, height, width = frame.shape
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, above = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    x, y = x - left, y - above
    upper = (1 - x) * frame[:, above, left] + x * frame[:, above, left + 1]
    lower = (1 - x) * frame[:, above + 1, left] + x * frame[:, above + 1, left + 1]
    return (1 - y) * upper + y * lower


# --- scenes from a seed ---------------------------------------------------------------------------

_PALETTES = (
    ((38, 44, 62), (214, 196, 160)),
    ((22, 58, 66), (240, 212, 120)),
    ((70, 30, 36), (236, 170, 130)),
    ((34, 66, 44), (190, 214, 140)),
    ((54, 40, 82), (206, 178, 226)),
    ((80, 56, 26), (250, 228, 190)),
    ((20, 40, 84), (140, 198, 236)),
)


def make_scene(seed: int, *, height: int, width: int, speed: float, layers: int = 12) -> Scene:
    """A scene from a seed.

    Parameters
    ----------
    speed
        Pixels per frame that the fastest layers reach at a width of 1024; displacements are spread
        below it with many small ones.
    layers
        Shapes in front of the background.
    """
    rng = np.random.default_rng(seed)
    scale = width / 1024
    camera = Motion(
        start=(width / 2, height / 2),
        step=tuple(rng.uniform(-0.15, 0.15, 2) * speed * scale),
        turn=rng.uniform(-0.01, 0.01),
        zoom=rng.uniform(-0.012, 0.012),
    )
    stack = [Layer(_texture(rng, 0, scale), camera)]
    for number in range(layers):
        nearness = (number + 1) / layers
        step = np.array(camera.step) + _heavy_tailed(rng) * speed * scale * nearness
        motion = Motion(
            # kept away from the rim at time 1.5, so that most shapes are seen in most frames
            start=tuple(rng.uniform([0.05, 0.1], [0.95, 0.9]) * (width, height) - 1.5 * step),
            step=tuple(step),
            turn=rng.normal(0, 0.03) * rng.integers(0, 2),
            zoom=rng.normal(0, 0.02) * rng.integers(0, 2),
        )
        stack.append(Layer(_texture(rng, number + 1, scale), motion, _shape(rng, nearness, scale)))
    return Scene(height, width, tuple(stack), noise_seed=seed)


def _heavy_tailed(rng: np.random.Generator) -> np.ndarray:
    """A displacement whose length is at most one, mostly small: the cube of a Gaussian, as
    FlyingChairs' generator draws it.
    """
    length = min(1.0, abs(rng.standard_normal()) ** 3 / 3)
    angle = rng.uniform(0, 2 * np.pi)
    return length * np.array([np.cos(angle), 0.6 * np.sin(angle)])


def _texture(rng: np.random.Generator, number: int, scale: float) -> Texture:
    kinds = list(PATTERNS)
    dark, light = _PALETTES[rng.integers(len(_PALETTES))]
    kind = "noise" if number == 0 else kinds[rng.integers(len(kinds))]
    grain = rng.uniform(30, 60) if number == 0 else rng.uniform(8, 26)
    return Texture(kind, int(rng.integers(2**31)), float(grain * max(scale, 0.4)), dark, light)


def _shape(rng: np.random.Generator, nearness: float, scale: float) -> Shape:
    lobes = int(rng.integers(0, 8))
    return Shape(
        radius=float(rng.uniform(45, 95) * (0.7 + 0.6 * nearness) * scale),
        lobes=lobes,
        depth=float(rng.uniform(0.06, 0.3)) if lobes > 1 else 0.0,
        stretch=float(np.exp(rng.normal(0, 0.35))),
        hole=float(rng.uniform(0.3, 0.6)) if rng.random() < 0.3 else 0.0,
    )


# --- the demo set ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoScene:
    """A scene of the demo set: a name for tables, a seed, and a speed (see ``make_scene``)."""

    name: str
    seed: int
    speed: float


DEMO_SCENES = (DemoScene("drift", 10, 8.0), DemoScene("rush", 34, 60.0))


def estimate_bytes(*, scenes: int, frames: int, height: int, width: int) -> int:
    """Upper bound for the files of a rendered set: two passes of frames that hardly compress, flow,
    masks.
    """
    return (
        scenes
        * frames
        * (2 * 3 * height * width + flow_file_bytes(height, width) + 2 * height * width // 8)
    )


def render_demo(
    root: Path,
    *,
    scenes: tuple[DemoScene, ...] = DEMO_SCENES,
    frames: int = 4,
    height: int = 436,
    width: int = 1024,
    track: Callable[..., Iterable] | None = None,
) -> Path:
    """Render the demo set into ``root`` in Sintel's layout and return ``root``; the same pixels
    every time.

    Parameters
    ----------
    track
        ``gma_lib.runs.progress.track``, or None for silence.
    """
    if frames < 2:
        raise ValueError(f"a scene has at least two frames, not {frames}")
    root = Path(root)
    require_free_space(
        root, estimate_bytes(scenes=len(scenes), frames=frames, height=height, width=width)
    )
    renderers = {
        scene.name: Renderer(make_scene(scene.seed, height=height, width=width, speed=scene.speed))
        for scene in scenes
    }
    todo = [(name, number) for name in renderers for number in range(1, frames + 1)]
    for name, number in track(todo, label="rendering", unit="frame") if track else todo:
        _write(
            root / "training",
            name,
            number,
            renderers[name].render(number - 1),
            with_truth=number < frames,
        )
    return root


def _write(
    folder: Path, scene: str, number: int, rendering: Rendering, *, with_truth: bool
) -> None:
    file = f"frame_{number:04d}"
    write_frame(folder / "clean" / scene / f"{file}.png", rendering.clean)
    write_frame(folder / "final" / scene / f"{file}.png", rendering.final)
    if with_truth:
        write_flow(folder / "flow" / scene / f"{file}.flo", rendering.flow)
        write_mask(folder / "occlusions" / scene / f"{file}.png", rendering.occluded)
        write_mask(folder / "invalid" / scene / f"{file}.png", np.zeros_like(rendering.occluded))
