"""``gma ascend``, ``gma rewrite``: what an Ascend card needs, written on any machine."""

from pathlib import Path

import click
import numpy as np
import onnx

from gma_lib.ascend.atc import AtcOptions
from gma_lib.ascend.chip import to_soc_version
from gma_lib.ascend.dry_run import write_commands, write_run_script
from gma_lib.ascend.graphs import find_wide_values
from gma_lib.ascend.keep import CHOICES
from gma_lib.ascend.rewrite import rewrite_file, rewrite_with_vendor_tool
from gma_lib.ascend.verify import in_a_sentence
from gma_lib.data import load_pairs, write_guide_tensors
from gma_lib.runs.files import locate_path, shorten_path
from gma_lib.runs.precisions import PRECISION_NAMES
from gma_lib.runs.records import read_json

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("ascend", epilog="Example: gma ascend --soc 310P3 --batch-size 1 --batch-size 4")
@click.option("--profile", default="demo", show_default=True, help="A file in params/.")
@click.option("--run", help="Folder of the run.  [default: ascend-PRECISION]")
@click.option(
    "--precision",
    default="float16",
    show_default=True,
    type=click.Choice(list(PRECISION_NAMES["atc"])),
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=int,
    multiple=True,
    default=(1, 4),
    show_default=True,
    help="Pairs per call of the network; may be repeated.",
)
@click.option("--soc", default="310P3", show_default=True, help="The other machine's chip.")
@click.option(
    "--keep",
    default="guide",
    show_default=True,
    type=click.Choice(list(CHOICES)),
    help="What stays float32.",
)
@click.option("--outputs", default="outputs", show_default=True, help="Folder of the results.")
def dry_run(
    profile: str,
    run: str | None,
    precision: str,
    batch_sizes: tuple[int, ...],
    soc: str,
    keep: str,
    outputs: str,
) -> None:
    """Write a folder with all that a machine with CANN needs, from what 02_export left."""
    mode = PRECISION_NAMES["atc"][precision]
    kept = AtcOptions.keep_dtype if mode is None else ()
    options = AtcOptions(to_soc_version(soc), precision_mode=mode, keep_dtype=kept)
    results = locate_path(outputs) / profile
    folder = results / (run or f"ascend-{precision}")
    for size in batch_sizes:
        write_commands(folder / f"bs{size}" / "model", folder / "ascend", options, keep=keep)
    write_run_script(folder / "ascend", batch_sizes)
    index = read_json(results / "data" / "index.json", made_by="01_data")
    write_guide_tensors(load_pairs(index), folder / "ascend" / "tensors", with_truth=False)
    click.echo(f"{shorten_path(folder / 'ascend')}/run.sh")


@click.command("rewrite", epilog="Example: gma rewrite gma.onnx narrow.onnx --size batch 2")
@click.argument("source", type=FILE)
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--leave", multiple=True, help="An operator to leave as it is.")
@click.option(
    "--size",
    "sizes",
    type=(str, click.IntRange(min=0)),
    multiple=True,
    help="What an open axis becomes for the comparison: its name and a size.",
)
@click.option(
    "--feeds",
    type=FILE,
    multiple=True,
    help="Inputs to compare both graphs with, by name, as .npz; once for each set.",
)
@click.option(
    "--vendor-python",
    help="Ask auto_optimizer instead, which this interpreter has; its result is verified.",
)
def rewrite(
    source: Path,
    target: Path,
    leave: tuple[str, ...],
    sizes: tuple[tuple[str, int], ...],
    feeds: tuple[Path, ...],
    vendor_python: str | None,
) -> None:
    """Write SOURCE to TARGET with 32-bit numbers in place of 64-bit ones, and say what changed."""
    with in_a_sentence("the feeds cannot be read"):
        given = [dict(np.load(path, allow_pickle=False)) for path in feeds] or None
    if vendor_python:
        rewrite_with_vendor_tool(source, target, python=vendor_python, feeds=given)
        left = len(find_wide_values(onnx.shape_inference.infer_shapes(onnx.load(target)).graph))
        click.echo(f"auto_optimizer's result computes the same; it leaves {left} values of 64 bits")
        return
    report = rewrite_file(source, target, leave=frozenset(leave), feeds=given, sizes=dict(sizes))
    click.echo(report.sentence())
    for node, reason in report.refused.items():
        click.echo(f"left as it is: {node}: {reason}")
