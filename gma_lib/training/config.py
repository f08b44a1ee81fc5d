"""What training computes: the configuration, its phases and their checks."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from gma_lib.network.sizes import check_sides

LARGEST_BATCH = 64  # scene numbers set aside for each step


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
        At every other step a random number of refinements, at most this many, run ahead without
        gradient: what is learnt then starts where many updates have led, so that still more of them
        do not lead away.
    loss_power
        1 for the absolute error; below 1 the error is raised to it, so that small errors gain and
        hopeless pixels lose weight (the loss that PWC-Net is fine-tuned with, Sun et al.,
        https://arxiv.org/abs/1709.02371).
    learning_rate
        At its highest; it rises over the first twentieth of the phase and falls linearly to
        ``final_learning_rate``.
    layers
        Fewest and most objects in front of the background.
    min_displacement, max_displacement
        Pixels; scenes draw their speed between them, evenly on a logarithmic scale. With a minimum
        of 2 px or less a tenth of the scenes move by less than about a pixel.
    photometric
        From 0 (clean) to 1: strength of noise, blur, haze, shadows and changes of light between the
        frames.
    relief
        Share of scenes whose background has depth: its motion changes gradually.
    dim
        Share of scenes with little light, in whole grey levels.
    learn_occluded
        Whether pixels that become covered are learnt from. Leaving them out at first helps (Kwon et
        al., https://arxiv.org/abs/2308.07378).
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
    loss_power: float
    learning_rate: float
    final_learning_rate: float
    layers: tuple[int, int]
    min_displacement: float
    max_displacement: float
    photometric: float
    relief: float
    dim: float
    learn_occluded: bool
    matching: float
    freeze_batch_norm: bool

    def __post_init__(self):
        _check_types(self)
        for name in ("steps", "batch_size", "min_displacement", "learning_rate"):
            _check(self, name, getattr(self, name) > 0, "above 0")
        _check(
            self,
            "max_displacement",
            self.max_displacement > self.min_displacement,
            f"above min_displacement ({self.min_displacement})",
        )
        _check(
            self,
            "final_learning_rate",
            0 <= self.final_learning_rate <= self.learning_rate,
            "between 0 and learning_rate",
        )
        _check(self, "batch_size", self.batch_size <= LARGEST_BATCH, f"at most {LARGEST_BATCH}")
        _check(self, "num_updates", self.num_updates >= 0, "at least 0")
        _check(self, "lead_updates", self.lead_updates >= 0, "at least 0")
        _check(self, "loss_power", 0 < self.loss_power <= 1, "above 0 and at most 1")
        _check(
            self,
            "matching",
            self.matching >= (0 if self.num_updates else 1e-6),
            "at least 0, and above it where num_updates is 0",
        )
        _check(
            self, "layers", 0 <= self.layers[0] <= self.layers[1], "two rising numbers from 0 up"
        )
        for name in ("photometric", "relief", "dim"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        check_sides(self.height, self.width)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what training computes.

    Attributes
    ----------
    seed
        Of weights, banks and scenes.
    textures
        Size of the bank of drawn textures.
    photographs
        Textures beside them that are cut from photographs
        (``gma_lib.training.scenes.PHOTOGRAPHS``); validation never shows them.
    precision
        ``bfloat16`` (coordinates, correlation and loss stay float32) or ``float32``.
    optimiser
        ``adamw``, or ``muon`` for the convolutions' kernels and AdamW for the rest, see
        ``KernelMuon``; both take the same learning rates.
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
    photographs: int
    precision: str
    optimiser: str
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
        _check(self, "optimiser", self.optimiser in OPTIMISERS, f"one of {', '.join(OPTIMISERS)}")
        for name in (
            "textures",
            "clip",
            "checkpoint_minutes",
            "validate_every",
            "validation_pairs",
        ):
            _check(self, name, getattr(self, name) > 0, "above 0")
        for name in ("sequence_gamma", "ema_decay"):
            _check(self, name, 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        _check(self, "photographs", self.photographs >= 0, "at least 0")
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


OPTIMISERS = ("adamw", "muon")


def _check(settings: object, name: str, fine: bool, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{name} is {wanted}, not {getattr(settings, name)!r}")


def _check_types(settings: object) -> None:
    """Fields hold what their annotation says; whole numbers pass for floats, True does not pass for
    1.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        wanted = (int, float) if field.type is float else field.type
        if wanted in (int, str, bool, (int, float)) and (
            not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool)
        ):
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
        if (
            not isinstance(layers, list | tuple)
            or len(layers) != 2
            or not all(type(count) is int for count in layers)
        ):
            raise ValueError(
                f"phase {number}: layers is two whole numbers, fewest and most, not {layers!r}"
            )
        phases.append(Phase(**phase | {"layers": tuple(layers)}))
    return TrainingConfig(**content | {"phases": tuple(phases)})


def _check_names(content: object, kind: type, where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is a mapping of names to values, not {content!r}")
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(map(str, content)) - set(known))
    missing = [name for name in known if name not in content]
    if unknown or missing:
        parts = [
            f"{words} {', '.join(names)}"
            for words, names in (("unknown", unknown), ("missing", missing))
            if names
        ]
        raise ValueError(f"{where}: {'; '.join(parts)} (it has {', '.join(known)})")
