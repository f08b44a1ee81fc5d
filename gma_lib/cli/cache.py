"""``gma cache``: the models that ``gma flow``, ``gma video``, ``gma submit`` and ``gma_lib.load``
keep.
"""

import shutil

import click

from gma_lib.infer.estimator import cache_folder
from gma_lib.runs.sealed import SEAL


@click.command("cache", epilog="Example: gma cache --clear")
@click.option("--clear", is_flag=True, help="Delete all cached models.")
def main(clear: bool) -> None:
    """Show the cache folder and the size of the cached models."""
    folder = cache_folder()
    models = [path.parent for path in folder.glob(f"[!.]*/{SEAL}")]  # and what others put there
    size = sum(file.stat().st_size for model in models for file in model.rglob("*"))
    if clear:
        for model in models:
            model.unlink() if model.is_symlink() else shutil.rmtree(model)
    count = f"{len(models)} model{'s' * (len(models) != 1)}, {size / 1e6:.0f} MB"
    click.echo(f"{folder}: {count}{', deleted' * clear}")
