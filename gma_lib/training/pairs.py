"""Rendered pairs by number: what training learns from, and the held-out families.

A pair is a function of the seed and its number alone: training that was killed and resumed sees the
same pairs as training that was not, and no generator's state has to be saved.
"""

from collections.abc import Iterable

import numpy as np
import torch

from gma_lib.runs.progress import track
from gma_lib.training.camera import add_camera_effects, dim_light
from gma_lib.training.config import LARGEST_BATCH, Phase, TrainingConfig
from gma_lib.training.scenes import SceneRenderer, TrainingPair, draw_scene
from gma_lib.training.textures import (
    HELD_OUT_TEXTURES,
    TRAINING_TEXTURES,
    cut_photograph,
    draw_outlines,
    draw_textures,
)

# Numbers of held-out scenes start here; training counts up from 0.
HELD_OUT = 1_000_000_000
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
        # validation shows drawn textures only
        self.renderer = self.held_out_renderer = SceneRenderer(textures, outlines, device)
        if config.photographs:
            photographs = draw_textures((cut_photograph,), config.photographs, config.seed + 2)
            self.renderer = SceneRenderer(torch.cat([textures, photographs]), outlines, device)

    def render_pair(self, number: int, phase: Phase) -> TrainingPair:
        """Render the scene with this number as a phase sees it."""
        return _render(self.renderer, [self.config.seed, number], phase)

    def render_batch(self, step: int, phase: Phase) -> TrainingPair:
        """Render the pairs of a step, stacked along a leading batch dimension."""
        first = LARGEST_BATCH * step
        numbers = range(first, first + phase.batch_size)
        pairs = [vars(self.render_pair(number, phase)) for number in numbers]
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


def render_held_out(
    config: TrainingConfig,
    source: PairSource,
    phase: Phase = VALIDATION,
    *,
    numbers: Iterable[int] | None = None,
) -> dict[str, list[TrainingPair]]:
    """Render the held-out families: ``layers`` with unseen seeds, ``planes`` with other kinds of
    textures, moved by homographies.

    ``numbers`` selects scenes; the default is the first ``validation_pairs`` of each family, by
    which weights may be chosen.
    """
    families: dict[str, list[TrainingPair]] = {"layers": [], "planes": []}
    other = SceneRenderer(
        draw_textures(HELD_OUT_TEXTURES, 12, config.seed + 1),
        draw_outlines(24, config.seed + 1),
        source.renderer.device,
    )
    chosen = range(config.validation_pairs) if numbers is None else numbers
    for number in track(chosen, label="held-out scenes", unit="pair"):
        seed = [config.seed, HELD_OUT + number]
        families["layers"].append(_render(source.held_out_renderer, seed, phase))
        seed = [config.seed + 1, HELD_OUT + number]
        families["planes"].append(_render(other, seed, phase, projective=True))
    return families
