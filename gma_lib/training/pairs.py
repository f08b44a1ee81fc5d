"""Rendered pairs by number: what training learns from, and the held-out families.

A pair is a function of the seed and its number alone: training that was killed and resumed sees the
same pairs as training that was not, and no generator's state has to be saved.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gma_lib.runs.progress import track
from gma_lib.training.config import SCENES_A_STEP, Phase, TrainingConfig
from gma_lib.training.scenes import SceneRenderer, TrainingPair, draw_scene, pixel_grid
from gma_lib.training.textures import (
    HELD_OUT_TEXTURES,
    TRAINING_TEXTURES,
    cut_photograph,
    draw_outlines,
    draw_textures,
)

# Numbers of held-out scenes start here; training counts up from 0.
HELD_OUT = 1_000_000_000
# Seed of the held-out banks and scenes; training with it, or the next, would have seen them.
HELD_OUT_SEED = 20211010
VALIDATION = Phase(
    name="validation",
    steps=1,
    height=256,
    width=448,
    batch_size=1,
    num_updates=12,
    lead_updates=0,
    loss_power=1.0,
    learning_rate=1.0,
    final_learning_rate=0.0,
    layers=(4, 11),
    min_displacement=1.5,
    max_displacement=60.0,
    photometric=0.7,
    relief=0.0,
    dim=0.0,
    learn_occluded=True,
    matching=0.0,
    freeze_batch_norm=True,
)


class PairSource:
    """Renders pairs by number: the same number gives the same pair.

    Parameters
    ----------
    config
        Decides banks and seeds.
    """

    def __init__(self, config: TrainingConfig, device: torch.device | str = "cpu"):
        self.config = config
        outlines = draw_outlines(64, config.seed)
        textures = draw_textures(TRAINING_TEXTURES, config.textures, config.seed)
        if config.photographs:
            photographs = draw_textures((cut_photograph,), config.photographs, config.seed + 2)
            textures = torch.cat([textures, photographs])
        self.renderer = SceneRenderer(textures, outlines, device)

    def render_pair(self, number: int, phase: Phase) -> TrainingPair:
        """Render the scene with this number as a phase sees it."""
        return _render(self.renderer, [self.config.seed, number], phase)

    def render_batch(self, step: int, phase: Phase) -> TrainingPair:
        """Render the pairs of a step, stacked along a leading batch dimension."""
        first = SCENES_A_STEP * step
        pairs = [
            vars(self.render_pair(number, phase))
            for number in range(first, first + phase.batch_size)
        ]
        return TrainingPair(
            **{name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}
        )


def _render(
    renderer: SceneRenderer, seed: list[int], phase: Phase, *, projective: bool = False
) -> TrainingPair:
    rng = np.random.default_rng(seed)
    sizes = (len(renderer.textures), len(renderer.outlines))
    scene = draw_scene(rng, phase, bank_sizes=sizes, projective=projective)
    pair = renderer.render(scene, height=phase.height, width=phase.width)
    if phase.photometric:
        pair = add_camera_effects(pair, rng, phase.photometric)
    return dim_light(pair, rng) if phase.dim and rng.random() < phase.dim else pair


def require_other_seed(config: TrainingConfig) -> None:
    """Raise ValueError for a seed whose textures and outlines are those of held-out scenes."""
    if config.seed in (HELD_OUT_SEED, HELD_OUT_SEED + 1):
        raise ValueError(
            f"the seed {config.seed} is one of the held-out scenes ({HELD_OUT_SEED} and "
            f"{HELD_OUT_SEED + 1}): choose another"
        )


def render_held_out(
    config: TrainingConfig,
    phase: Phase = VALIDATION,
    *,
    numbers: Iterable[int] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, list[TrainingPair]]:
    """Render the held-out families, the same for every seed of a training: ``layers`` of its kind
    with textures, outlines and scenes of their own, ``planes`` with other kinds of textures, moved
    by homographies. Neither shows photographs. Frames hold whole grey levels, as files do.

    ``numbers`` selects scenes; the default is the first ``validation_pairs`` of each family, by
    which weights may be chosen.
    """
    families: dict[str, list[TrainingPair]] = {"layers": [], "planes": []}
    drawn = dataclasses.replace(config, seed=HELD_OUT_SEED, photographs=0)
    layers = PairSource(drawn, device).renderer
    planes = SceneRenderer(
        draw_textures(HELD_OUT_TEXTURES, 12, HELD_OUT_SEED + 1),
        draw_outlines(24, HELD_OUT_SEED + 1),
        layers.device,
    )
    chosen = range(config.validation_pairs) if numbers is None else numbers
    for number in track(chosen, label="held-out scenes", unit="pair"):
        seed = [HELD_OUT_SEED, HELD_OUT + number]
        families["layers"].append(_round_frames(_render(layers, seed, phase)))
        seed = [HELD_OUT_SEED + 1, HELD_OUT + number]
        families["planes"].append(_round_frames(_render(planes, seed, phase, projective=True)))
    return families


def _round_frames(pair: TrainingPair) -> TrainingPair:
    return dataclasses.replace(pair, image1=pair.image1.round(), image2=pair.image2.round())


# --- the camera: light, exposure, blur and noise; flow stays exact --------------------------------


def add_camera_effects(
    pair: TrainingPair, rng: np.random.Generator, strength: float
) -> TrainingPair:
    """Return the pair as a camera might see it: light that does not move with the scene, other
    exposure, blur, noise.
    """
    frames = [pair.image1 / 255, pair.image2 / 255]
    if rng.random() < 0.5 * strength:
        light = _draw_light(rng, frames[0])
        frames = [frame * light for frame in frames]
    common = _draw_exposure(rng, 0.25 * strength)
    frames = [_expose(frame, *common) for frame in frames]
    frames = [_expose(frame, *_draw_exposure(rng, 0.05 * strength)) for frame in frames]
    if rng.random() < 0.35 * strength:
        frames = _blur_along(frames, pair.flow, rng.uniform(0.1, 0.5))
    if rng.random() < 0.25 * strength:
        frames = [_soften(frame, float(rng.uniform(0.4, 1.5))) for frame in frames]
    if rng.random() < 0.6 * strength:
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        sigma = float(0.04 * rng.random() ** 2)
        frames = [
            frame + sigma * torch.randn(frame.shape, generator=noise).to(frame.device)
            for frame in frames
        ]
    image1, image2 = (255 * frame.clamp(0, 1) for frame in frames)
    return dataclasses.replace(pair, image1=image1, image2=image2)


def dim_light(pair: TrainingPair, rng: np.random.Generator) -> TrainingPair:
    """Return the pair with so little light that grey is 8 to 60 on average, in whole levels as
    files hold them; darker pairs keep their light.
    """
    grey = float(np.exp(rng.uniform(np.log(8), np.log(60))))
    gain = min(1.0, grey / max(1.0, float(pair.image1.mean())))
    image1, image2 = ((gain * image).round() for image in (pair.image1, pair.image2))
    return dataclasses.replace(pair, image1=image1, image2=image2)


def _draw_light(rng: np.random.Generator, frame: Tensor) -> Tensor:
    """Draw a field of brightness (1, H, W) that does not move with anything."""
    coarse = torch.from_numpy(rng.uniform(0.55, 1.3, (1, 1, 3, 4)).astype(np.float32))
    return F.interpolate(
        coarse.to(frame.device), size=frame.shape[-2:], mode="bicubic", align_corners=True
    )[0]


def _draw_exposure(rng: np.random.Generator, spread: float) -> tuple[float, float, np.ndarray]:
    gain, gamma = (float(np.exp(rng.normal(0, spread))) for _ in range(2))
    return gain, gamma, np.exp(rng.normal(0, spread / 4, 3))


def _expose(frame: Tensor, gain: float, gamma: float, tint: np.ndarray) -> Tensor:
    colour = torch.from_numpy(tint.astype(np.float32)).to(frame.device)[:, None, None]
    return (gain * colour * frame).clamp(0, 1).pow(gamma)


def _soften(frame: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-4, 5, dtype=torch.float32, device=frame.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    rows = F.conv2d(
        F.pad(frame[:, None], (4, 4, 4, 4), mode="replicate"), kernel.reshape(1, 1, 1, -1)
    )
    return F.conv2d(rows, kernel.reshape(1, 1, -1, 1))[:, 0]


def _blur_along(frames: list[Tensor], flow: Tensor, shutter: float) -> list[Tensor]:
    """Blur along the motion, as in Sintel's final pass; frame 2 takes the motion at the same place
    of frame 1.
    """
    height, width = flow.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=flow.device)
    shares = torch.linspace(-0.5, 0.5, 7, device=flow.device) * shutter
    moves = shares[:, None, None, None] * flow.permute(1, 2, 0)  # (7, H, W, 2)
    grid = (2 * (pixel_grid(height, width, flow.device) + moves) + 1) / size - 1
    blurred = [
        F.grid_sample(
            frame.expand(len(shares), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
        for frame in frames
    ]
    return [samples.mean(dim=0) for samples in blurred]
