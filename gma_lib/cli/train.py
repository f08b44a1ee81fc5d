"""``gma train``, ``gma held-out``, ``gma card``: weights, their scores, and the page about both."""

import contextlib
import json
import sys
from pathlib import Path

import click
import torch

from gma_lib.cli.options import PATH
from gma_lib.training.config import load_config
from gma_lib.training.model_card import score_held_out, write_card
from gma_lib.training.trainer import train

CONFIG = click.option(
    "--config", required=True, type=PATH, help="Configuration, such as params/train.yaml."
)
DEVICE = click.option(
    "--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True
)


@click.command(
    "train", epilog="Example: gma train --config params/train.yaml --out outputs/training"
)
@CONFIG
@click.option("--out", required=True, type=PATH, help="Folder for checkpoints and the log.")
@click.option("--resume", is_flag=True, help="Continue the folder's checkpoint.")
@click.option("--weights", help="Start from these weights (a name or a file), optimiser fresh.")
@DEVICE
def train_weights(config: Path, out: Path, resume: bool, weights: str | None, device: str) -> None:
    """Train GMA on procedural scenes."""
    if resume and weights:
        raise click.UsageError("--resume continues a run and --weights starts one: give one")
    train(load_config(config), out, resume=resume, weights=weights, device=device)


@click.command("held-out", epilog="Example: gma held-out gma-procedural --config params/train.yaml")
@click.argument("weights")
@CONFIG
@DEVICE
def held_out(weights: str, config: Path, device: str) -> None:
    """Score WEIGHTS (a name or a file) on both held-out families, as JSON."""
    with contextlib.redirect_stdout(sys.stderr):  # progress; stdout holds the JSON alone
        scores = score_held_out(load_config(config), weights, device=device)
    click.echo(json.dumps(scores, indent=1))


@click.command("card", epilog="Example: gma card --score")
@click.option("--score", is_flag=True, help="Measure again first.")
@click.option("--sintel", type=PATH, help="With --score: a folder of Sintel, for real frames.")
def card(score: bool, sintel: Path | None) -> None:
    """Write the card of the bundled weights from its numbers."""
    click.echo(write_card(score=score, sintel=sintel)["note"])
