"""``gma reproduce``: every notebook for every batch size, without a browser, then the report."""

import re
from typing import NoReturn

import click

from gma_lib import report
from gma_lib.backends import BACKENDS
from gma_lib.cli.options import PATH_TEXT
from gma_lib.cli.profiles import PROFILE
from gma_lib.pipeline.parameters import WrongParameters, parse_overrides, resolve_parameters
from gma_lib.pipeline.runner import EXIT
from gma_lib.pipeline.stages import STAGES
from gma_lib.pipeline.walk import run_stages
from gma_lib.report.pages import notebook_to_html
from gma_lib.runs.files import PROJECT, locate_path, require_writable, shorten_path
from gma_lib.runs.precisions import PRECISIONS
from gma_lib.runs.processes import require_posix
from gma_lib.runs.records import Record


@click.command("reproduce", epilog="Example: gma reproduce --profile tiny --batch-size 1")
@PROFILE
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    default=("1", "4"),
    show_default=True,
    help="Pairs per call of the network; may be repeated.",
)
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="Runtime.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Number format.")
@click.option("--run", help="Folder of the results.  [default: <backend>-<precision>]")
@click.option(
    "--sintel", "sintel_root", type=PATH_TEXT, metavar="FOLDER", help="Folder of MPI Sintel."
)
@click.option(
    "--checkpoint", type=PATH_TEXT, metavar="NAME|FILE", help="Bundled weights, or a file."
)
@click.option("--updates", "num_updates", metavar="N", help="Refinement iterations.")
@click.option("--cluster", help="serial, processes:N, dask:local or dask:[tls://]HOST:PORT.")
@click.option("--set", "others", multiple=True, metavar="NAME=VALUE", help="Any other parameter.")
@click.option(
    "--until",
    metavar="STAGE",
    type=click.Choice(list(STAGES)),
    help="Run this stage and those it needs, no others.",
)
@click.option("--force", is_flag=True, help="Also run stages that are up to date.")
def main(
    profile: str,
    batch_sizes: tuple[str, ...],
    others: tuple[str, ...],
    until: str | None,
    force: bool,
    **options: str | None,
) -> None:
    """Run 01_data, then 02_export to 07_inside for every batch size; write the report.

    Options that are not given have the values of the profile's file. Stages that are up to date are
    skipped. With --until, only that stage and those it depends on are run.

    Exit codes: 0 done, up to date, or a batch size that does not fit in memory; 1 a cell failed;
    2 wrong parameters; 124 timeout; 130 interrupted; 138 the kernel died. The first failure counts.
    """
    require_posix("gma reproduce")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        overrides = parse_overrides([*map("=".join, given.items()), *others])
        given.pop("num_updates", None)  # a number; names and paths are as they stand, even "null"
        overrides |= given
        if re.search(r"[:\n]", str(PROJECT)):
            raise WrongParameters(
                f"{PROJECT}: search paths break at a colon or a newline: rename it"
            )
        if "batch_size" in overrides:
            raise WrongParameters("set batch_size with --batch-size")
        resolved = (
            resolve_parameters(profile, overrides | parse_overrides([f"batch_size={size}"]))
            for size in batch_sizes
        )
        runs = list({one["batch_size"]: one for one in resolved}.values())
    except WrongParameters as error:
        click.echo(f"{error}", err=True)
        raise click.exceptions.Exit(2) from None
    run_and_report(runs, until=until, force=force)


def run_and_report(
    runs: list[Record], *, until: str | None = None, force: bool = False
) -> NoReturn:
    """Run the stages, write the index page, and exit. After an interruption, or up to a stage, only
    a page that exists is written again.
    """
    outputs, profile = locate_path(runs[0]["outputs"]), runs[0]["profile"]
    require_writable(outputs)
    ended = run_stages(runs, until=until, write_page=notebook_to_html, force=force)
    page = outputs / profile / "index.html"
    if page.is_file() or (until is None and "interrupted" not in ended):
        if ended.count("up to date") < len(ended) or not report.is_current(outputs, profile):
            report.write_index(outputs, profile)
        click.echo(f"report: {shorten_path(page)}")
    raise click.exceptions.Exit(next((EXIT[status] for status in ended if EXIT[status]), 0))
