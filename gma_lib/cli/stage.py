"""``gma stage``: one notebook of the pipeline, without a browser."""

import click

from gma_lib.pipeline.parameters import WrongParameters, parse_override, resolve_parameters
from gma_lib.pipeline.runner import EXIT, NotReady, run_stage
from gma_lib.pipeline.stages import STAGES
from gma_lib.report.pages import notebook_to_html


@click.command("stage")
@click.argument("name", metavar="STAGE", type=click.Choice(list(STAGES)))
@click.option("--profile", default="demo", show_default=True, help="A file in params/.")
@click.option("--batch-size", default="1", show_default=True, help="Pairs per call of the network.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a parameter; may be repeated.",
)
@click.option("--force", is_flag=True, help="Run even what is up to date.")
def main(name: str, profile: str, batch_size: str, overrides: tuple[str, ...], force: bool) -> None:
    """Run one notebook (STAGE: 01_data to 06_perf) and leave it executed in outputs/.

    Exit codes: 0 done, up to date, or a batch size that does not fit in memory; 1 a cell failed, or
    a stage before did; 2 wrong parameters; 124 too slow; 130 interrupted; 138 the kernel died.
    """
    try:
        batch = parse_override(f"batch_size={batch_size}")[1]
        parameters = resolve_parameters(profile, batch, dict(map(parse_override, overrides)))
        status = run_stage(name, parameters, write_page=notebook_to_html, force=force)
    except (WrongParameters, NotReady) as error:
        click.echo(f"{name}: {error}", err=True)
        raise click.exceptions.Exit(error.exit_code) from None
    raise click.exceptions.Exit(EXIT[status])
