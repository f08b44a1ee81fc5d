"""``gma download``: MPI Sintel from its own site."""

from pathlib import Path

import click

from gma_lib.cli.options import PATH
from gma_lib.data.fetch import download


@click.command("download", epilog="Example: gma download data")
@click.argument("folder", type=PATH)
def main(folder: Path) -> None:
    """Download MPI Sintel (5.3 GiB) into FOLDER and unpack it."""
    click.echo(f"SINTEL={download(folder)}")
