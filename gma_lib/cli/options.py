"""What commands share: their options, messages, and refusals before anything is computed."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click

from gma_lib.runs.files import RESOURCES
from gma_lib.runs.records import load_record

Command = TypeVar("Command", bound=Callable[..., Any])
NOISE = " (seeded weights: this flow is noise)"
PATH = click.Path(path_type=Path)
CHECKPOINT = click.option(
    "--checkpoint",
    default="gma-procedural",
    show_default=True,
    help="Bundled weights, or a .pth or .safetensors file.",
)


class FiniteRange(click.FloatRange):
    """A range that NaN and infinity are outside of; every comparison with NaN is false."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Network(TypedDict):
    """What ``network_options`` hands to a command; keywords of ``gma_lib.load``."""

    checkpoint: str
    num_updates: int
    backend: str
    precision: str
    max_pixels: int | None
    refine: str | None


def network_options(updates: int) -> Callable[[Command], Command]:
    """Add the options of a command that computes flow."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    options = (
        CHECKPOINT,
        click.option(
            "--updates",
            "num_updates",
            default=updates,
            show_default=True,
            type=click.IntRange(1),
            help="Refinements; more is slower.",
        ),
        click.option(
            "--backend",
            default="openvino",
            show_default=True,
            help="openvino, onnxruntime, torch or cuda.",
        ),
        click.option(
            "--precision",
            default="float32",
            show_default=True,
            help="bfloat16 or int8 where the processor has bfloat16; float16 on cuda.",
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(128 * 128),
            help="Larger frames are computed smaller.  [default: what needs 4 GB, 1280x720]",
        ),
        click.option("--refine", help="variational: refine the flow below a pixel (0.1 to 0.3 s)."),
    )
    return decorate


def describe_refinement(network: Network) -> str:
    """End a result line: refined how, or that it would pay by the card of bundled weights."""
    if network["refine"]:
        return f"; refined ({network['refine']})"
    card = RESOURCES / "weights" / f"{network['checkpoint']}.json"
    pays = card.is_file() and load_record(card, "a card of weights").get("refinement_pays")
    return "; --refine variational makes it more precise" if pays else ""


def remark(sentence: str) -> None:
    """Tell the user something without adding to the output."""
    click.echo(sentence, err=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise ValueError if a result would replace a file, or cannot be written."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; name another file or add --overwrite")
    _refuse_unwritable(path)


def refuse_used_folder(folder: Path) -> None:
    """Raise ValueError if a folder holds something, or cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name another one")
    _refuse_unwritable(folder)


def _refuse_unwritable(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: cannot write to {folder}")
