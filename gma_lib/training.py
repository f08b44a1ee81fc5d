"""From procedural scenes to weights: training on pictures whose motion is known because the package draws them itself.

Scenes are layers like those of ``gma_lib.synthetic`` (the same ``Motion``), but outlines and textures come from banks drawn once,
and rendering happens in PyTorch on the device that trains. Every scene is a function of the seed and its number alone: training that
was killed and resumed sees the same scenes as training that was not, and nothing has to be remembered about the generator.

    python -m gma_lib.training --config params/train.yaml --out FOLDER [--resume | --weights FILE]
    python -m gma_lib.training --config params/train.yaml --score gma-procedural
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from gma_lib.checkpoints import load_checkpoint, load_model, save_checkpoint
from gma_lib.classical import dis
from gma_lib.metrics import ErrorSums, error_sums
from gma_lib.model import GMA, STRIDE, GMAConfig, check_sides, correlation_pyramid, upsample_flow
from gma_lib.runs import written_whole
from gma_lib.synthetic import Motion

TEXTURE_SIDE = 512  # samples
OUTLINE_SIDE = 192  # samples
OUTLINE_REACH = 1.25  # the bank's outlines lie within one unit; samples cover a little more
EDGE = 0.7  # half width, in pixels, of the ramp that smooths an edge
LARGEST_FLOW = 400.0  # pixels; what moves faster is not learnt from, as in RAFT's training
WARP_STEPS = 6  # fixed-point steps that invert a non-rigid warp; each divides the error by three or more
LARGEST_BATCH = 64  # scene numbers set aside for each step
# Numbers of held-out scenes start here; training counts up from 0.
HELD_OUT = 1_000_000_000


# --- configuration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """One stretch of the curriculum.

    Attributes
    ----------
    steps
        Optimiser steps.
    height, width, batch_size
        Of what the network sees.
    num_updates
        Refinements; with 0 only the features learn, from the matching loss.
    lead_updates
        At every other step a random number of refinements, at most this many, run ahead without gradient: what is learnt then starts where
        many updates have led, so that still more of them do not lead away.
    learning_rate
        At its highest; it rises over the first twentieth of the phase and falls linearly to ``final_learning_rate``.
    layers
        Fewest and most objects in front of the background.
    min_displacement, max_displacement
        Pixels; scenes draw their speed between them, evenly on a logarithmic scale. With a minimum of 2 px or less a tenth of the scenes
        move by less than about a pixel.
    photometric
        From 0 (clean) to 1: strength of noise, blur, haze, shadows and changes of light between the frames.
    learn_occluded
        Whether pixels that become covered are learnt from. Leaving them out at first helps (Kwon et al.,
        https://arxiv.org/abs/2308.07378).
    matching
        Weight of the matching loss, see ``matching_loss``; 0 for none.
    freeze_batch_norm
        Use and keep running statistics: those of one or two scenes are too rough.
    """

    name: str
    steps: int
    height: int
    width: int
    batch_size: int
    num_updates: int
    lead_updates: int
    learning_rate: float
    final_learning_rate: float
    layers: tuple[int, int]
    min_displacement: float
    max_displacement: float
    photometric: float
    learn_occluded: bool
    matching: float
    freeze_batch_norm: bool

    def __post_init__(self):
        _check_types(self)
        for name in ("steps", "batch_size", "min_displacement", "learning_rate"):
            _check(self, name, getattr(self, name) > 0, "above 0")
        _check(self, "max_displacement", self.max_displacement > self.min_displacement, f"above min_displacement ({self.min_displacement})")
        _check(self, "final_learning_rate", 0 <= self.final_learning_rate <= self.learning_rate, "between 0 and learning_rate")
        _check(self, "batch_size", self.batch_size <= LARGEST_BATCH, f"at most {LARGEST_BATCH}")
        _check(self, "num_updates", self.num_updates >= 0, "at least 0")
        _check(self, "lead_updates", self.lead_updates >= 0, "at least 0")
        _check(self, "matching", self.matching >= (0 if self.num_updates else 1e-6), "at least 0, and above it where num_updates is 0")
        _check(self, "layers", 0 <= self.layers[0] <= self.layers[1], "two rising numbers from 0 up")
        _check(self, "photometric", 0 <= self.photometric <= 1, "between 0 and 1")
        check_sides(self.height, self.width)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what training computes.

    Attributes
    ----------
    seed
        Of weights, banks and scenes.
    textures
        Size of the texture bank.
    precision
        ``bfloat16`` (coordinates, correlation and loss stay float32) or ``float32``.
    sequence_gamma
        Each earlier update's loss counts this much less (RAFT, equation 7).
    clip
        Largest norm of a gradient.
    ema_decay
        Of the averaged weights, which are validated and shipped.
    checkpoint_minutes, validate_every
        How often to save (minutes) and to validate (steps).
    validation_pairs
        Scenes of each held-out family.
    """

    seed: int
    textures: int
    precision: str
    sequence_gamma: float
    weight_decay: float
    clip: float
    ema_decay: float
    checkpoint_minutes: float
    validate_every: int
    validation_pairs: int
    phases: tuple[Phase, ...]

    def __post_init__(self):
        _check_types(self)
        _check(self, "precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        for name in ("textures", "clip", "checkpoint_minutes", "validate_every", "validation_pairs"):
            _check(self, name, getattr(self, name) > 0, "above 0")
        for name in ("sequence_gamma", "ema_decay"):
            _check(self, name, 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        _check(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        _check(self, "phases", len(self.phases) > 0, "a list of at least one phase")

    @property
    def steps(self) -> int:
        """Of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int]:
        """The phase that ``step`` (from 0) belongs to, and the step's number within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise IndexError(f"the configuration has {self.steps} steps")

    def learning_rate(self, step: int) -> float:
        """One cycle per phase: up over a twentieth of it, then down linearly."""
        phase, within = self.at(step)
        rise = max(1, phase.steps // 20)
        if within < rise:
            return phase.learning_rate * (within + 1) / rise
        share = (within - rise) / max(1, phase.steps - rise)
        return phase.learning_rate + share * (phase.final_learning_rate - phase.learning_rate)


PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def _check(settings: object, name: str, fine: bool, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{name} is {wanted}, not {getattr(settings, name)!r}")


def _check_types(settings: object) -> None:
    """Fields hold what their annotation says; whole numbers pass for floats, True does not pass for 1."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        wanted = (int, float) if field.type is float else field.type
        if wanted in (int, str, bool, (int, float)) and (not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool)):
            raise ValueError(f"{field.name} is of type {field.type.__name__}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is a finite number, not {value!r}")


def load_config(path: Path) -> TrainingConfig:
    """Read a configuration; unknown, missing and impossible entries are refused by name."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        return config_from(yaml.safe_load(text))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def config_from(content: dict) -> TrainingConfig:
    """A configuration from plain values, as YAML and checkpoints hold them."""
    _check_names(content, TrainingConfig, "the configuration")
    if not isinstance(content["phases"], list):
        raise ValueError(f"phases is a list, not {content['phases']!r}")
    phases = []
    for number, phase in enumerate(content["phases"]):
        _check_names(phase, Phase, f"phase {number}")
        layers = phase["layers"]
        if not isinstance(layers, list | tuple) or len(layers) != 2 or not all(type(count) is int for count in layers):
            raise ValueError(f"phase {number}: layers is two whole numbers, fewest and most, not {layers!r}")
        phases.append(Phase(**phase | {"layers": tuple(layers)}))
    return TrainingConfig(**content | {"phases": tuple(phases)})


def _check_names(content: object, kind: type, where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is a mapping of names to values, not {content!r}")
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(map(str, content)) - set(known))
    missing = [name for name in known if name not in content]
    if unknown or missing:
        parts = [f"{words} {', '.join(names)}" for words, names in (("unknown", unknown), ("missing", missing)) if names]
        raise ValueError(f"{where}: {'; '.join(parts)} (it has {', '.join(known)})")


# --- banks of textures and outlines ---------------------------------------------------------------------------------
#
# A texture is float32 (512, 512, 3), 0..1, three loosely related channels; scenes mix the channels to colours of their own.


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
        middle, colour = rng.uniform(0, TEXTURE_SIDE, 2), rng.random(3) * rng.uniform(0.4, 1) + rng.normal(0, 0.1)
        if rng.random() < 0.5:
            axes = (int(radius), max(1, int(radius * rng.uniform(0.3, 1))))
            cv2.ellipse(canvas, middle.astype(int).tolist(), axes, rng.uniform(0, 360), 0, 360, colour.tolist(), -1)
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
    return 0.5 + x[..., None] * slope[0] + y[..., None] * slope[1] + rng.uniform(0.03, 0.25) * (_noise_texture(rng) - 0.5)


def _marks_texture(rng: np.random.Generator) -> np.ndarray:
    """Writing-like marks on a mottled ground."""
    canvas = np.ascontiguousarray(255 * (0.5 + 0.4 * (_noise_texture(rng) - 0.5))).astype(np.uint8)  # all that putText draws on
    letters = np.array(list("abcdefghkmnprstuvwxyzABEGHKMRSTX0123456789#&%?"))
    for _ in range(int(rng.integers(30, 160))):
        place = rng.integers(-20, TEXTURE_SIDE, 2).tolist()
        size, colour = rng.uniform(0.4, 2.5), (255 * rng.random(3)).tolist()
        word = "".join(rng.choice(letters, rng.integers(1, 7)))
        cv2.putText(canvas, word, place, int(rng.integers(0, 8)), size, colour, int(rng.integers(1, 5)), cv2.LINE_8)
    return canvas / np.float32(255)


def _strokes_texture(rng: np.random.Generator) -> np.ndarray:
    """Hair, straw or grass: many curved strokes of about one direction."""
    canvas = np.ascontiguousarray(_smooth_texture(rng), np.float32)
    direction, spread = rng.uniform(0, np.pi), rng.uniform(0.05, 0.8)
    for _ in range(int(rng.integers(400, 1500))):
        angle = direction + rng.normal(0, spread)
        along = np.linspace(0, rng.uniform(20, 120), 6)[:, None] * [np.cos(angle), np.sin(angle)]
        bend = rng.normal(0, 6) * np.linspace(0, 1, 6)[:, None] ** 2 * [-np.sin(angle), np.cos(angle)]
        points = (rng.uniform(-40, TEXTURE_SIDE, 2) + along + bend).astype(np.int32)
        cv2.polylines(canvas, [points], False, (rng.random(3) * rng.random()).tolist(), int(rng.integers(1, 5)))
    return canvas


def _patched_texture(rng: np.random.Generator) -> np.ndarray:
    """Two textures side by side, as moss on stone."""
    mask = np.clip(0.5 + rng.uniform(4, 20) * (_noise(rng, 2.0) - rng.uniform(0.3, 0.7)), 0, 1)[..., None]
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
    return np.stack([0.5 + 0.5 * np.sin(2 * np.pi * bent + shift) for shift in rng.uniform(0, 1.5, 3)], axis=-1) ** 2


def _bricks_texture(rng: np.random.Generator) -> np.ndarray:
    """Rows of bricks of random shades with joints."""
    height, width = rng.uniform(18, 50), rng.uniform(30, 110)
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32)
    row = (y // height).astype(int)
    x = x + (row % 2) * width / 2
    shade = rng.uniform(0.3, 1, (64, 64))[row % 64, (x // width).astype(int) % 64]
    joint = (np.minimum(y % height, height - y % height) < 2) | (np.minimum(x % width, width - x % width) < 2)
    rough = 0.3 * (_noise(rng, 1.0) - 0.5)
    return np.where(joint, 0.15, shade + rough)[..., None] * rng.uniform(0.5, 1, 3)


HELD_OUT_TEXTURES = (_cells_texture, _marble_texture, _bricks_texture)


def _texture_bank(makers: tuple, count: int, seed: int) -> Tensor:
    """(count, 3, 512, 512), 0..1, low-passed so that linear interpolation blurs both frames alike."""
    bank = np.empty((count, 3, TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        texture = np.asarray(makers[number % len(makers)](rng), np.float32)
        texture = cv2.GaussianBlur(texture, (0, 0), rng.uniform(0.7, 1.1))
        bank[number] = np.clip(texture, 0, 1).transpose(2, 0, 1)
    return torch.from_numpy(bank)


def _drawn_outline(rng: np.random.Generator) -> np.ndarray:
    """A silhouette, uint8 (side, side): blobs, polygons and bars joined, sometimes with holes or only a thin rest."""
    canvas = np.zeros((OUTLINE_SIDE, OUTLINE_SIDE), np.uint8)
    unit = OUTLINE_SIDE / (2 * OUTLINE_REACH)
    for part in range(int(rng.integers(1, 6))):
        middle = OUTLINE_SIDE / 2 + unit * rng.uniform(-0.5, 0.5, 2) * (part > 0)
        kind, size = rng.integers(4), unit * rng.uniform(0.25, 0.5 if part else 0.95)
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        radii = np.full(60, size)
        if kind == 0:  # a wavy blob
            radii *= 1 + sum(rng.normal(0, 0.25 / k) * np.cos(k * angles + rng.uniform(0, 6.3)) for k in range(2, 7))
        elif kind == 1:  # a polygon, convex or a star
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 14)))
            radii = size * rng.uniform(0.35, 1, len(angles))
        elif kind == 2:  # a bar
            angles = np.array([-0.1, 0.1, np.pi - 0.1, np.pi + 0.1]) + rng.uniform(0, np.pi)
            radii = np.full(4, min(unit, 1.6 * size))
        points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1)], axis=-1) * radii[:, None]
        cv2.fillPoly(canvas, [(middle + np.clip(points, -1.1 * unit, 1.1 * unit)).astype(np.int32)], 255)
    if rng.random() < 0.25:
        hole = (OUTLINE_SIDE / 2 + unit * rng.uniform(-0.3, 0.3, 2)).astype(int).tolist()
        cv2.circle(canvas, hole, int(unit * rng.uniform(0.12, 0.4)), 0, -1)
    return canvas


def _outline_bank(count: int, seed: int) -> Tensor:
    """Signed distances to outlines, (count, 1, side, side), positive inside, in units of the outline's half size."""
    bank = np.empty((count, 1, OUTLINE_SIDE, OUTLINE_SIDE), np.float32)
    for number in range(count):
        drawn = _drawn_outline(np.random.default_rng([seed, 7, number]))
        inside, outside = (cv2.distanceTransform(mask, cv2.DIST_L2, 5) for mask in (drawn, 255 - drawn))
        # a drawing that its own hole swallowed is infinitely far from everything
        distance = np.clip(inside - outside, -OUTLINE_SIDE, OUTLINE_SIDE)
        bank[number, 0] = cv2.GaussianBlur(distance, (0, 0), 1.2) * (2 * OUTLINE_REACH / OUTLINE_SIDE)
    return torch.from_numpy(bank)


# --- scenes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayeredScene:
    """Two frames' worth of layers, back to front, as tensors; L layers, the first fills the frame.

    Attributes
    ----------
    to_layer
        (2, L, 3, 3): homogeneous frame coordinates at each of the two times -> the layer's own, in pixels.
    warp
        (L, 2, 3): amplitude in pixels, wave vector length and phase of a wave in x and in y by which a layer bends until frame 2.
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
        (dx, dy, softness) in pixels and darkness of the shadows that layers cast on those behind; darkness 0 for none.
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
        return LayeredScene(**{name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()})


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
    projective: bool = False,
) -> LayeredScene:
    """A scene from a generator.

    Parameters
    ----------
    min_displacement, max_displacement
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
            carried = dataclasses.replace(camera, step=tuple((0.6 + 0.8 * nearness[layer]) * np.array(camera.step)))
            matrices[1, layer] = matrices[1, layer] @ np.linalg.inv(_matrix(carried, 0)) @ _matrix(carried, 1)
        if projective:
            middle = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
            tilt = np.eye(3) + rng.normal(0, 1, (3, 3)) * [[0.02, 0.02, 0], [0.02, 0.02, 0], [2.5e-4, 2.5e-4, 0]] * min(1, speed / 10)
            matrices[1, layer] = matrices[1, layer] @ middle @ tilt @ np.linalg.inv(middle)
        size[layer] = height * np.clip(np.exp(rng.normal(-1.4, 0.6)), 0.07, 0.9)
    colour, mix = _colours(rng, count + 1)
    hazy = photometric * rng.uniform(0, 0.6) * (rng.random() < 0.4)
    shadowed = photometric * rng.uniform(0.2, 0.7) * (rng.random() < 0.5)
    tensors = {
        "to_layer": matrices,
        "warp": _warps(rng, speed, size, projective),
        "outline_map": _map(rng, 1 / (size * OUTLINE_REACH), stretch=0.35),
        "texture_map": _map(rng, rng.uniform(0.6, 1.8, count + 1) * 2 / TEXTURE_SIDE, stretch=0.15, shift=1.0),
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
    """Most objects move little, a few move far: a power of a Gaussian, after FlyingChairs' generator."""
    angle, length = rng.uniform(0, 2 * np.pi), speed * min(1.0, rng.standard_normal() ** 2 / 2.5)
    return Motion(
        start=(rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height),
        step=(length * np.cos(angle), 0.7 * length * np.sin(angle)),
        turn=rng.normal(0, min(0.2, 0.02 * speed)) * (rng.random() < 0.6),
        zoom=rng.normal(0, min(0.1, 0.01 * speed)) * (rng.random() < 0.6),
    )


def _matrix(motion: Motion, time: float) -> np.ndarray:
    """The affine map ``motion.to_layer`` as a homogeneous matrix."""
    origin, right, down = (np.array(motion.to_layer(x, y, time)) for x, y in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    return np.vstack([np.stack([right - origin, down - origin, origin], axis=1), [0, 0, 1]])


def _map(rng: np.random.Generator, scale: np.ndarray, *, stretch: float, shift: float = 0.0) -> np.ndarray:
    """Maps (L, 2, 3) that scale, turn at random, stretch and shift."""
    angle, wider = rng.uniform(0, 2 * np.pi, scale.shape), np.exp(rng.normal(0, stretch, scale.shape))
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    offset = rng.uniform(-shift, shift, (2, *scale.shape)) if shift else np.zeros((2, *scale.shape))
    rows = [[cosine * wider, -sine * wider, offset[0]], [sine / wider, cosine / wider, offset[1]]]
    return np.array(rows).transpose(2, 0, 1)


def _warps(rng: np.random.Generator, speed: float, size: np.ndarray, rigid: bool) -> np.ndarray:
    """Waves (L, 2, 3) by which some layers bend; their steepness stays below 1/3, so the bend can be undone."""
    bends = (rng.random(size.shape) < 0.3) & (not rigid)
    wave = 2 * np.pi / (size * rng.uniform(1.0, 3.0, size.shape))
    amplitude = bends * np.minimum(0.3 / wave * rng.random(size.shape), 0.3 * speed)
    return np.stack([[amplitude, wave, rng.uniform(0, 6.3, size.shape)] for _ in range(2)]).transpose(2, 0, 1)


def _colours(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours of layers; a third share the palette of the one behind, so that some edges hardly show."""
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


# --- rendering ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingPair:
    """Two frames (3, H, W), 0..255, the flow (2, H, W) between them in pixels, and which pixels (H, W) are covered in the second."""

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
        y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=self.device) for n in (height, width)), indexing="ij")
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
        """Distance (L, P) in pixels to each layer's outline, positive inside; the background has no end."""
        grid = _mapped(scene.outline_map, place)[:, None]  # (L, 1, P, 2)
        distance = F.grid_sample(self.outlines[scene.outline], grid, padding_mode="border", align_corners=False)
        # Beyond the bank's square the border value would go on for ever; it lies outside every outline.
        beyond = (grid.abs().amax(dim=-1) - 1).clamp(min=0)[:, 0] * OUTLINE_REACH
        distance = (distance[:, 0, 0] - beyond) * scene.outline_unit[:, None]
        return torch.cat([torch.full_like(distance[:1], torch.inf), distance[1:]])

    def _composite(self, scene: LayeredScene, place: Tensor, distance: Tensor) -> Tensor:
        """Colours (P, 3), 0..1, of all layers laid over each other with smooth edges and soft shadows."""
        grid = _mapped(scene.texture_map, place)[:, None]
        texture = F.grid_sample(self.textures[scene.texture], grid, padding_mode="reflection", align_corners=False)[:, :, 0]
        colour = scene.colour[:, :, None] + scene.mix @ (texture - 0.5)  # (L, 3, P)
        shade = 1 + (place @ scene.shade[:, :, None])[..., 0].clamp(-0.5, 0.5)
        haze = scene.haze[:, None, None]
        colour = (1 - haze) * colour * shade[:, None] + haze * scene.haze_colour[:, None]
        cover = (0.5 + distance / (2 * EDGE)).clamp(0, 1)
        *offset, softness, darkness = scene.shadow
        if darkness:
            cast = self._distance(scene, place - torch.tensor(offset, dtype=torch.float32, device=self.device))
            light = 1 - darkness * (0.5 + cast / (2 * softness)).clamp(0, 1)
        canvas = colour[0]
        for layer in range(1, len(colour)):
            below = canvas * light[layer] if darkness else canvas
            canvas = below + cover[layer] * (colour[layer] - below)
        return canvas.clamp(0, 1).T

    def _covered(self, scene: LayeredScene, target: Tensor, top: Tensor, height: int, width: int) -> Tensor:
        """Points (P,) whose place in frame 2 lies in the frame and under another layer."""
        homogeneous = torch.cat([target, torch.ones_like(target[:, :1])], dim=-1)
        distance = self._distance(scene, _layer_coordinates(scene, homogeneous, 1))
        in_front = torch.arange(len(distance), device=self.device)[:, None] > top
        last = torch.tensor([width - 1, height - 1], device=self.device)
        return ((distance >= 0) & in_front).any(dim=0) & ((target >= 0) & (target <= last)).all(dim=-1)


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
    """Points (P, 2) of the layers ``top`` -> where they are in frame 2, (P, 2); the inverse of ``_layer_coordinates``."""
    place = place + _bend(scene.warp[top], place)
    inverse = torch.linalg.inv(scene.to_layer[1].double()).float()[top]  # (P, 3, 3)
    mapped = (inverse @ torch.cat([place, torch.ones_like(place[:, :1])], dim=-1)[..., None])[..., 0]
    return mapped[:, :2] / mapped[:, 2:]


# --- what a camera adds ---------------------------------------------------------------------------------------------


def photographed(pair: TrainingPair, rng: np.random.Generator, strength: float) -> TrainingPair:
    """The pair as a camera might see it: light that stays where it is, other exposure, blur, noise. Flow stays exact."""
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
        frames = [frame + sigma * torch.randn(frame.shape, generator=noise).to(frame.device) for frame in frames]
    image1, image2 = (255 * frame.clamp(0, 1) for frame in frames)
    return dataclasses.replace(pair, image1=image1, image2=image2)


def _light(rng: np.random.Generator, frame: Tensor) -> Tensor:
    """A field of brightness (1, H, W) that does not move with anything."""
    coarse = torch.from_numpy(rng.uniform(0.55, 1.3, (1, 1, 3, 4)).astype(np.float32)).to(frame.device)
    return F.interpolate(coarse, size=frame.shape[-2:], mode="bicubic", align_corners=True)[0]


def _exposure(rng: np.random.Generator, spread: float) -> tuple[float, float, np.ndarray]:
    return float(np.exp(rng.normal(0, spread))), float(np.exp(rng.normal(0, spread))), np.exp(rng.normal(0, spread / 4, 3))


def _exposed(frame: Tensor, gain: float, gamma: float, tint: np.ndarray) -> Tensor:
    tint = torch.from_numpy(tint.astype(np.float32)).to(frame.device)[:, None, None]
    return (gain * tint * frame).clamp(0, 1) ** gamma


def _soft(frame: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-4, 5, dtype=torch.float32, device=frame.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(frame[:, None], (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))[:, 0]


def _moving_blur(frames: list[Tensor], flow: Tensor, shutter: float) -> list[Tensor]:
    """Blur along the motion, as in Sintel's final pass; frame 2 takes the motion at the same place of frame 1."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=flow.device) for n in (height, width)), indexing="ij")
    size = torch.tensor([width, height], dtype=torch.float32, device=flow.device)
    shares = torch.linspace(-0.5, 0.5, 7, device=flow.device) * shutter
    grid = torch.stack([x, y], dim=-1) + shares[:, None, None, None] * flow.permute(1, 2, 0)  # (7, H, W, 2)
    grid = (2 * grid + 1) / size - 1
    blurred = [F.grid_sample(frame.expand(len(shares), -1, -1, -1), grid, padding_mode="border", align_corners=False) for frame in frames]
    return [samples.mean(dim=0) for samples in blurred]


class PairSource:
    """Scenes by number, rendered: the same number, the same pair.

    Parameters
    ----------
    config
        Decides banks and seeds.
    """

    def __init__(self, config: TrainingConfig, device: torch.device | str = "cpu"):
        self.config = config
        outlines = _outline_bank(64, config.seed)
        self.renderer = SceneRenderer(_texture_bank(TRAINING_TEXTURES, config.textures, config.seed), outlines, device)

    def pair(self, number: int, phase: Phase) -> TrainingPair:
        """The scene with this number as a phase sees it."""
        return _pair(self.renderer, np.random.default_rng([self.config.seed, number]), phase, projective=False)

    def batch(self, step: int, phase: Phase) -> TrainingPair:
        """What step ``step`` learns from; each field with a leading batch dimension."""
        pairs = [self.pair(LARGEST_BATCH * step + index, phase) for index in range(phase.batch_size)]
        return TrainingPair(*(torch.stack([getattr(pair, field.name) for pair in pairs]) for field in dataclasses.fields(TrainingPair)))


def _pair(renderer: SceneRenderer, rng: np.random.Generator, phase: Phase, *, projective: bool) -> TrainingPair:
    scene = draw_scene(
        rng,
        height=phase.height,
        width=phase.width,
        min_displacement=phase.min_displacement,
        max_displacement=phase.max_displacement,
        layers=phase.layers,
        photometric=phase.photometric,
        bank_sizes=(len(renderer.textures), len(renderer.outlines)),
        projective=projective,
    )
    pair = renderer.render(scene, height=phase.height, width=phase.width)
    return photographed(pair, rng, phase.photometric) if phase.photometric else pair


# --- validation -----------------------------------------------------------------------------------------------------

VALIDATION = Phase(
    name="validation",
    steps=1,
    height=256,
    width=448,
    batch_size=1,
    num_updates=12,
    lead_updates=0,
    learning_rate=1.0,
    final_learning_rate=0.0,
    layers=(4, 11),
    min_displacement=1.5,
    max_displacement=60.0,
    photometric=0.7,
    learn_occluded=True,
    matching=0.0,
    freeze_batch_norm=True,
)


def validation_families(config: TrainingConfig, source: PairSource, phase: Phase = VALIDATION) -> dict[str, list[TrainingPair]]:
    """Held-out scenes: ``layers`` with unseen seeds, ``planes`` with textures of other kinds, moved by homographies."""
    families = {"layers": [], "planes": []}
    other = SceneRenderer(_texture_bank(HELD_OUT_TEXTURES, 12, config.seed + 1), _outline_bank(24, config.seed + 1), source.renderer.device)
    for number in range(config.validation_pairs):
        families["layers"].append(source.pair(HELD_OUT + number, phase))
        rng = np.random.default_rng([config.seed + 1, HELD_OUT + number])
        families["planes"].append(_pair(other, rng, phase, projective=True))
    return families


def score(flows_of: Callable[[Tensor, Tensor], dict[str, np.ndarray]], pairs: list[TrainingPair]) -> dict[str, dict[str, ErrorSums]]:
    """Sums of errors over all pixels of all pairs: for each method, for every group of ``gma_lib.metrics``.

    Parameters
    ----------
    flows_of
        Two frames (1, 3, H, W) -> flow (2, H, W) by the name of what made it.
    """
    total: dict[str, dict[str, ErrorSums]] = {}
    for pair in pairs:
        truth, occluded = pair.flow.cpu().numpy(), pair.occluded.cpu().numpy()
        for method, flow in flows_of(pair.image1[None], pair.image2[None]).items():
            sums = error_sums(flow, truth, occluded=occluded)
            known = total.setdefault(method, {name: ErrorSums() for name in sums})
            total[method] = {name: known[name] + sums[name] for name in sums}
    return total


def network_flows(model: GMA, updates: tuple[int, ...]) -> Callable[[Tensor, Tensor], dict[str, np.ndarray]]:
    """The network's flow after each of the given numbers of updates, in float32, as ``score`` asks for it."""

    def flows_of(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            flows = model.predict_sequence(image1, image2, num_updates=max(updates))
        return {str(count): flows[count - 1][0].float().cpu().numpy() for count in updates}

    return flows_of


def classical_flows(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
    """OpenCV's DIS at its medium preset, for comparison."""
    return {"dis": dis(image1[0].cpu().numpy(), image2[0].cpu().numpy())}


SCORED_UPDATES = (1, 2, 4, 6, 12, 32)
SCORED_GROUPS = ("all", "occluded", "non_occluded", "s0_10", "s10_40", "s40_plus")


def score_card(config: TrainingConfig, weights: str | Path, *, device: str = "cpu") -> dict:
    """Scores of weights and of DIS on both held-out families, as they stand on the card of the shipped weights."""
    model, _ = load_model(weights)
    families = validation_families(config, PairSource(config, device))
    flows_of = network_flows(model.to(device), SCORED_UPDATES)

    def both(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
        return flows_of(image1, image2) | classical_flows(image1, image2)

    return {
        family: {method: {name: sums[name].described() for name in SCORED_GROUPS} for method, sums in score(both, pairs).items()}
        for family, pairs in families.items()
    }


# --- training -------------------------------------------------------------------------------------------------------


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


def sequence_loss(flows: list[Tensor], truth: Tensor, learnt: Tensor, gamma: float) -> Tensor:
    """Mean absolute error over the learnt pixels (N, H, W), the last update counting most (RAFT, equation 7)."""
    weights = [gamma ** (len(flows) - 1 - number) for number in range(len(flows))]
    count = learnt.sum().clamp(min=1)
    return sum(weight * ((flow - truth).abs().sum(dim=1) * learnt).sum() / count for weight, flow in zip(weights, flows, strict=True))


def matching_loss(features1: Tensor, features2: Tensor, truth: Tensor, learnt: Tensor) -> Tensor:
    """Cross entropy of where each cell of frame 1 finds itself in frame 2, given by the correlation's softmax.

    The sequence loss reaches the features only through the recurrent part, which at first cannot read them: both wait for each other
    for a thousand steps. This loss tells the features directly what to match.

    Parameters
    ----------
    features1, features2
        (N, 256, h, w).
    truth, learnt
        Flow (N, 2, H, W) in pixels and pixels (N, H, W) that have a correspondence.
    """
    height, width = features1.shape[-2:]
    # Averages over a cell; the flow in cells, so that cell (i, j) is found at (i, j) + flow.
    flow = F.avg_pool2d(truth, STRIDE) / STRIDE
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=flow.device) for n in (height, width)), indexing="ij")
    x, y = (x + flow[:, 0]).flatten(1), (y + flow[:, 1]).flatten(1)  # (N, P)
    known = (F.avg_pool2d(learnt[:, None].float(), STRIDE) > 0.9).flatten(1)
    known &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    logits = correlation_pyramid(features1, features2)[0].reshape(len(flow), height * width, height * width)
    scores = logits.log_softmax(dim=-1).reshape(len(flow), height * width, height, width)
    # the four cells around the target share it, as in linear interpolation
    share_x = (1 - (x[..., None] - torch.arange(width, device=x.device)).abs()).clamp(min=0)  # (N, P, w)
    share_y = (1 - (y[..., None] - torch.arange(height, device=y.device)).abs()).clamp(min=0)  # (N, P, h)
    entropy = -(share_y[:, :, None] @ scores @ share_x[..., None])[:, :, 0, 0]  # (N, P)
    return (entropy * known).sum() / known.sum().clamp(min=1)


class Trainer:
    """Weights, optimiser and averaged weights between two steps.

    Parameters
    ----------
    config
        What to train.
    weights
        A checkpoint (name or file) to start from: a warm restart, which knows nothing of the optimiser's state.
    device
        Where to train.
    """

    def __init__(self, config: TrainingConfig, *, weights: str | Path | None = None, device: str = "cpu"):
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        self.model = GMA(GMAConfig()).to(self.device)
        if weights is not None:
            self.model.load_state_dict(load_checkpoint(weights).state)
        self.averaged = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        # Before the recurrent part reads the correlation, its clipped gradients are of the order of AdamW's usual epsilon (1e-8),
        # which would stop it from learning.
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-9, weight_decay=config.weight_decay, eps=1e-11)
        self.step = 0
        self.seconds = 0.0
        self.source = PairSource(config, self.device)

    def advance(self) -> dict:
        """Take one step and return what to log about it."""
        phase, _ = self.config.at(self.step)
        started = time.monotonic()
        batch = self.source.batch(self.step, phase)
        rendered = time.monotonic()
        self.model.train()
        if phase.freeze_batch_norm:
            _freeze_batch_norm(self.model)
        loss, about = self._loss(batch, phase)
        if not torch.isfinite(loss):
            raise TrainingDivergedError(
                f"step {self.step} ({phase.name}): the loss is {loss.item()}; the last checkpoint is untouched. "
                "Resume from it with a lower learning_rate."
            )
        rate = self.config.learning_rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not torch.isfinite(norm):
            raise TrainingDivergedError(f"step {self.step} ({phase.name}): the gradient is {norm.item()}; the last checkpoint is untouched")
        self.optimiser.step()
        self._average()
        self.step += 1
        self.seconds += time.monotonic() - started
        return {
            "step": self.step,
            "phase": phase.name,
            "loss": loss.item(),
            **about,
            "learning_rate": rate,
            "gradient": norm.item(),
            "render_seconds": round(rendered - started, 4),
            "seconds": round(self.seconds, 3),
        }

    def _loss(self, batch: TrainingPair, phase: Phase) -> tuple[Tensor, dict[str, float]]:
        precision, model, truth = PRECISIONS[self.config.precision], self.model, batch.flow
        speed = truth.square().sum(dim=1).sqrt()
        learnt = speed < LARGEST_FLOW
        if not phase.learn_occluded:
            learnt &= ~batch.occluded
        with torch.autocast(self.device.type, dtype=precision, enabled=precision is not torch.float32):
            features1, features2 = model.features(batch.image1), model.features(batch.image2)
            flows = []
            if phase.num_updates:
                lead = self._lead(phase)
                updates = model.updates(features1, features2, model.context(batch.image1), None, lead + phase.num_updates, lead=lead)
                flows = [upsample_flow(flow, model.update_block.upsampling_weights(hidden)) for hidden, flow in islice(updates, lead, None)]
        loss, about = torch.zeros((), device=self.device), {}
        if phase.matching:
            matching = matching_loss(features1, features2, truth, learnt & ~batch.occluded)
            loss, about = loss + phase.matching * matching, {"matching": matching.item()}
        if flows:
            loss = loss + sequence_loss(flows, truth, learnt, self.config.sequence_gamma)
            about["epe"] = (flows[-1].detach() - truth).square().sum(dim=1).sqrt().mean().item()
        # what a network that knows nothing would score on these scenes
        return loss, about | {"zero_epe": speed.mean().item()}

    def _lead(self, phase: Phase) -> int:
        if self.step % 2 == 0:
            return 0
        return int(np.random.default_rng([self.config.seed, self.step, 1]).integers(phase.lead_updates + 1))

    @torch.no_grad()
    def _average(self) -> None:
        # young averages follow quickly, or the random start would weigh on them for a thousand steps
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)

    def averaged_model(self) -> GMA:
        """The network with the averaged weights, for validation."""
        model = GMA(GMAConfig()).to(self.device).eval().requires_grad_(False)
        model.load_state_dict(self.averaged)
        return model

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs, whole or not at all."""
        state = {
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
        }
        try:
            with written_whole(path) as partial:
                torch.save(state, partial)
        except RuntimeError as error:  # how torch.save reports a full disk
            raise OSError(f"{path}: the checkpoint could not be written; is the disk full? The one before is untouched") from error

    def resume(self, path: Path) -> None:
        """Go on from a saved state of the same configuration."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no checkpoint to resume from; leave out --resume to start anew")
        state = torch.load(path, map_location=self.device, weights_only=True)
        differing = _differing(state["config"], dataclasses.asdict(self.config))
        if differing:
            raise ValueError(f"{path}: made with a configuration that differs in {', '.join(differing)}; restore it, or start anew")
        self.model.load_state_dict(state["model"])
        self.averaged = state["averaged"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]


def _freeze_batch_norm(model: GMA) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def _differing(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Names of the entries in which two configurations differ."""
    names = []
    for name in new:
        a, b = old.get(name), new[name]
        if name == "phases" and a is not None and len(a) == len(b):
            for number, (before, after) in enumerate(zip(a, b, strict=True)):
                names += _differing(before, after, f"phases[{number}].")
        elif a != b:
            names.append(f"{prefix}{name}")
    return names


def train(config: TrainingConfig, folder: Path, *, resume: bool = False, weights: str | Path | None = None, device: str = "cpu") -> Trainer:
    """Train to the end of the configuration's phases.

    Writes into ``folder``: ``checkpoint.pt`` (to resume), ``averaged.safetensors`` (the averaged weights then), ``best.safetensors`` (those
    of the validation with the lowest EPE, both families counting the same) and ``log.jsonl`` (a line per step and per validation).
    """
    folder = Path(folder)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    if checkpoint.exists() and not resume:
        raise FileExistsError(f"{checkpoint} exists: resume, or name another folder")
    trainer = Trainer(config, weights=weights, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    if resume:
        trainer.resume(checkpoint)
    _cut_log(log, trainer.step)
    families = validation_families(config, trainer.source)
    best = min(map(held_out_epe, read_log(log)[1]), default=math.inf)
    saved = time.monotonic()
    with open(log, "a", encoding="utf-8") as lines:
        for entry in _steps(trainer):
            lines.write(json.dumps(entry) + "\n")
            last = trainer.step == config.steps
            if trainer.step % config.validate_every == 0 or last:
                validation = _validated(trainer, families)
                lines.write(json.dumps(validation) + "\n")
                if held_out_epe(validation) < best:
                    best = held_out_epe(validation)
                    save_checkpoint(folder / "best.safetensors", trainer.averaged)
            lines.flush()
            if last or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save_checkpoint(folder / "averaged.safetensors", trainer.averaged)
                trainer.save(checkpoint)
                saved = time.monotonic()
    return trainer


def _steps(trainer: Trainer) -> Iterator[dict]:
    """Advance to the end, with a line about once in ten seconds."""
    started, first, shown = time.monotonic(), trainer.step, 0.0
    while trainer.step < trainer.config.steps:
        entry = trainer.advance()
        yield entry
        now = time.monotonic()
        if now - shown > 10:
            rate = (trainer.step - first) / (now - started)
            left = (trainer.config.steps - trainer.step) / rate / 60
            print(
                f"{entry['phase']}: step {trainer.step}/{trainer.config.steps}, loss {entry['loss']:.2f}, "
                f"EPE {entry.get('epe', math.nan):.2f} px (of {entry['zero_epe']:.2f}), "
                f"{rate:.2f} steps/s, {left:.0f} min left",
                flush=True,
            )
            shown = now


def _validated(trainer: Trainer, families: dict[str, list[TrainingPair]]) -> dict:
    model = trainer.averaged_model()
    entry = {"step": trainer.step, "validation": {}}
    for family, pairs in families.items():
        groups = score(network_flows(model, (VALIDATION.num_updates,)), pairs)[str(VALIDATION.num_updates)]
        entry["validation"][family] = {name: groups[name].described() for name in ("all", "occluded", "non_occluded")}
        overall = entry["validation"][family]["all"]
        print(f"validation on {family}: EPE {overall['epe']:.2f} px, 1px {100 * overall['px1']:.1f} %", flush=True)
    return entry


def _cut_log(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint, or the curve would hold those steps twice."""
    path.touch()
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the line that was being written when the run was killed
            break
        if entry["step"] <= step:
            kept.append(line)
    with written_whole(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def held_out_epe(validation: dict) -> float:
    """What decides which weights are kept: EPE in pixels, the mean of both families."""
    return sum(family["all"]["epe"] for family in validation["validation"].values()) / len(validation["validation"])


def read_log(path: Path) -> tuple[list[dict], list[dict]]:
    """Entries of ``log.jsonl``: those of steps and those of validations."""
    entries = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if "loss" in entry], [entry for entry in entries if "validation" in entry]


def plot_curves(path: Path):
    """Figure of a ``log.jsonl``: the training error, smoothed, and the held-out error of both families over the steps."""
    from matplotlib.figure import Figure

    steps, validations = read_log(path)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="EPE (px)", yscale="log")
    steps = [entry for entry in steps if "epe" in entry]
    window = max(1, min(50, len(steps)))
    for name, label, colour in (("epe", "training", "0.3"), ("zero_epe", "zero flow on the same scenes", "0.7")):
        smooth = np.convolve([entry[name] for entry in steps], np.ones(window) / window, mode="valid")
        axes.plot([entry["step"] for entry in steps][window - 1 :], smooth, label=f"{label}, mean of {window} steps", color=colour)
    for family in validations[0]["validation"] if validations else ():
        curve = [(entry["step"], entry["validation"][family]["all"]["epe"]) for entry in validations]
        axes.plot(*zip(*curve, strict=True), marker="o", label=f"held out: {family}")
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gma_lib.training", description="Train GMA on procedural scenes.")
    parser.add_argument("--config", type=Path, required=True, help="configuration, such as params/train.yaml")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, help="train, with checkpoints and the log in this folder")
    task.add_argument("--score", metavar="WEIGHTS", help="print the scores of these weights on both held-out families as JSON")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    parser.add_argument("--weights", help="start from these weights (a name or a file) with a fresh optimiser")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.resume and arguments.weights:
        parser.error("--resume continues a run and --weights starts one: give one of the two")
    try:
        config = load_config(arguments.config)
        if arguments.score:
            print(json.dumps(score_card(config, arguments.score, device=arguments.device), indent=1))
        else:
            train(config, arguments.out, resume=arguments.resume, weights=arguments.weights, device=arguments.device)
    except (ValueError, OSError, TrainingDivergedError) as error:
        raise SystemExit(f"training: {error}") from error


if __name__ == "__main__":
    main()
