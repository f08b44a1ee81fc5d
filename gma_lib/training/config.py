"""What training computes: the configuration file, its phases, and the checks of their values."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import yaml

from gma_lib.network.sizes import check_sides
from gma_lib.runs.records import Record

LARGEST_BATCH = 64  # scene numbers reserved for each step
PRECISIONS = ("bfloat16", "float32")
OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
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

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "above 0", "steps", "batch_size", "min_displacement", "learning_rate")
        if self.max_displacement <= self.min_displacement:
            _refuse(self, "max_displacement", f"above min_displacement ({self.min_displacement})")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            _refuse(self, "final_learning_rate", "between 0 and learning_rate")
        if self.batch_size > LARGEST_BATCH:
            _refuse(self, "batch_size", f"at most {LARGEST_BATCH}")
        _require(self, "at least 0", "num_updates", "lead_updates", "matching")
        if not self.num_updates and self.matching < 1e-6:
            _refuse(self, "matching", "above 0 where num_updates is 0")
        _require(self, "above 0 and at most 1", "loss_power")
        if not 0 <= self.layers[0] <= self.layers[1]:
            _refuse(self, "layers", "two rising numbers from 0 up")
        _require(self, "between 0 and 1", "photometric", "relief", "dim")
        check_sides(self.height, self.width)


@dataclass(frozen=True)
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

    def __post_init__(self) -> None:
        _check_types(self)
        for name, known in (("precision", PRECISIONS), ("optimiser", OPTIMISERS)):
            if getattr(self, name) not in known:
                _refuse(self, name, f"one of {', '.join(known)}")
        above_zero = ("textures", "clip", "checkpoint_minutes", "validate_every")
        _require(self, "above 0", *above_zero, "validation_pairs")
        _require(self, "above 0 and at most 1", "sequence_gamma", "ema_decay")
        _require(self, "at least 0", "photographs", "weight_decay")
        if not self.phases:
            _refuse(self, "phases", "a list of at least one phase")

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


BOUNDS = {
    "above 0": lambda value: value > 0,
    "at least 0": lambda value: value >= 0,
    "between 0 and 1": lambda value: 0 <= value <= 1,
    "above 0 and at most 1": lambda value: 0 < value <= 1,
}


def _require(settings: Phase | TrainingConfig, bounds: str, *names: str) -> None:
    for name in names:
        if not BOUNDS[bounds](getattr(settings, name)):
            _refuse(settings, name, bounds)


def _refuse(settings: Phase | TrainingConfig, name: str, wanted: str) -> NoReturn:
    raise ValueError(f"{name} must be {wanted}, not {getattr(settings, name)!r}")


def _check_types(settings: Phase | TrainingConfig) -> None:
    """Check fields against their annotations; integers pass for floats, True not for 1."""
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), cast(type, field.type)
        wanted = (int, float) if kind is float else (kind,)
        if kind in (int, str, bool, float) and (
            not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool)
        ):
            raise ValueError(f"{field.name} must be of type {kind.__name__}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number, not {value!r}")


def load_config(path: Path) -> TrainingConfig:
    """Read a configuration; errors name the entry that is unknown, missing or impossible."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        return parse_config(yaml.safe_load(text))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_config(content: Record) -> TrainingConfig:
    """Build a configuration from plain values, as YAML and checkpoints hold them."""
    _check_names(content, TrainingConfig, "the configuration")
    if not isinstance(content["phases"], list):
        raise ValueError(f"phases must be a list, not {content['phases']!r}")
    phases = []
    for number, phase in enumerate(content["phases"]):
        _check_names(phase, Phase, f"phase {number}")
        layers = phase["layers"]
        if not isinstance(layers, list | tuple) or [type(count) for count in layers] != [int, int]:
            raise ValueError(
                f"phase {number}: layers must be two integers, fewest and most, not {layers!r}"
            )
        phases.append(Phase(**phase | {"layers": tuple(layers)}))
    return TrainingConfig(**content | {"phases": tuple(phases)})


def _check_names(content: object, kind: type[Phase | TrainingConfig], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must map names to values, not {content!r}")
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(map(str, content)) - set(known))
    missing = [name for name in known if name not in content]
    named = (("unknown", unknown), ("missing", missing))
    if parts := [f"{word} {', '.join(names)}" for word, names in named if names]:
        raise ValueError(f"{where}: {'; '.join(parts)} (it has {', '.join(known)})")
