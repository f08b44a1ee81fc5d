"""``gma train``, ``gma held-out``, ``gma card``: weights, their scores, and the page about both."""

import contextlib
import json
import sys
from pathlib import Path

import click
import torch

from gma_lib import runs
from gma_lib.cli.options import PATH, PATH_TEXT, locate_weights
from gma_lib.training.config import load_config, load_recipe, warn_of_slow_bfloat16
from gma_lib.training.model_card import score_held_out, write_card
from gma_lib.training.recipe import run_recipe, shorten_recipe
from gma_lib.training.trainer import train

CONFIG = click.option(
    "--config", required=True, type=PATH, help="Configuration, such as params/train.yaml."
)


def _check_device(_: click.Context, __: click.Parameter, device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from builds without CUDA
        raise click.BadParameter(f"PyTorch has no {device!r} here") from error
    return device


DEVICE = click.option(
    "--device",
    default="cuda" if torch.cuda.is_available() else "cpu",
    callback=_check_device,
    help="PyTorch's device.  [default: cuda where PyTorch finds one, else cpu]",
)


@click.command(
    "train", epilog="Example: gma train --config params/train.yaml --out outputs/training"
)
@click.option("--config", type=PATH, help="Configuration, such as params/train.yaml.")
@click.option("--recipe", type=PATH, help="Recipe of several parts; the same command resumes it.")
@click.option("--short", is_flag=True, help="With --recipe: a one-minute version, on the CPU.")
@click.option(
    "--out",
    type=PATH,
    help="For checkpoints and the log.  [default: outputs/training; with --recipe: outputs/recipe]",
)
@click.option("--resume", is_flag=True, help="With --config: continue the folder's checkpoint.")
@click.option(
    "--weights",
    type=PATH_TEXT,
    callback=locate_weights,
    help="With --config: start from these weights (a name or a file).",
)
@DEVICE
def train_weights(
    config: Path | None,
    recipe: Path | None,
    short: bool,
    out: Path | None,
    resume: bool,
    weights: str | None,
    device: str,
) -> None:
    """Train GMA on procedural scenes, from one configuration or a recipe."""
    if (config is None) == (recipe is None):
        raise click.UsageError("give either --config or --recipe")
    if config:
        if resume and weights:
            raise click.UsageError("--resume continues a run and --weights starts one: give one")
        if short:
            raise click.UsageError("--short belongs to --recipe")
        folder, settings = out or runs.PROJECT / "outputs" / "training", load_config(config)
        if not resume:  # which keeps its settings
            warn_of_slow_bfloat16(settings, device)
        train(settings, folder, resume=resume, weights=weights, device=device)
    if recipe:
        if resume or weights:
            raise click.UsageError("a recipe goes on by itself and says what it starts from")
        parts = shorten_recipe(load_recipe(recipe)) if short else load_recipe(recipe)
        folder = out or runs.PROJECT / "outputs" / ("recipe-short" if short else "recipe")
        # scattered gradients on a CUDA device differ from run to run
        file = run_recipe(parts, folder, device="cpu" if short else device)
        click.echo(f"{runs.shorten_path(file)}: SHA-256 {runs.hash_file(file)}")


@click.command("held-out", epilog="Example: gma held-out gma-procedural --config params/train.yaml")
@click.argument("weights", type=PATH_TEXT, callback=locate_weights)
@CONFIG
@DEVICE
def held_out(weights: str, config: Path, device: str) -> None:
    """Score WEIGHTS (a name or a file) on both held-out families, as JSON."""
    with contextlib.redirect_stdout(sys.stderr):  # progress; stdout holds the JSON alone
        scores = score_held_out(load_config(config), weights, device=device)
    click.echo(json.dumps(scores, indent=1))


@click.command("card", epilog="Example: gma card --score")
@click.option("--score", is_flag=True, help="Score the weights first.")
@click.option("--sintel", type=PATH, help="With --score: a folder of Sintel, for real frames.")
@click.option("--run", type=PATH, help="First copy the weights of this run of params/recipe.yaml.")
def card(score: bool, sintel: Path | None, run: Path | None) -> None:
    """Write the card of the bundled weights from its numbers."""
    if sintel and not score:
        raise click.UsageError("--sintel belongs to --score")
    frames = sintel and sintel.absolute()  # else it would start at the project
    click.echo(write_card(score=score, sintel=frames, run=run)["note"])
