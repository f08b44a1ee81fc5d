"""``gma export``: weights to ONNX files."""

from pathlib import Path
from typing import TypedDict, Unpack

import click

from gma_lib.cli.options import CHECKPOINT, PATH, refuse_used_folder
from gma_lib.convert import ModelSpec, export_model
from gma_lib.network.memory import require_memory
from gma_lib.network.sizes import LARGEST_BATCH, MOST_UPDATES, OPSETS, check_sides
from gma_lib.runs.progress import show_waiting


class Size(TypedDict):
    """The size of a graph's input."""

    height: int
    width: int
    batch_size: int


@click.command("export", epilog="Example: gma export -o model --height 440 --width 1024")
@click.option("-o", "--output", required=True, type=PATH, help="Folder for gma.onnx; new or empty.")
@click.option(
    "--height", required=True, type=int, help="Padded frame height: a multiple of 8, at least 128."
)
@click.option(
    "--width", required=True, type=int, help="Padded frame width: a multiple of 8, at least 128."
)
@click.option(
    "--batch-size",
    default=1,
    show_default=True,
    type=click.IntRange(1, LARGEST_BATCH),
    help="Pairs per call of the file.",
)
@CHECKPOINT
@click.option(
    "--updates",
    default=6,
    show_default=True,
    type=click.IntRange(1, MOST_UPDATES),
    help="Refinement iterations, unrolled into the file.",
)
@click.option(
    "--lookup",
    default="matmul",
    show_default=True,
    type=click.Choice(list(OPSETS)),
    help="Form of the correlation lookup; grid_sample needs opset 16.",
)
@click.option(
    "--opset",
    type=int,
    help="ONNX operator set.  [default: 13, or the first that has the lookup]",
)
@click.option(
    "--split",
    is_flag=True,
    help="Also write the parts gma_features, gma_context and gma_refine, for sequences.",
)
def main(
    output: Path,
    checkpoint: str,
    updates: int,
    lookup: str,
    opset: int | None,
    split: bool,
    **size: Unpack[Size],
) -> None:
    """Write the network as ONNX for one frame size."""
    check_sides(size["height"], size["width"])
    require_memory("torch", "float32", 1, size["height"], size["width"])  # one pair is traced
    refuse_used_folder(output)
    spec = ModelSpec(
        checkpoint,
        **size,
        num_updates=updates,
        lookup=lookup,
        opset=opset,
        parts=split,
    )
    with show_waiting(str(output)):
        files, weights = export_model(spec, output)
    for file in files:
        click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    click.echo(weights.note)
