"""Rendered scenes by number: what training learns from and the held-out families."""

import dataclasses

import numpy as np
import torch

from gma_lib.runs.progress import track
from gma_lib.training.camera import dimmed, photographed
from gma_lib.training.config import LARGEST_BATCH, Phase, TrainingConfig
from gma_lib.training.scenes import SceneRenderer, TrainingPair, draw_scene
from gma_lib.training.textures import (
    HELD_OUT_TEXTURES,
    TRAINING_TEXTURES,
    outline_bank,
    photograph_texture,
    texture_bank,
)

# Numbers of held-out scenes start here; training counts up from 0.
HELD_OUT = 1_000_000_000


class PairSource:
    """Scenes by number, rendered: the same number, the same pair.

    Parameters
    ----------
    config
        Decides banks and seeds.
    """

    def __init__(self, config: TrainingConfig, device: torch.device | str = "cpu"):
        self.config = config
        outlines = outline_bank(64, config.seed)
        textures = texture_bank(TRAINING_TEXTURES, config.textures, config.seed)
        self.drawn = SceneRenderer(
            textures, outlines, device
        )  # without photographs, for validation
        photographs = texture_bank((photograph_texture,), config.photographs, config.seed + 2)
        self.renderer = (
            SceneRenderer(torch.cat([textures, photographs]), outlines, device)
            if config.photographs
            else self.drawn
        )

    def pair(self, number: int, phase: Phase) -> TrainingPair:
        """The scene with this number as a phase sees it."""
        return _pair(
            self.renderer,
            np.random.default_rng([self.config.seed, number]),
            phase,
            projective=False,
        )

    def batch(self, step: int, phase: Phase) -> TrainingPair:
        """What step ``step`` learns from; each field with a leading batch dimension."""
        pairs = [
            self.pair(LARGEST_BATCH * step + index, phase) for index in range(phase.batch_size)
        ]
        return TrainingPair(
            *(
                torch.stack([getattr(pair, field.name) for pair in pairs])
                for field in dataclasses.fields(TrainingPair)
            )
        )


def _pair(
    renderer: SceneRenderer, rng: np.random.Generator, phase: Phase, *, projective: bool
) -> TrainingPair:
    scene = draw_scene(
        rng,
        height=phase.height,
        width=phase.width,
        min_displacement=phase.min_displacement,
        max_displacement=phase.max_displacement,
        layers=phase.layers,
        photometric=phase.photometric,
        relief=phase.relief,
        bank_sizes=(len(renderer.textures), len(renderer.outlines)),
        projective=projective,
    )
    pair = renderer.render(scene, height=phase.height, width=phase.width)
    if phase.photometric:
        pair = photographed(pair, rng, phase.photometric)
    return dimmed(pair, rng) if phase.dim and rng.random() < phase.dim else pair


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


def validation_families(
    config: TrainingConfig,
    source: PairSource,
    phase: Phase = VALIDATION,
    *,
    numbers: range | None = None,
) -> dict[str, list[TrainingPair]]:
    """Held-out scenes: ``layers`` with unseen seeds, ``planes`` with textures of other kinds, moved
    by homographies.

    ``numbers`` says which; without it the first ``validation_pairs`` of each, by which weights may
    be chosen.
    """
    families = {"layers": [], "planes": []}
    other = SceneRenderer(
        texture_bank(HELD_OUT_TEXTURES, 12, config.seed + 1),
        outline_bank(24, config.seed + 1),
        source.renderer.device,
    )
    for number in track(
        range(config.validation_pairs) if numbers is None else numbers,
        label="held-out scenes",
        unit="pair",
    ):
        rng = np.random.default_rng([config.seed, HELD_OUT + number])
        families["layers"].append(_pair(source.drawn, rng, phase, projective=False))
        rng = np.random.default_rng([config.seed + 1, HELD_OUT + number])
        families["planes"].append(_pair(other, rng, phase, projective=True))
    return families
