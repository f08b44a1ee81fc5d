"""What training computes: configurations, their phases, the bounds of their values, and recipes of
several parts.
"""

import logging
from dataclasses import asdict
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
SCENES_A_STEP = 64  # numbers reserved for the scenes of each step, so the largest batch
CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, config=CHECKED)
class Phase:
    """One phase of training. All fields are required; invalid values raise ValueError.

    Attributes
    ----------
    name
        Name in the log.
    steps
        Optimiser steps, at least 1.
    height, width, batch_size
        Size of the frames (pixels, multiples of 8, at least 128) and pairs per step (1 to 64).
    num_updates
        Updates (refinement iterations). With 0, only the features learn, and ``matching`` must be
        above 0.
    lead_updates
        At every other step, first run 0 to this many random updates without gradient, so that
        training starts from converged flow and extra iterations do not diverge.
    loss_power
        Exponent of each pixel's absolute error, above 0, at most 1. Below 1, small errors gain
        weight and unmatchable pixels lose it, as in PWC-Net's fine-tuning (Sun et al.,
        https://arxiv.org/abs/1709.02371).
    learning_rate, final_learning_rate
        The rate rises to ``learning_rate`` (above 0) over the first twentieth of the phase, then
        falls linearly to ``final_learning_rate`` (0 to ``learning_rate``).
    layers
        Fewest and most objects in front of the background.
    min_displacement, max_displacement
        Range of a scene's speed in pixels per frame, drawn log-uniformly. With a minimum of 2 px or
        less, a tenth of the scenes draw 0.1 to 1.5 px instead.
    photometric
        Strength of noise, blur, haze, shadows and changes of light between the frames, from 0
        (clean) to 1.
    relief
        Share of scenes, 0 to 1, whose background has depth: its motion changes gradually.
    dim
        Share of dark scenes, 0 to 1: mean grey of 8 to 60, rounded to whole grey levels.
    learn_occluded
        Whether occluded pixels enter the loss. Leaving them out at first helps (Kwon et al.,
        https://arxiv.org/abs/2308.07378).
    matching
        Weight of ``gma_lib.training.losses.matching_loss``, at least 0; 0 for none.
    freeze_batch_norm
        Keep the running statistics fixed: those of one or two scenes are too noisy.
    """

    name: str
    steps: PositiveInt
    height: int
    width: int
    batch_size: Annotated[int, Field(gt=0, le=SCENES_A_STEP)]
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
    """Configuration of a training run. All fields are required; invalid values raise ValueError.

    Attributes
    ----------
    seed
        Seed of weights, textures and scenes, at least 0. ``train`` refuses 20211010 and 20211011,
        the seeds of the held-out scenes.
    textures
        Number of procedural textures, at least 1.
    photographs
        Number of additional textures cut from photographs; above 0 requires scikit-image
        (``pip install 'gma-lib[training]'``). Validation never shows them.
    precision
        ``float32``, or ``bfloat16`` for convolutions and products; weights stay float32.
    optimiser
        ``adamw``, or ``muon``: Muon for convolution kernels and AdamW for the rest
        (``gma_lib.training.muon.KernelMuon``), at the same learning rates; requires PyTorch 2.9
        (``pip install 'gma-lib[training]'``).
    sequence_gamma
        Weight of an update's loss relative to the next update's (RAFT, equation 7); above 0, at
        most 1.
    weight_decay
        Weight decay of the optimisers, at least 0.
    clip
        Largest norm of the gradient of all parameters together, above 0.
    ema_decay
        Decay of the averaged weights, which are validated and saved; above 0, at most 1. Lower
        during the first steps.
    checkpoint_minutes
        Minutes between checkpoints, above 0.
    validate_every
        Steps between validations, at least 1; the last step is always validated.
    validation_pairs
        Scenes of each held-out family; with 0, nothing is validated.
    phases
        Phases in order, at least one.
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
    validation_pairs: NonNegativeInt
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


def warn_of_slow_bfloat16(config: TrainingConfig, device: str) -> None:
    """Say what is faster on a processor that computes bfloat16 more slowly than float32."""
    uses_bfloat16 = config.precision == "bfloat16" or config.optimiser == "muon"
    if device == "cpu" and uses_bfloat16 and not runs.is_bfloat16_fast():
        logger.warning(
            "this processor computes bfloat16 more slowly than float32: in the configuration, "
            "precision: float32 and optimiser: adamw are faster (muon, too, computes in bfloat16)"
        )


def load_config(path: Path) -> TrainingConfig:
    """Read a configuration; errors name the entry that is unknown, missing or impossible."""
    with runs.reading(path, "a training configuration", "Correct the entry") as path:
        return parse_config(cast(runs.Record, runs.read_yaml(path)))


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


# --- recipes --------------------------------------------------------------------------------------


@dataclass(frozen=True, config=CHECKED)
class Base:
    """A weights file that stands for a part and everything before it.

    Attributes
    ----------
    file
        Path; a relative one starts at the project.
    sha256
        Hash of its content.
    revision
        ``COMMIT:PATH`` of this repository, from which the file is written where it is missing.
    """

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    revision: str | None = None


@dataclass(frozen=True, config=CHECKED)
class Part:
    """Weights of a recipe: trained, averaged, or read from a file.

    Attributes
    ----------
    what
        A phrase for the card.
    start
        Earlier part whose weights training starts from; none: weights drawn from the seed.
    only
        Part of the network that is taken from ``start``, such as ``fnet``; the rest is drawn.
    training
        Configuration of the training, whose averaged weights are the result.
    mean
        Factors by earlier part; the weighted mean of their weights is the result.
    base
        File that is read instead.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
    what: str
    start: str | None = None
    only: Literal["fnet", "cnet"] | None = None
    training: TrainingConfig | None = None
    mean: Annotated[dict[str, PositiveFloat], Field(min_length=1)] | None = None
    base: Base | None = None

    @property
    def sources(self) -> set[str]:
        """Parts whose weights are needed to make this one."""
        return {name for name in (self.start, *(self.mean or ())) if name}

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Check that it says one way of making it."""
        ways = [self.training is not None, self.mean is not None]
        if sum(ways) > 1 or not (any(ways) or self.base):
            raise ValueError(f"{self.name} needs training or a mean, not both, or a base")
        if (self.start and not self.training) or (self.only and not self.start):
            raise ValueError(f"{self.name}: start goes with training, and only with start")
        if self.mean and abs(sum(self.mean.values()) - 1) > 1e-6:
            raise ValueError(f"{self.name}: the factors add up to {sum(self.mean.values())}, not 1")
        return self


@dataclass(frozen=True, config=CHECKED)
class Recipe:
    """How weights are made: parts, each from earlier ones; the last is the result.

    Attributes
    ----------
    sha256
        Hash of the weights that it made when they shipped. No setting: another processor makes
        another file.
    """

    parts: tuple[Part, ...]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    def list_settings(self) -> runs.Record:
        """What decides the result, as plain values."""
        return {"parts": asdict(self)["parts"]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Check that every part is made from earlier ones."""
        if not self.parts:
            raise ValueError("parts must not be empty")
        known: set[str] = set()
        for part in self.parts:
            if unknown := sorted(part.sources - known):
                raise ValueError(
                    f"{part.name} is made from {unknown[0]}, which is no part before it"
                )
            if part.name in known:
                raise ValueError(f"two parts are called {part.name}")
            known.add(part.name)
        return self

    @property
    def needed(self) -> list[Part]:
        """The parts that the last one is made from, in order; a base needs none."""
        names = {self.parts[-1].name}
        for part in reversed(self.parts):
            if part.name in names and part.base is None:
                names |= part.sources
        return [part for part in self.parts if part.name in names]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; errors name the entry that is unknown, missing or impossible.

    Its ``settings`` and ``phase`` hold what the training of a part, and each of its phases, do not
    say themselves.
    """
    with runs.reading(path, "a training recipe", "Correct the entry") as path:
        content = runs.read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}")
        settings, phase = (content.pop(name, {}) for name in ("settings", "phase"))
        if not (isinstance(settings, dict) and isinstance(phase, dict)):
            raise ValueError("settings and phase must be mappings")
        for part in _list_mappings(content.get("parts")):
            for training in _list_mappings([part.get("training")]):
                training |= settings | training
                for one in _list_mappings(training.get("phases")):
                    one |= phase | one
        return check_entries(Recipe, content)


def _list_mappings(values: object) -> list[runs.Record]:
    """The mappings in a list; the check finds what is not one."""
    values = values if isinstance(values, list | tuple) else ()
    return [one for one in values if isinstance(one, dict)]


def name_differences(old: object, new: object, prefix: str = "") -> list[str]:
    """Name the entries in which two configurations differ, such as ``phases[0].steps``."""
    pairs: list[tuple[str, object, object]]
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [
            (f"{prefix}.{name}".removeprefix("."), old.get(name), new.get(name))
            for name in old | new
        ]
    elif _list_mappings(old) and len(_list_mappings(old)) == len(_list_mappings(new)):
        both = enumerate(zip(_list_mappings(old), _list_mappings(new), strict=True))
        pairs = [(f"{prefix}[{number}]", a, b) for number, (a, b) in both]
    else:
        return [] if old == new else [prefix]
    return [name for place, a, b in pairs for name in name_differences(a, b, place)]
