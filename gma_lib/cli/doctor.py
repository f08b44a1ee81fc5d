"""``gma doctor``: what this machine has."""

import click

from gma_lib.doctor.checks import check_machine


@click.command("doctor", epilog="Example: gma doctor")
@click.option("--ais-python", help="Interpreter that has ais_bench.")
def main(ais_python: str | None) -> None:
    """Check this machine, one line per finding. Exit code 1 if something required is missing."""
    words = set()
    for finding in check_machine(ais_python):  # as they come: the last import what may be missing
        click.echo(str(finding))
        words.add(finding.word)
    if "NOT OK" in words:
        raise click.exceptions.Exit(1)
