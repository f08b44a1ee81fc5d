"""``gma bench``, ``gma precision``, ``gma half-precision``: what variants and precisions cost."""

from pathlib import Path

import click

from gma_lib.backends import BACKENDS
from gma_lib.cli.options import CHECKPOINT, PATH, refuse_existing
from gma_lib.network import load_checkpoint
from gma_lib.perf.comparison import compare, load_comparison, tabulate_comparison
from gma_lib.perf.half_precision import choose_pairs, study_variants, tabulate_study
from gma_lib.perf.precision import measure_precisions
from gma_lib.perf.summary import describe_costs
from gma_lib.runs import track, write_json
from gma_lib.runs.precisions import PRECISIONS
from gma_lib.runs.processes import require_posix

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace results that exist.")


@click.command("bench", epilog="Example: gma bench benchmarks/cpu.yaml")
@click.argument("configs", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    default=".",
    type=PATH,
    help="Folder for the results: cpu.yaml becomes cpu.json.  [default: the current folder]",
)
@OVERWRITE
def compare_variants(configs: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Compare variants of the network, as configured in CONFIGS (YAML), in interleaved rounds.

    While it measures, no other stage or measurement of this project runs.
    """
    require_posix("gma bench")
    results = [out / f"{path.stem}.json" for path in configs]
    refuse_existing(results, configs, overwrite)
    settings = [load_comparison(path) for path in configs]  # all, before the first is measured
    for result, comparison in zip(results, settings, strict=True):
        found = compare(comparison)
        click.echo(tabulate_comparison(found))
        write_json(result, found)
        click.echo(f"\nwritten to {result}")


@click.command("precision", epilog="Example: gma precision --precision bfloat16")
@CHECKPOINT
@click.option(
    "--backend",
    default="openvino",
    show_default=True,
    type=click.Choice(list(BACKENDS)),
    help="Runtime that computes.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    default=("bfloat16", "int8"),
    show_default=True,
    help="A reduced precision; may be repeated.",
)
@click.option(
    "--out",
    default="precision.json",
    show_default=True,
    type=PATH,
    help="JSON file for the results.",
)
@OVERWRITE
def score_precisions(
    checkpoint: str, backend: str, precisions: tuple[str, ...], out: Path, overwrite: bool
) -> None:
    """Score reduced precisions on held-out scenes, next to float32."""
    refuse_existing([out], [], overwrite)
    found = measure_precisions(checkpoint, backend, precisions)
    click.echo(describe_costs(found))
    write_json(out, found)


@click.command("half-precision", epilog="Example: gma half-precision MPI-Sintel --most 2")
@click.argument("sintel", type=PATH)
@CHECKPOINT
@click.option(
    "--most", default=8, show_default=True, type=click.IntRange(1), help="Largest number of pairs."
)
@click.option("--out", type=PATH, help="Also write the results to this JSON file.")
@OVERWRITE
def emulate_half(
    sintel: Path, checkpoint: str, most: int, out: Path | None, overwrite: bool
) -> None:
    """Emulate float16, part by part, on pairs with ground truth from the folder SINTEL."""
    if overwrite and not out:
        raise click.UsageError("--overwrite is for --out")
    refuse_existing([out] if out else [], [], overwrite)
    pairs = choose_pairs(sintel.absolute(), most)
    names = [pair.name for pair in pairs]
    click.echo(f"{len(pairs)} pairs: {', '.join(names)}; {checkpoint}\n")
    about = {"checkpoint": checkpoint, "checkpoint_sha256": load_checkpoint(checkpoint).sha256}
    study = study_variants(pairs, checkpoint, track=track)
    click.echo(tabulate_study(study))
    if out:
        rows = study.to_dict("index")
        write_json(out, about | {"pairs": names, "variants": rows})
