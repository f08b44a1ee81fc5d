"""What training computes: the configuration file, its phases, and the bounds of their values."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, cast

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import to_json

from gma_lib import network, runs

Checked = TypeVar("Checked")
LARGEST_BATCH = 64  # scene numbers reserved for each step
CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=CHECKED)
class Phase:
    """One stretch of the curriculum.

    Attributes
    ----------
    steps
        Optimiser steps.
    height, width, batch_size
        Size of the frames (pixels, multiples of 8) and pairs per step.
    num_updates
        Refinements; with 0 only the features learn, from the matching loss.
    lead_updates
        At every other step, run a random number of refinements first, at most this many, without
        gradient. Learning then starts from converged flow, so that extra iterations do not diverge.
    loss_power
        1 for the absolute error. Below 1 the error is raised to this power: small errors gain
        weight, hopeless pixels lose it (the loss that PWC-Net is fine-tuned with, Sun et al.,
        https://arxiv.org/abs/1709.02371).
    learning_rate, final_learning_rate
        The rate rises to ``learning_rate`` over the first twentieth of the phase and falls linearly
        to ``final_learning_rate``.
    layers
        Fewest and most objects in front of the background.
    min_displacement, max_displacement
        Pixels per frame. Scenes draw their speed between them, log-uniformly. With a minimum of
        2 px or less a tenth of the scenes move by less than about a pixel.
    photometric
        Strength of noise, blur, haze, shadows and changes of light between the frames, from 0
        (clean) to 1.
    relief
        Share of scenes whose background has depth: its motion changes gradually.
    dim
        Share of scenes with little light, in whole grey levels.
    learn_occluded
        Whether occluded pixels enter the loss. Leaving them out at first helps (Kwon et al.,
        https://arxiv.org/abs/2308.07378).
    matching
        Weight of the matching loss, see ``matching_loss``; 0 for none.
    freeze_batch_norm
        Use running statistics and keep them fixed: those of one or two scenes are too rough.
    """

    name: str
    steps: PositiveInt
    height: int
    width: int
    batch_size: Annotated[int, Field(gt=0, le=LARGEST_BATCH)]
    num_updates: NonNegativeInt
    lead_updates: NonNegativeInt
    loss_power: PositiveShare
    learning_rate: PositiveFloat
    final_learning_rate: NonNegativeFloat
    layers: tuple[NonNegativeInt, NonNegativeInt]
    min_displacement: PositiveFloat
    max_displacement: float
    photometric: Share
    relief: Share
    dim: Share
    learn_occluded: bool
    matching: NonNegativeFloat
    freeze_batch_norm: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Check what depends on two fields."""
        if self.max_displacement <= self.min_displacement:
            raise ValueError(
                f"max_displacement must be above min_displacement, not {self.max_displacement}"
            )
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate must be at most learning_rate, not {self.final_learning_rate}"
            )
        if not self.num_updates and self.matching < 1e-6:
            raise ValueError("matching must be above 0 where num_updates is 0")
        if self.layers[0] > self.layers[1]:
            raise ValueError(f"layers must be two rising numbers, not {self.layers}")
        network.check_sides(self.height, self.width)
        return self


@dataclass(frozen=True, config=CHECKED)
class TrainingConfig:
    """Everything that decides what training computes.

    Attributes
    ----------
    seed
        Seed of weights, banks and scenes.
    textures
        Size of the bank of drawn textures.
    photographs
        Additional textures, cut from photographs (``gma_lib.training.textures.PHOTOGRAPHS``);
        validation never shows them.
    precision
        ``bfloat16`` (autocast; coordinates, correlation and loss stay float32) or ``float32``.
    optimiser
        ``adamw``, or ``muon``: Muon for the kernels of convolutions and AdamW for the rest, see
        ``KernelMuon``. Both take the same learning rates.
    sequence_gamma
        Weight of an update's loss relative to the next update's (RAFT, equation 7).
    clip
        Largest norm of a gradient.
    ema_decay
        Decay of the averaged weights, which are validated and shipped.
    checkpoint_minutes, validate_every
        Minutes between checkpoints, steps between validations.
    validation_pairs
        Scenes of each held-out family.
    """

    seed: int
    textures: PositiveInt
    photographs: NonNegativeInt
    precision: Literal["bfloat16", "float32"]
    optimiser: Literal["adamw", "muon"]
    sequence_gamma: PositiveShare
    weight_decay: NonNegativeFloat
    clip: PositiveFloat
    ema_decay: PositiveShare
    checkpoint_minutes: PositiveFloat
    validate_every: PositiveInt
    validation_pairs: PositiveInt
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]

    @property
    def steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """Return the phase of ``step`` (from 0) and the step's number within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise IndexError(f"the configuration has {self.steps} steps")

    def learning_rate(self, step: int) -> float:
        """Return a step's rate: one cycle per phase, up over a twentieth, then down linearly."""
        phase, within = self.phase_at(step)
        rise = max(1, phase.steps // 20)
        if within < rise:
            return phase.learning_rate * (within + 1) / rise
        share = (within - rise) / max(1, phase.steps - rise)
        return phase.learning_rate + share * (phase.final_learning_rate - phase.learning_rate)


def load_config(path: Path) -> TrainingConfig:
    """Read a configuration; errors name the entry that is unknown, missing or impossible."""
    with runs.reading(path, "a training configuration", "Correct the entry") as path:
        return parse_config(cast(runs.Record, runs.parse_yaml(path.read_text(encoding="utf-8"))))


def parse_config(content: runs.Record) -> TrainingConfig:
    """Build a configuration from plain values, as YAML and checkpoints hold them."""
    return check_entries(TrainingConfig, content)


def check_entries(kind: type[Checked], content: runs.Record) -> Checked:
    """Build a dataclass of pydantic's from plain values; ValueError names in a line each entry that
    is refused, what it should be, and what it is.
    """
    try:
        # As JSON, whose lists are tuples even to a strict check.
        return TypeAdapter(kind).validate_json(to_json(content))
    except ValidationError as error:
        parts = []
        for one in error.errors():
            place = ".".join(map(str, one["loc"])) or "the file"
            given = "" if isinstance(one["input"], dict) else f", not {one['input']!r}"
            parts.append(f"{place}: {one['msg'].removeprefix('Value error, ')}{given}")
        raise ValueError("; ".join(parts)) from error
