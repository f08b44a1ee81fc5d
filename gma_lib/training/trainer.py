"""Train GMA on procedural scenes, whose motion is known because the package draws them.

A killed run resumes on the same curve: every pair is a function of its number.
"""

import dataclasses
import io
import json
import logging
import math
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import compress
from operator import not_
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from gma_lib import network, runs
from gma_lib.backends.torch import refuse_less_than_float32
from gma_lib.flow import pool_scores
from gma_lib.network.checkpoints import MOST_BYTES, decode_tensors
from gma_lib.runs.processes import lock_path
from gma_lib.training.config import Phase, TrainingConfig, name_differences
from gma_lib.training.losses import LARGEST_FLOW, matching_loss, sequence_loss
from gma_lib.training.model_card import predict_updates, score_pairs
from gma_lib.training.pairs import (
    VALIDATION,
    PairSource,
    render_held_out,
    require_other_seed,
)
from gma_lib.training.scenes import TrainingPair

logger = logging.getLogger(__name__)
RESULTS = ("checkpoint.pt", "log.jsonl", "averaged.safetensors", "best.safetensors")
NEW_RUN = (
    "Restore it, or start in a new folder (--weights averaged.safetensors keeps what is learnt)"
)


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


def make_optimisers(model: network.GMA, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a configuration; each parameter belongs to one of them.

    ImportError, with the remedy, where PyTorch has no Muon and the configuration names it.
    """
    parameters = list(model.parameters())
    # kernels with fewer than 16 rows or columns stay with AdamW
    is_moved_by_muon = [
        config.optimiser == "muon" and one.ndim == 4 and min(one.flatten(1).shape) >= 16
        for one in parameters
    ]
    kernels = list(compress(parameters, is_moved_by_muon))
    others = list(compress(parameters, map(not_, is_moved_by_muon)))
    # Before the recurrent part reads the correlation, its clipped gradients are of the order of
    # AdamW's usual epsilon (1e-8), which would stop it from learning.
    adamw = torch.optim.AdamW(others, lr=1e-9, weight_decay=config.weight_decay, eps=1e-11)
    if not kernels:
        return [adamw]
    muon = import_module("gma_lib.training.muon")  # not in PyTorch before 2.9
    return [muon.KernelMuon(kernels, weight_decay=config.weight_decay), adamw]


class Trainer:
    """Weights, optimisers and averaged weights between two steps.

    Parameters
    ----------
    config
        What to train.
    weights
        A checkpoint (name or file) to start from, with a fresh state of the optimiser.
    device
        Device to train on.
    """

    def __init__(
        self, config: TrainingConfig, *, weights: str | Path | None = None, device: str = "cpu"
    ):
        refuse_less_than_float32()
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        # of all lookups, the one whose gradient is cheapest
        self.model = network.GMA(network.GMAConfig(lookup="grid_sample")).to(self.device)
        if weights is not None:
            network.load_checkpoint(weights).load_into(self.model)
        validated = network.GMA().to(self.device).eval().requires_grad_(False)
        self.averaged = AveragedModel(
            validated, avg_fn=partial(_average, config.ema_decay), use_buffers=True
        )
        self.averaged.update_parameters(self.model)  # the first time copies
        self.optimisers = make_optimisers(self.model, config)
        self.step = 0
        self.seconds = 0.0
        self.source = PairSource(config, self.device)

    def advance(self) -> runs.Record:
        """Take one step and return what to log about it."""
        phase, _ = self.config.phase_at(self.step)
        started = time.monotonic()
        batch = self.source.render_batch(self.step, phase)
        rendered = time.monotonic()
        self.model.train()
        if phase.freeze_batch_norm:
            self.model.cnet.eval()  # the only part that has batch norms
        loss, about = self._compute_loss(batch, phase)
        self._require_finite("loss", loss, phase)
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self._require_finite("gradient", norm, phase)
        rate = self.config.learning_rate(self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        self.averaged.update_parameters(self.model)
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

    def _compute_loss(self, batch: TrainingPair, phase: Phase) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, and what to log about it."""
        model, truth = self.model, batch.flow
        speed = truth.square().sum(dim=1).sqrt()
        learnt = speed < LARGEST_FLOW
        if not phase.learn_occluded:
            learnt &= ~batch.occluded
        dtype = getattr(torch, self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            features = model.features(batch.image1), model.features(batch.image2)
            flows = list(self._predict(batch, features, phase)) if phase.num_updates else []
        loss, about = torch.zeros((), device=self.device), {}
        if phase.matching:
            matching = matching_loss(*features, truth, learnt & ~batch.occluded)
            loss, about = loss + phase.matching * matching, {"matching": matching.item()}
        if flows:
            gamma, power = self.config.sequence_gamma, phase.loss_power
            loss = loss + sequence_loss(flows, truth, learnt, gamma, power)
            about["epe"] = (flows[-1].detach() - truth).square().sum(dim=1).sqrt().mean().item()
        # the score of zero flow on these scenes, for comparison
        return loss, about | {"zero_epe": speed.mean().item()}

    def _predict(
        self, batch: TrainingPair, features: tuple[Tensor, Tensor], phase: Phase
    ) -> Iterator[Tensor]:
        """The flow after each update that is learnt from."""
        context, lead = self.model.context(batch.image1), self._draw_lead(phase)
        return self.model.flow_by_update(*features, context, lead + phase.num_updates, lead=lead)

    def _require_finite(self, what: str, value: Tensor, phase: Phase) -> None:
        if not torch.isfinite(value):
            raise TrainingDivergedError(
                f"step {self.step} ({phase.name}): the {what} is {value.item()}. Start in a new "
                "folder with a lower learning_rate; --weights averaged.safetensors keeps what was "
                "learnt up to the last checkpoint."
            )

    def _draw_lead(self, phase: Phase) -> int:
        """Draw how many updates run ahead without gradient; none at every other step."""
        rng = np.random.default_rng([self.config.seed, self.step, 1])
        return int(rng.integers(phase.lead_updates + 1)) if self.step % 2 else 0

    def _collect_state(self) -> runs.Record:
        """Everything that a resumed run needs."""
        return {
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs, whole or not at all."""
        # in memory first: to torch.save, a full disk is a RuntimeError like any other
        torch.save(self._collect_state(), content := io.BytesIO())
        with runs.write_atomically(path) as file:
            file.write_bytes(content.getbuffer())

    def resume(self, path: Path) -> None:
        """Continue from a saved state of the same configuration.

        Raises
        ------
        BadFile
            It is missing, damaged, another file, or of another configuration.
        """
        expected = "the checkpoint of a training with this configuration"
        with runs.reading(path, expected, NEW_RUN) as path:
            state = decode_tensors(runs.read_whole(path, largest=MOST_BYTES), path.suffix)
            if not isinstance(state, dict) or state.keys() != self._collect_state().keys():
                raise ValueError("not written by `gma train`")
            differing = name_differences(state["config"], dataclasses.asdict(self.config))
            if differing:
                raise ValueError(f"the configuration differs in {', '.join(differing)}")
            self.model.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["averaged"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]


def _average(decay: float, averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Average a parameter or buffer; count buffers are copied.

    Young averages follow quickly, or they would keep the random start for a thousand steps.
    """
    if not current.is_floating_point():
        return current
    return averaged.lerp(current, 1 - min(decay, int(count) / (9 + int(count))))


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    weights: str | Path | None = None,
    device: str = "cpu",
) -> Trainer:
    """Train to the end of the configuration's phases.

    Writes into ``folder``: ``checkpoint.pt`` (to resume), ``averaged.safetensors`` (its averaged
    weights), ``best.safetensors`` (those of the validation with the lowest EPE, both families
    weighted equally), ``log.jsonl`` (a line per step and per validation) and ``curves.png`` (its
    figure, updated after every validation).

    Raises
    ------
    FileExistsError, FileNotFoundError
        ``folder`` holds results of another run; there is no checkpoint to ``resume``.
    ValueError
        Another process trains in ``folder``, its checkpoint or log cannot be resumed, or the
        configuration has a seed of the held-out scenes.
    TrainingDivergedError
        The loss is no longer a number.
    """
    folder = Path(folder)
    checkpoint = folder / "checkpoint.pt"
    if resume and not checkpoint.exists():
        raise FileNotFoundError(
            f"{checkpoint}: no checkpoint to resume from; leave out --resume to start a new run"
        )
    require_other_seed(config)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_path(folder / ".lock", wait=False):
        if not resume:
            _require_new(folder)
        trainer = Trainer(config, weights=weights, device=device)
        if resume:
            trainer.resume(checkpoint)
        else:  # first of all files, so that none of a killed run is taken for another's
            trainer.save(checkpoint)
        _train_on(trainer, folder)
    return trainer


def _require_new(folder: Path) -> None:
    """Raise where a run has left results, even if somebody removed its checkpoint."""
    checkpoint, *others = (folder / name for name in RESULTS)
    if checkpoint.exists():
        raise FileExistsError(f"{checkpoint} exists: resume, or name another folder")
    for path in filter(Path.exists, others):
        raise FileExistsError(f"{path} exists, without its checkpoint: name another folder")


def _train_on(trainer: Trainer, folder: Path) -> None:
    """Train from where a trainer stands to the end, and write what ``train`` says."""
    config, log = trainer.config, folder / "log.jsonl"
    cut_log(log, trainer.step)
    families = render_held_out(config, device=trainer.device) if config.validation_pairs else {}
    best = min(map(held_out_epe, read_log(log)[1]), default=math.inf)
    saved, averaged = time.monotonic(), trainer.averaged.module
    with open(log, "a", encoding="utf-8", buffering=1) as lines:  # line by line
        for entry in _run_steps(trainer):
            lines.write(json.dumps(entry) + "\n")
            last = trainer.step == config.steps
            if families and (trainer.step % config.validate_every == 0 or last):
                validation = _validate(trainer, families)
                lines.write(json.dumps(validation) + "\n")
                if held_out_epe(validation) < best:
                    best = held_out_epe(validation)
                    network.save_checkpoint(folder / "best.safetensors", averaged.state_dict())
                    saved = (
                        -math.inf
                    )  # force a checkpoint: a resumed run drops later lines of the log
                with runs.write_atomically(folder / "curves.png") as figure:
                    plot_log(log).savefig(figure, dpi=150)
            if last or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                network.save_checkpoint(folder / "averaged.safetensors", averaged.state_dict())
                trainer.save(folder / "checkpoint.pt")
                saved = time.monotonic()


def _run_steps(trainer: Trainer) -> Iterator[runs.Record]:
    """Advance to the end, with a message about once in ten seconds."""
    started, first, shown = time.monotonic(), trainer.step, 0.0
    while trainer.step < trainer.config.steps:
        entry = trainer.advance()
        yield entry
        now = time.monotonic()
        if now - shown > 10:
            rate = (trainer.step - first) / (now - started)
            left = (trainer.config.steps - trainer.step) / rate / 60
            logger.info(
                f"{entry['phase']}: step {trainer.step}/{trainer.config.steps}, "
                f"loss {entry['loss']:.2f}, "
                f"EPE {entry.get('epe', math.nan):.2f} px (of {entry['zero_epe']:.2f}), "
                f"{rate:.2f} steps/s, {left:.0f} min left"
            )
            shown = now


def _validate(trainer: Trainer, families: dict[str, list[TrainingPair]]) -> runs.Record:
    """Score the averaged weights on the held-out families and return what to log about it."""
    found, count = {}, VALIDATION.num_updates
    predict = partial(predict_updates, cast(network.GMA, trainer.averaged.module), (count,))
    for family, pairs in families.items():
        scores = score_pairs(predict, (pair.to_arrays() for pair in pairs))
        groups = pool_scores(scores[str(count)])
        found[family] = {
            name: groups[name].to_metrics() for name in ("all", "occluded", "non_occluded")
        }
        overall = found[family]["all"]
        logger.info(
            f"validation on {family}: EPE {overall['epe']:.2f} px, 1px {100 * overall['px1']:.1f} %"
        )
    return {"step": trainer.step, "validation": found}


# --- the log --------------------------------------------------------------------------------------


def cut_log(path: Path, step: int) -> None:
    """Remove entries after the checkpoint's step, or the curve would hold those steps twice.

    Raises
    ------
    BadFile
        A line is damaged, other than the last, which was being written when the run was killed.
    """
    path.touch()
    kept = []
    with runs.reading(path, "a line for each step and validation", NEW_RUN):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                is_kept = json.loads(line)["step"] <= step
            except (ValueError, LookupError, TypeError) as error:
                if number == len(lines):
                    break
                raise ValueError(f"line {number} is damaged") from error
            if is_kept:
                kept.append(line)
    runs.write_text(path, "".join(f"{line}\n" for line in kept))


def held_out_epe(validation: runs.Record) -> float:
    """Return the EPE in pixels that decides which weights are kept: the mean of both families."""
    return float(np.mean([family["all"]["epe"] for family in validation["validation"].values()]))


def read_log(path: Path) -> tuple[list[runs.Record], list[runs.Record]]:
    """Read the entries of steps and those of validations."""
    entries = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if "loss" in entry], [
        entry for entry in entries if "validation" in entry
    ]


def plot_log(path: Path) -> Figure:
    """Plot the training error, smoothed, and the held-out error of both families over the steps."""
    steps, validations = read_log(path)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="EPE (px)", yscale="log")
    steps = [entry for entry in steps if "epe" in entry]  # none while features alone learn
    window = max(1, min(50, len(steps)))
    lines = (("epe", "training", "0.3"), ("zero_epe", "zero flow on the same scenes", "0.7"))
    for name, label, colour in lines if steps else ():
        smooth = np.convolve(
            [entry[name] for entry in steps], np.ones(window) / window, mode="valid"
        )
        numbers = [entry["step"] for entry in steps][window - 1 :]
        axes.plot(numbers, smooth, label=f"{label}, mean of {window} steps", color=colour)
    for family in validations[0]["validation"] if validations else ():
        curve = [
            (entry["step"], entry["validation"][family]["all"]["epe"]) for entry in validations
        ]
        axes.plot(*zip(*curve, strict=True), marker="o", label=f"held out: {family}")
    if axes.lines:
        axes.legend()
    return figure
