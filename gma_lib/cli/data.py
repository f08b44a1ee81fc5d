"""``gma data``: data sets from their own sites."""

from pathlib import Path

import click

from gma_lib.cli.options import PATH
from gma_lib.data.fetch import fetch_sintel
from gma_lib.runs.progress import track


@click.group("data", epilog="Example: gma data sintel data")
def main() -> None:
    """Fetch a data set from its own site."""


@main.command("sintel", epilog="Example: gma data sintel data")
@click.argument("folder", type=PATH)
def sintel(folder: Path) -> None:
    """Download MPI Sintel (5.3 GiB) into FOLDER and unpack it.

    Called again, it goes on where it stopped.
    """
    click.echo(f"SINTEL={fetch_sintel(folder, track=track)}")
