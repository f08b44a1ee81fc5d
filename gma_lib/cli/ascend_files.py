"""``gma ascend``, ``gma rewrite``: what an Ascend card needs, written on any machine."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx

from gma_lib.ascend.brought_back import read_about, read_brought_back, require_unchanged
from gma_lib.ascend.chip import Card
from gma_lib.ascend.dry_run import write_folder
from gma_lib.ascend.graphs import find_wide_values
from gma_lib.ascend.keep import CHOICES
from gma_lib.ascend.rewrite import rewrite_file, rewrite_with_vendor_tool
from gma_lib.ascend.verify import in_a_sentence
from gma_lib.cli.options import OUTPUTS, PATH_TEXT, GivenPath
from gma_lib.cli.profiles import PROFILE
from gma_lib.cli.reproduce import run_and_report
from gma_lib.data import load_pairs
from gma_lib.pipeline.chain import read_index
from gma_lib.pipeline.parameters import parse_overrides, resolve_parameters
from gma_lib.pipeline.stamps import read_given
from gma_lib.runs.files import shorten_path
from gma_lib.runs.precisions import PRECISION_NAMES
from gma_lib.runs.processes import require_posix
from gma_lib.runs.records import Record
from gma_lib.runs.run import DoesNotFit, open_run

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(epilog="Example: gma ascend collect outputs/demo/ascend-float16/ascend")
def ascend() -> None:
    """Use an Ascend card of another machine: write its inputs, score its results."""


@ascend.command("dry-run", epilog="Example: gma ascend dry-run --soc 310P3 --batch-size 1")
@PROFILE
@click.option("--run", help="Folder of the run.  [default: ascend-PRECISION]")
@click.option(
    "--precision",
    default="float16",
    show_default=True,
    type=click.Choice(list(PRECISION_NAMES["atc"])),
    help="Precision that atc compiles for.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 4),
    show_default=True,
    help="Pairs per call of the network; may be repeated.",
)
@click.option("--soc", help="The other machine's chip.  [default: as in 02_export, or 310P3]")
@click.option(
    "--keep",
    type=click.Choice(list(CHOICES)),
    help="Operations kept in float32.  [default: as in 02_export, or guide]",
)
@OUTPUTS
def dry_run(
    profile: str,
    run: str | None,
    precision: str,
    batch_sizes: tuple[int, ...],
    soc: str | None,
    keep: str | None,
    outputs: str,
) -> None:
    """Write everything that a machine with CANN needs to a folder, after 02_export."""
    runs = {
        size: open_run(
            profile=profile,
            backend="ascend",
            precision=precision,
            batch_size=size,
            run=run,
            outputs=outputs,
        )
        for size in batch_sizes
    }
    parameters = {size: read_given(one) for size, one in runs.items()}
    cards = {_choose_card(given, soc, keep) for given in parameters.values()}
    if len(cards) > 1:
        raise ValueError(f"the batch sizes are for different cards, {cards}: run 02_export again")
    first, given = runs[batch_sizes[0]], parameters[batch_sizes[0]]
    target = first.folder.parent / "ascend"
    write_folder(
        {size: one.model_folder for size, one in runs.items()},
        load_pairs(read_index(first)),
        target,
        precision,
        cards.pop(),
        {"profile": profile, "parameters": parameters},
        plain_names=given.get("plain_names", False),
    )
    click.echo(f"{shorten_path(target)}/run.sh")


def _choose_card(given: Record, soc: str | None, keep: str | None) -> Card:
    """The card that 02_export was told, its chip and what it keeps filled in."""
    told = Card.choose({name: given.get(name) for name in ("soc", "keep", "precision_mode_v2")})
    card = replace(told, soc=soc or told.soc or "310P3", keep=keep or told.keep or "guide")
    told.require_made_for(str(card.soc), str(card.keep), card.precision_mode_v2)
    return card


@ascend.command(epilog="Example: gma ascend collect outputs/demo/ascend-float16/ascend")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--set", "others", multiple=True, metavar="NAME=VALUE", help="Any other parameter.")
@OUTPUTS
def collect(folder: Path, others: tuple[str, ...], outputs: str) -> None:
    """Score the results of another machine in FOLDER; write records and report as usual."""
    require_posix("gma ascend collect")
    about = read_about(folder)
    require_unchanged(folder)
    for size in about["sizes"]:
        with suppress(DoesNotFit):  # a row of the report
            read_brought_back(folder, int(size))
    given: Record = {"outputs": outputs, "dry_run": shorten_path(folder.absolute())}
    given |= parse_overrides(others)
    run_and_report(
        [
            resolve_parameters(about["profile"], parameters | given)
            for parameters in about["parameters"].values()
        ]
    )


@click.command("rewrite", epilog="Example: gma rewrite gma.onnx narrow.onnx --size batch 2")
@click.argument("source", type=FILE)
@click.argument("target", type=GivenPath(dir_okay=False, path_type=Path))
@click.option("--leave", multiple=True, help="Operator to leave unchanged; may be repeated.")
@click.option(
    "--size",
    "sizes",
    type=(str, click.IntRange(min=0)),
    multiple=True,
    help="Name and size of an open axis, for the comparison; may be repeated.",
)
@click.option(
    "--feeds",
    type=FILE,
    multiple=True,
    help="Inputs for the comparison, by name, as .npz; may be repeated.",
)
@click.option(
    "--vendor-python",
    type=PATH_TEXT,
    help="Interpreter with auto_optimizer: use that tool and verify its result.",
)
def rewrite(
    source: Path,
    target: Path,
    leave: tuple[str, ...],
    sizes: tuple[tuple[str, int], ...],
    feeds: tuple[Path, ...],
    vendor_python: str | None,
) -> None:
    """Narrow the 64-bit numbers of SOURCE to 32 bits, write TARGET and print the changes."""
    names = [name for name, _ in sizes]
    if len(set(names)) < len(names):
        raise click.UsageError(f"--size {max(names, key=names.count)} is given more than once")
    with in_a_sentence("the feeds cannot be read"):
        given = [dict(np.load(path, allow_pickle=False)) for path in feeds] or None
    if vendor_python:
        if leave:
            raise click.UsageError("--leave is for gma's own rewrite, not for --vendor-python")
        unseen = rewrite_with_vendor_tool(
            source, target, python=vendor_python, feeds=given, sizes=dict(sizes)
        )
        left = len(find_wide_values(onnx.shape_inference.infer_shapes(onnx.load(target)).graph))
        click.echo(f"auto_optimizer's result computes the same; it leaves {left} values of 64 bits")
        if unseen:
            click.echo(f"Not compared: {', '.join(unseen)}.")
        return
    report = rewrite_file(source, target, leave=frozenset(leave), feeds=given, sizes=dict(sizes))
    click.echo(report.sentence())
    for node, reason in report.refused.items():
        click.echo(f"left as it is: {node}: {reason}")
