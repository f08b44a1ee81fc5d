"""The option that names a profile, completed with those in ``params/``."""

import click

from gma_lib.pipeline.parameters import list_profiles


def _complete(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    return [name for name in list_profiles() if name.startswith(begun)]


PROFILE = click.option(
    "--profile",
    default="demo",
    show_default=True,
    shell_complete=_complete,
    help="NAME of params/NAME.yaml.",
)
