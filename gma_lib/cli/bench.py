"""``gma bench``, ``gma precision``, ``gma half-precision``: what variants and precisions cost."""

from pathlib import Path

import click

from gma_lib.backends import BACKENDS
from gma_lib.cli.options import CHECKPOINT, PATH
from gma_lib.perf.comparison import compare, load_comparison, tabulate_comparison
from gma_lib.perf.half_precision import choose_pairs, study_variants, tabulate_study
from gma_lib.perf.precision import measure_precisions
from gma_lib.perf.summary import PRECISION_RESULTS, advise
from gma_lib.runs import track, write_json
from gma_lib.runs.precisions import PRECISIONS


@click.command("bench", epilog="Example: gma bench benchmarks/cpu.yaml")
@click.argument("configs", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    default="benchmarks/results",
    show_default=True,
    type=PATH,
    help="Folder for the results: cpu.yaml becomes cpu.json.",
)
@click.option(
    "--lock",
    default="outputs/.machine.lock",
    show_default=True,
    type=PATH,
    help="Lock file held while measuring; 06_perf uses the same.",
)
def compare_variants(configs: tuple[Path, ...], out: Path, lock: Path) -> None:
    """Compare variants of the network, as configured in CONFIGS (YAML), in interleaved rounds."""
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise ValueError(f"{max(names, key=names.count)}.json would be written twice: rename one")
    settings = {path.stem: load_comparison(path) for path in configs}  # all, before the first runs
    for name, comparison in settings.items():
        found = compare(comparison, lock_file=lock)
        write_json(out / f"{name}.json", found)
        click.echo(f"{tabulate_comparison(found)}\n\nwritten to {out / name}.json")


@click.command("precision", epilog="Example: gma precision --precision bfloat16")
@CHECKPOINT
@click.option("--backend", default="openvino", show_default=True, type=click.Choice(list(BACKENDS)))
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    default=("bfloat16", "int8"),
    show_default=True,
    help="A reduced precision; may be repeated.",
)
@click.option("--out", default=PRECISION_RESULTS, type=PATH, help="JSON file for the results.")
def score_precisions(checkpoint: str, backend: str, precisions: tuple[str, ...], out: Path) -> None:
    """Score reduced precisions on held-out scenes, next to float32."""
    write_json(out, measure_precisions(checkpoint, backend, precisions))
    click.echo(advise(out))


@click.command("half-precision", epilog="Example: gma half-precision MPI-Sintel --most 2")
@click.argument("sintel", type=PATH)
@CHECKPOINT
@click.option(
    "--most", default=8, show_default=True, type=click.IntRange(1), help="Largest number of pairs."
)
@click.option("--out", type=PATH, help="Also write the results to this JSON file.")
def emulate_half(sintel: Path, checkpoint: str, most: int, out: Path | None) -> None:
    """Emulate float16, part by part, on pairs with ground truth from the folder SINTEL."""
    pairs = choose_pairs(sintel.absolute(), most)
    names = [pair.name for pair in pairs]
    click.echo(f"{len(pairs)} pairs: {', '.join(names)}; {checkpoint}\n")
    study = study_variants(pairs, checkpoint, track=track)
    if out:
        rows = study.to_dict("index")
        write_json(out, {"checkpoint": checkpoint, "pairs": names, "variants": rows})
    click.echo(tabulate_study(study))
