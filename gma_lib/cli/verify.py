"""``gma verify`` and ``gma record``: compare this machine's numbers with expected ones."""

import math
import shutil

import click

from gma_lib.pipeline.parameters import WrongParameters, resolve_parameters
from gma_lib.pipeline.settings import make_run
from gma_lib.pipeline.walk import run_stages
from gma_lib.report.charts import plot_deviations
from gma_lib.report.figures import save_figure
from gma_lib.report.pages import notebook_to_html
from gma_lib.runs.files import locate_path, require_writable, shorten_path
from gma_lib.runs.records import write_json
from gma_lib.runs.run import Run
from gma_lib.verify.expected import (
    FAILURES,
    Verdict,
    compare,
    locate_expected,
    read_expected,
    write_expected,
)
from gma_lib.verify.values import LAST, collect_values, read_run_parameters

OUTPUTS = "outputs/verify"


@click.command("verify", epilog="Example: gma verify --quick")
@click.option("--quick", is_flag=True, help="Frames of a quarter of the size: two minutes.")
@click.option("--profile", default="demo", show_default=True, help="A file in params/.")
@click.option(
    "--no-digests", is_flag=True, help="Compare numbers only, neither pixels nor files bit by bit."
)
def main(quick: bool, profile: str, no_digests: bool) -> None:
    """Compute the demo with the bundled weights and compare every number with expected/.

    An interrupted verification goes on where it stopped; a finished one starts anew. Every entry
    has its tolerance, and its verdict stands in outputs/verify/<profile>/verdicts.json, with a
    picture beside it.

    Exit codes: 0 every entry is within its tolerance, or differs as another version or processor
    explains; 1 an entry is outside; 2 wrong parameters.
    """
    profile = "quick" if quick else profile
    folder = locate_path(OUTPUTS) / profile
    verdicts_file = folder / "verdicts.json"
    expected_file = locate_expected(profile)
    if not expected_file.is_file():
        raise click.UsageError(f"nothing is expected of {profile!r}: gma record writes it")
    if verdicts_file.is_file():
        shutil.rmtree(folder)
    require_writable(folder)
    run = _compute(profile)
    expected = read_expected(expected_file, parameters=read_run_parameters(run))
    verdicts = compare(collect_values(run), expected, digests=not no_digests)
    write_json(verdicts_file, {"verdicts": [vars(verdict) for verdict in verdicts]})
    picture = verdicts_file.with_suffix(".png")
    ratios = {
        kind: [verdict.ratio for verdict in verdicts if verdict.kind == kind]
        for kind in dict.fromkeys(verdict.kind for verdict in verdicts)
    }
    save_figure(plot_deviations(ratios), picture)
    click.echo(_summarise(verdicts))
    click.echo(f"{shorten_path(verdicts_file)}, {picture.name}")
    failed = [verdict for verdict in verdicts if verdict.status in FAILURES]
    if failed:
        raise click.ClickException(_describe_worst(failed))
    click.echo(f"{profile}: the numbers are those of {expected['history'][-1]['date']}")


@click.command("record", epilog='Example: gma record --profile demo --reason "new weights"')
@click.option("--profile", default="demo", show_default=True, help="A file in params/.")
@click.option("--reason", required=True, help="Why the numbers change, in one sentence.")
def record(profile: str, reason: str) -> None:
    """Record this machine's numbers as those that every later `gma verify` has to give.

    The differences from the earlier record are shown. Reasons are kept in the file.
    """
    run, path = _compute(profile), locate_expected(profile)
    values, parameters = collect_values(run), read_run_parameters(run)
    if path.is_file():
        click.echo(_summarise(compare(values, read_expected(path, parameters=parameters))))
    write_expected(path, values, parameters=parameters, reason=reason)
    click.echo(f"{shorten_path(path)}: {len(values)} values")


def _resolve(profile: str) -> dict[str, object]:
    try:
        return resolve_parameters(profile, {"batch_size": 1, "outputs": OUTPUTS})
    except WrongParameters as error:
        raise click.UsageError(str(error)) from None


def _compute(profile: str) -> Run:
    parameters = _resolve(profile)
    ended = run_stages([parameters], until=LAST, write_page=notebook_to_html)
    if not set(ended) <= {"ok", "up to date"}:
        raise click.ClickException(f"a stage ended as {ended[-1]!r}: there is nothing to compare")
    return make_run(parameters)


def _summarise(verdicts: list[Verdict]) -> str:
    """One line per kind of entry: how many, how they compare, the largest ratio."""
    lines = [f"{'kind':16}{'entries':>8}{'equal':>8}{'within':>8}{'other':>8}   largest/tolerance"]
    for kind in dict.fromkeys(verdict.kind for verdict in verdicts):
        mine = [verdict for verdict in verdicts if verdict.kind == kind]
        equal, within = (
            sum(verdict.status == status for verdict in mine) for status in ("equal", "within")
        )
        worst = max(mine, key=lambda verdict: verdict.ratio)
        lines.append(
            f"{kind:16}{len(mine):8}{equal:8}{within:8}{len(mine) - equal - within:8}   "
            + (f"{worst.ratio:.2g}  {worst.name}" if worst.ratio else "0")
        )
    reported = {verdict.because for verdict in verdicts if verdict.because}
    return "\n".join([*lines, *(f"differs, not failed: {because}" for because in reported)])


def _describe_worst(failed: list[Verdict]) -> str:
    worst = max(failed, key=lambda verdict: (math.isfinite(verdict.ratio), verdict.ratio))
    tolerance = "" if worst.tolerance is None else f" (tolerance {worst.tolerance:.3g})"
    return (
        f"{len(failed)} entries are not as expected. The worst: {worst.name} is {worst.found}, "
        f"expected {worst.expected}{tolerance}."
    )
