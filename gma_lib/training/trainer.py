"""From procedural scenes to weights: training on pictures whose motion is known because the package
draws them itself.

Every scene (``gma_lib.training.scenes``) is a function of the seed and its number alone: training
that was killed and resumed sees the same scenes as training that was not, and nothing has to be
remembered about the generator.

    python -m gma_lib.training.trainer --config params/train.yaml --out FOLDER [--resume | --weights
    FILE] python -m gma_lib.training.trainer --config params/train.yaml --score gma-procedural
"""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from gma_lib.flow.classical import dis
from gma_lib.flow.metrics import ErrorSums, error_sums
from gma_lib.network.checkpoints import load_checkpoint, load_model, save_checkpoint
from gma_lib.network.model import (
    GMA,
    STRIDE,
    GMAConfig,
    check_sides,
    correlation_pyramid,
    upsample_flow,
)
from gma_lib.runs.files import write_atomically
from gma_lib.runs.progress import track
from gma_lib.training.scenes import (
    HELD_OUT_TEXTURES,
    TRAINING_TEXTURES,
    SceneRenderer,
    TrainingPair,
    dimmed,
    draw_scene,
    outline_bank,
    photograph_texture,
    photographed,
    texture_bank,
)

LARGEST_FLOW = 400.0  # pixels; what moves faster is not learnt from, as in RAFT's training
LARGEST_BATCH = 64  # scene numbers set aside for each step
# Numbers of held-out scenes start here; training counts up from 0.
HELD_OUT = 1_000_000_000


# --- configuration --------------------------------------------------------------------------------


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


# --- which pairs ----------------------------------------------------------------------------------


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


# --- validation -----------------------------------------------------------------------------------

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


def score(
    flows_of: Callable[[Tensor, Tensor], dict[str, np.ndarray]], pairs: Iterable[TrainingPair]
) -> dict[str, dict[str, ErrorSums]]:
    """Sums of errors over all pixels of all pairs: for each method, for every group of
    ``gma_lib.flow.metrics``.

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


def network_flows(
    model: GMA, updates: tuple[int, ...]
) -> Callable[[Tensor, Tensor], dict[str, np.ndarray]]:
    """The network's flow after each of the given numbers of updates, in float32, as ``score`` asks
    for it.
    """

    def flows_of(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            flows = model.predict_sequence(image1, image2, num_updates=max(updates))
        return {str(count): flows[count - 1][0].float().cpu().numpy() for count in updates}

    return flows_of


def classical_flows(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
    """OpenCV's DIS at its medium preset, for comparison."""
    return {"dis": dis(image1[0].cpu().numpy(), image2[0].cpu().numpy())}


TEST_PAIRS = (
    32  # of each family; they follow those of validation, so that nothing was chosen by them
)
SCORED_UPDATES = (1, 2, 4, 6, 12, 32)
SCORED_GROUPS = ("all", "occluded", "non_occluded", "s0_10", "s10_40", "s40_plus")


def score_card(config: TrainingConfig, weights: str | Path, *, device: str = "cpu") -> dict:
    """Scores of weights and of DIS on test scenes of both held-out families, as they stand on the
    card of the shipped weights.
    """
    model, _ = load_model(weights)
    first = config.validation_pairs
    families = validation_families(
        config, PairSource(config, device), numbers=range(first, first + TEST_PAIRS)
    )
    flows_of = network_flows(model.to(device), SCORED_UPDATES)

    def both(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
        return flows_of(image1, image2) | classical_flows(image1, image2)

    found = {
        family: score(both, track(pairs, label=family, unit="pair"))
        for family, pairs in families.items()
    }
    return {
        family: {
            method: {name: sums[name].described() for name in SCORED_GROUPS}
            for method, sums in methods.items()
        }
        for family, methods in found.items()
    }


# --- training -------------------------------------------------------------------------------------


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


def sequence_loss(
    flows: list[Tensor], truth: Tensor, learnt: Tensor, gamma: float, power: float
) -> Tensor:
    """Mean absolute error over the learnt pixels (N, H, W), the last update counting most (RAFT,
    equation 7).

    Each pixel's error is raised to ``power`` (see ``Phase.loss_power``); a hundredth of a pixel is
    added first, where the slope below 1 would be infinite.
    """
    weights = [gamma ** (len(flows) - 1 - number) for number in range(len(flows))]
    count = learnt.sum().clamp(min=1)

    def mean_error(flow: Tensor) -> Tensor:
        errors = (flow - truth).abs().sum(dim=1)
        return ((errors if power == 1 else (errors + 0.01) ** power) * learnt).sum() / count

    return sum(weight * mean_error(flow) for weight, flow in zip(weights, flows, strict=True))


def matching_loss(features1: Tensor, features2: Tensor, truth: Tensor, learnt: Tensor) -> Tensor:
    """Cross entropy of where each cell of frame 1 finds itself in frame 2, given by the
    correlation's softmax.

    The sequence loss reaches the features only through the recurrent part, which at first cannot
    read them: both wait for each other for a thousand steps. This loss tells the features directly
    what to match.

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
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=flow.device) for n in (height, width)),
        indexing="ij",
    )
    x, y = (x + flow[:, 0]).flatten(1), (y + flow[:, 1]).flatten(1)  # (N, P)
    known = (F.avg_pool2d(learnt[:, None].float(), STRIDE) > 0.9).flatten(1)
    known &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    logits = correlation_pyramid(features1, features2)[0].reshape(
        len(flow), height * width, height * width
    )
    scores = logits.log_softmax(dim=-1).reshape(len(flow), height * width, height, width)
    # the four cells around the target share it, as in linear interpolation
    share_x = (1 - (x[..., None] - torch.arange(width, device=x.device)).abs()).clamp(
        min=0
    )  # (N, P, w)
    share_y = (1 - (y[..., None] - torch.arange(height, device=y.device)).abs()).clamp(
        min=0
    )  # (N, P, h)
    entropy = -(share_y[:, :, None] @ scores @ share_x[..., None])[:, :, 0, 0]  # (N, P)
    return (entropy * known).sum() / known.sum().clamp(min=1)


class KernelMuon(torch.optim.Muon):
    """Muon (https://kellerjordan.github.io/posts/muon/) for convolutions: a kernel is the matrix
    (output channels, all the rest).

    Every direction of a matrix moves by the same amount, not every number in it, so that what a
    batch of one says about a few directions does not drown the others. Steps are as large as
    AdamW's (Liu et al., https://arxiv.org/abs/2502.16982).
    """

    def __init__(self, kernels: list[Tensor], *, weight_decay: float):
        self.kernels = kernels
        self.matrices = [kernel.detach().flatten(1) for kernel in kernels]  # the same memory
        # the gradients' norm may lie far below the usual epsilon, see ``_optimisers``
        super().__init__(
            self.matrices,
            lr=1e-9,
            weight_decay=weight_decay,
            eps=1e-30,
            adjust_lr_fn="match_rms_adamw",
        )

    def step(self) -> None:  # type: ignore[override]
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step()
        for matrix in self.matrices:
            matrix.grad = None


def _optimisers(model: GMA, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """What moves the parameters, each of them once."""
    parameters, optimisers = list(model.parameters()), []
    if config.optimiser == "muon":
        # a few rows or columns are no matrix to speak of
        kernels = [
            values
            for values in parameters
            if values.ndim == 4 and min(values.flatten(1).shape) >= 16
        ]
        parameters = [
            values for values in parameters if not any(values is kernel for kernel in kernels)
        ]
        optimisers.append(KernelMuon(kernels, weight_decay=config.weight_decay))
    # Before the recurrent part reads the correlation, its clipped gradients are of the order of
    # AdamW's usual epsilon (1e-8), which would stop it from learning.
    return [
        *optimisers,
        torch.optim.AdamW(parameters, lr=1e-9, weight_decay=config.weight_decay, eps=1e-11),
    ]


class Trainer:
    """Weights, optimisers and averaged weights between two steps.

    Parameters
    ----------
    config
        What to train.
    weights
        A checkpoint (name or file) to start from: a warm restart, which knows nothing of the
        optimiser's state.
    device
        Where to train.
    """

    def __init__(
        self, config: TrainingConfig, *, weights: str | Path | None = None, device: str = "cpu"
    ):
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        # of all lookups, the one whose gradient is cheapest
        self.model = GMA(GMAConfig(lookup="grid_sample")).to(self.device)
        if weights is not None:
            self.model.load_state_dict(load_checkpoint(weights).state)
        self.averaged = {
            name: value.detach().clone() for name, value in self.model.state_dict().items()
        }
        self.optimisers = _optimisers(self.model, config)
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
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not torch.isfinite(norm):
            raise TrainingDivergedError(
                f"step {self.step} ({phase.name}): the gradient is {norm.item()}; the last checkpoint is untouched"
            )
        for optimiser in self.optimisers:
            optimiser.step()
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
        with torch.autocast(
            self.device.type, dtype=precision, enabled=precision is not torch.float32
        ):
            features1, features2 = model.features(batch.image1), model.features(batch.image2)
            flows = []
            if phase.num_updates:
                lead = self._lead(phase)
                updates = model.updates(
                    features1,
                    features2,
                    model.context(batch.image1),
                    None,
                    lead + phase.num_updates,
                    lead=lead,
                )
                flows = [
                    upsample_flow(flow, model.update_block.upsampling_weights(hidden))
                    for hidden, flow in islice(updates, lead, None)
                ]
        loss, about = torch.zeros((), device=self.device), {}
        if phase.matching:
            matching = matching_loss(features1, features2, truth, learnt & ~batch.occluded)
            loss, about = loss + phase.matching * matching, {"matching": matching.item()}
        if flows:
            loss = loss + sequence_loss(
                flows, truth, learnt, self.config.sequence_gamma, phase.loss_power
            )
            about["epe"] = (flows[-1].detach() - truth).square().sum(dim=1).sqrt().mean().item()
        # what a network that knows nothing would score on these scenes
        return loss, about | {"zero_epe": speed.mean().item()}

    def _lead(self, phase: Phase) -> int:
        if self.step % 2 == 0:
            return 0
        return int(
            np.random.default_rng([self.config.seed, self.step, 1]).integers(phase.lead_updates + 1)
        )

    @torch.no_grad()
    def _average(self) -> None:
        # young averages follow quickly, or the random start would weigh on them for a thousand
        # steps
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
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        try:
            with write_atomically(path) as partial:
                torch.save(state, partial)
        except RuntimeError as error:  # how torch.save reports a full disk
            raise OSError(
                f"{path}: the checkpoint could not be written; is the disk full? The one before is untouched"
            ) from error

    def resume(self, path: Path) -> None:
        """Go on from a saved state of the same configuration."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path}: no checkpoint to resume from; leave out --resume to start anew"
            )
        state = torch.load(path, map_location=self.device, weights_only=True)
        differing = _differing(state["config"], dataclasses.asdict(self.config))
        if differing:
            raise ValueError(
                f"{path}: made with a configuration that differs in {', '.join(differing)}; restore it, or start anew"
            )
        self.model.load_state_dict(state["model"])
        self.averaged = state["averaged"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
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


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    weights: str | Path | None = None,
    device: str = "cpu",
) -> Trainer:
    """Train to the end of the configuration's phases.

    Writes into ``folder``: ``checkpoint.pt`` (to resume), ``averaged.safetensors`` (the averaged
    weights then), ``best.safetensors`` (those of the validation with the lowest EPE, both families
    counting the same), ``log.jsonl`` (a line per step and per validation) and ``curves.png`` (a
    figure of it, new after every validation).
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
                with write_atomically(folder / "curves.png") as partial:
                    plot_curves(log).savefig(partial, dpi=150)
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
        groups = score(network_flows(model, (VALIDATION.num_updates,)), pairs)[
            str(VALIDATION.num_updates)
        ]
        entry["validation"][family] = {
            name: groups[name].described() for name in ("all", "occluded", "non_occluded")
        }
        overall = entry["validation"][family]["all"]
        print(
            f"validation on {family}: EPE {overall['epe']:.2f} px, 1px {100 * overall['px1']:.1f} %",
            flush=True,
        )
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
    with write_atomically(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def held_out_epe(validation: dict) -> float:
    """What decides which weights are kept: EPE in pixels, the mean of both families."""
    return sum(family["all"]["epe"] for family in validation["validation"].values()) / len(
        validation["validation"]
    )


def read_log(path: Path) -> tuple[list[dict], list[dict]]:
    """Entries of ``log.jsonl``: those of steps and those of validations."""
    entries = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if "loss" in entry], [
        entry for entry in entries if "validation" in entry
    ]


def plot_curves(path: Path):
    """Figure of a ``log.jsonl``: the training error, smoothed, and the held-out error of both
    families over the steps.
    """
    from matplotlib.figure import Figure

    steps, validations = read_log(path)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="EPE (px)", yscale="log")
    steps = [entry for entry in steps if "epe" in entry]
    window = max(1, min(50, len(steps)))
    lines = (("epe", "training", "0.3"), ("zero_epe", "zero flow on the same scenes", "0.7"))
    for name, label, colour in (
        lines if steps else ()
    ):  # none where features alone have learnt so far
        smooth = np.convolve(
            [entry[name] for entry in steps], np.ones(window) / window, mode="valid"
        )
        axes.plot(
            [entry["step"] for entry in steps][window - 1 :],
            smooth,
            label=f"{label}, mean of {window} steps",
            color=colour,
        )
    for family in validations[0]["validation"] if validations else ():
        curve = [
            (entry["step"], entry["validation"][family]["all"]["epe"]) for entry in validations
        ]
        axes.plot(*zip(*curve, strict=True), marker="o", label=f"held out: {family}")
    if axes.lines:
        axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gma_lib.training.trainer", description="Train GMA on procedural scenes."
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="configuration, such as params/train.yaml"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, help="train, with checkpoints and the log in this folder")
    task.add_argument(
        "--score",
        metavar="WEIGHTS",
        help="print the scores of these weights on both held-out families as JSON",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    parser.add_argument(
        "--weights", help="start from these weights (a name or a file) with a fresh optimiser"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.resume and arguments.weights:
        parser.error("--resume continues a run and --weights starts one: give one of the two")
    try:
        config = load_config(arguments.config)
        if arguments.score:
            with contextlib.redirect_stdout(sys.stderr):  # progress; what is piped on is JSON alone
                scores = score_card(config, arguments.score, device=arguments.device)
            print(json.dumps(scores, indent=1))
        else:
            train(
                config,
                arguments.out,
                resume=arguments.resume,
                weights=arguments.weights,
                device=arguments.device,
            )
    except (ValueError, OSError, TrainingDivergedError) as error:
        raise SystemExit(f"training: {error}") from error


if __name__ == "__main__":
    main()
