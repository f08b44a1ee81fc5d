"""``gma report``: the index page, and all of it as one file."""

import click

from gma_lib.cli.options import OUTPUTS
from gma_lib.cli.profiles import PROFILE
from gma_lib.report.index import write_archive, write_index
from gma_lib.runs.files import locate_path, shorten_path


@click.command("report", epilog="Example: gma report --profile demo --archive")
@PROFILE
@OUTPUTS
@click.option("--archive", is_flag=True, help="Also write the whole report as one zip file.")
def main(profile: str, outputs: str, archive: bool) -> None:
    """Write the index page of a profile from existing results, and print its path."""
    folder = locate_path(outputs)
    click.echo(f"report: {shorten_path(write_index(folder, profile))}")
    if archive:
        file = write_archive(folder, profile)
        click.echo(f"to send: {shorten_path(file)} ({file.stat().st_size / 1e6:.1f} MB)")
