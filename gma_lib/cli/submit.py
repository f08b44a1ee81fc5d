"""``gma submit``: flow for Sintel's benchmark."""

from pathlib import Path
from typing import Unpack

import click

from gma_lib.backends import find_backend
from gma_lib.cli.options import (
    NOISE,
    PATH,
    Network,
    describe_refinement,
    network_options,
    remark,
)
from gma_lib.data.sintel import SPLITS
from gma_lib.infer.estimator import load
from gma_lib.infer.submission import PAIRS_IN_TEST_SPLIT, UPDATES, write_submission
from gma_lib.runs.clusters import check_cluster, open_cluster
from gma_lib.runs.progress import track


def _check_cluster(_: click.Context, __: click.Parameter, text: str) -> str:
    try:
        check_cluster(text)
    except ValueError as error:
        raise click.BadParameter(f"{text} {error}") from error
    return text


@click.command("submit", epilog="Example: gma submit MPI-Sintel-complete -o submission")
@click.argument("sintel", type=PATH)
@click.option(
    "-o", "--output", required=True, type=PATH, help="Folder to pack with Sintel's bundler."
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(SPLITS),
    help="training: a trial run.",
)
@click.option("--cold", is_flag=True, help="No warm start: begin every pair with zero flow.")
@click.option(
    "--cluster",
    default="serial",
    show_default=True,
    callback=_check_cluster,
    help="Compute scenes in processes:N, dask:local or dask:HOST:PORT.",
)
@network_options(updates=UPDATES)
def main(
    sintel: Path, output: Path, split: str, cold: bool, cluster: str, **network: Unpack[Network]
) -> None:
    """Compute a submission to Sintel's benchmark from the folder SINTEL: both passes, with warm
    start. Every file is checked.
    """
    estimator = load(say=remark, **network)
    with open_cluster(cluster, find_backend(estimator.backend).devices()) as workers:
        estimator.threads = workers.threads if workers.executor else None
        pairs = write_submission(
            sintel.absolute(),
            output,
            estimator,
            split=split,
            warm=not cold,
            executor=workers.executor,
            track=track,
        )
    extra = ("" if estimator.trained else NOISE) + describe_refinement(network)
    click.echo(f"{output}: {len(pairs)} flow files, each there and of the right size{extra}")
    if split == "test" and len(pairs) != 2 * PAIRS_IN_TEST_SPLIT:
        remark(f"not the complete test split: {len(pairs)} of {2 * PAIRS_IN_TEST_SPLIT} pairs")
