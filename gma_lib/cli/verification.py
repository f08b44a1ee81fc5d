"""``gma verify``, ``gma replay`` and ``gma record``: compare this machine's numbers with expected
ones, or with those of a shared report.
"""

import math
from contextlib import AbstractContextManager
from pathlib import Path

import click
from click.core import ParameterSource

from gma_lib.cli.options import PATH, PATH_TEXT
from gma_lib.cli.profiles import PROFILE
from gma_lib.data.sintel import PASSES
from gma_lib.pipeline.parameters import PARAMS, WrongParameters, resolve_parameters
from gma_lib.pipeline.runner import EXIT
from gma_lib.pipeline.settings import make_run
from gma_lib.pipeline.walk import run_stages
from gma_lib.report.charts import plot_deviations
from gma_lib.report.figures import save_figure
from gma_lib.report.pages import notebook_to_html
from gma_lib.runs.files import BadFile, locate_path, name_file, require_writable, shorten_path
from gma_lib.runs.leftovers import remove
from gma_lib.runs.processes import lock_path, require_posix
from gma_lib.runs.records import Record, write_json
from gma_lib.runs.run import Run
from gma_lib.verify.coverage import collect_all
from gma_lib.verify.expected import (
    FAILURES,
    Verdict,
    describe_values,
    find_differences,
    judge_values,
    locate_expected,
    read_expected,
    require_same_plan,
    require_same_work,
    write_expected,
)
from gma_lib.verify.literature import (
    SOURCES,
    collect_scores,
    expect_published,
    require_all_pairs,
)
from gma_lib.verify.replay import (
    ASK,
    AskedFor,
    drop_newer,
    list_overrides,
    read_surroundings,
    unpack_records,
)
from gma_lib.verify.values import (
    INSIDE,
    LAST,
    collect_inside,
    collect_recorded,
    read_run_parameters,
)

VERIFIED, REPLAYED = "outputs/verify", "outputs/replay"
VERDICTS = "verdicts.json"


@click.command("verify", epilog="Example: gma verify --quick")
@click.option("--quick", is_flag=True, help="Fewer frames, at half width and height.")
@PROFILE
@click.option("--no-digests", is_flag=True, help="Compare numbers only, no SHA-256 digests.")
@click.option(
    "--sintel",
    type=PATH_TEXT,
    metavar="FOLDER",
    help="For --profile sintel: the complete data set.",
)
@click.option(
    "--checkpoint",
    type=PATH_TEXT,
    metavar="FILE",
    help="For --profile sintel: the authors' weights.",
)
@click.option(
    "--updates",
    type=click.Choice([str(number) for number in SOURCES]),
    help="For --profile sintel: 6 compares with the guide, 32 with ptlflow's evaluation.",
)
def main(
    quick: bool,
    profile: str,
    no_digests: bool,
    sintel: str | None,
    checkpoint: str | None,
    updates: str | None,
) -> None:
    """Compute the demo with the bundled weights and compare every number with expected/.

    Versions and hardware that differ are listed first. Each number has its own tolerance;
    outputs/verify/<profile>/ of the project holds the verdicts as JSON and as a picture. An
    interrupted verification resumes. With --profile sintel, scores are compared with published ones
    instead.

    Exit codes: 0 every number is within its tolerance (a digest that differs because of another
    version or processor is reported, not a failure); 1 a number or a digest fails; 2 wrong
    parameters; otherwise as `gma reproduce`.
    """
    require_posix("gma verify")
    source = click.get_current_context().get_parameter_source("profile")
    if quick and source != ParameterSource.DEFAULT:
        raise click.UsageError("--quick and --profile exclude each other: give one")
    profile = "quick" if quick else profile
    if profile == "sintel":
        return _verify_published(sintel, checkpoint, int(updates or 6))
    if sintel or checkpoint or updates:
        raise click.UsageError("--sintel, --checkpoint and --updates belong to --profile sintel")
    expected_file = locate_expected(profile)
    if not expected_file.is_file():
        raise click.UsageError(
            f"there is no {shorten_path(expected_file)}: write it with gma record --profile "
            f"{profile} --reason TEXT"
        )
    expected = read_expected(expected_file)
    parameters = _resolve(profile)
    require_same_plan(expected, parameters)
    _list_differences(expected["surroundings"])
    with _hold(VERIFIED, profile):
        folder = _start(VERIFIED, profile)
        run = _compute(parameters)
        require_same_work(expected, read_run_parameters(run))
        found = collect_all(run)
        values = drop_newer(found, expected["values"])
        if newer := len(found) - len(values):
            click.echo(f"{newer} entries are newer than the expected values: gma record adds them")
        verdicts = judge_values(values, expected, digests=not no_digests)
        explained = _judge(verdicts, folder)
    click.echo(f"{profile}: the numbers are those of {expected['history'][-1]['date']}{explained}")


def _verify_published(sintel: str | None, checkpoint: str | None, updates: int) -> None:
    """Compute all of Sintel with the authors' weights and compare with what others published."""
    if not (sintel and checkpoint):
        raise click.UsageError(
            "the published numbers are of the complete data set and the authors' weights: give "
            "--sintel FOLDER and --checkpoint FILE"
        )
    given = {"sintel_root": sintel, "checkpoint": checkpoint, "num_updates": updates}
    given |= {"run": f"updates-{updates}", "weights_and_data_are_published": updates == 6}
    given |= {"split": "training", "passes": list(PASSES), "scenes": None}  # as was published
    parameters = _resolve("sintel", given)
    require_all_pairs(sintel, updates)
    with _hold(VERIFIED, "sintel"):
        folder = _start(VERIFIED, "sintel", f"updates-{updates}")
        found = collect_scores(_compute(parameters), updates)
        _judge(judge_values(found, expect_published(updates)), folder)
    click.echo(f"sintel: the scores are as published ({SOURCES[updates]})")


@click.command("replay", epilog="Example: gma replay demo.zip")
@click.argument("archive", type=PATH)
@click.option("--no-digests", is_flag=True, help="Compare numbers only, no SHA-256 digests.")
@click.option(
    "--sintel", type=PATH_TEXT, metavar="FOLDER", help="Folder of MPI Sintel, if the run used it."
)
@click.option(
    "--checkpoint",
    type=PATH_TEXT,
    metavar="FILE",
    help="File of the weights, if they are not bundled.",
)
def replay(archive: Path, no_digests: bool, sintel: str | None, checkpoint: str | None) -> None:
    """Recompute the runs of a shared report and compare every number.

    ARCHIVE is what `make share` wrote, packed or unpacked, or the folder of a profile's results,
    such as outputs/demo. A profile that params/ does not have is computed with the recorded
    parameters, as profile demo. Times are not compared.

    Versions and hardware that differ are listed first. Verdicts and pictures are written to
    outputs/replay/. Exit codes are those of `gma verify`.
    """
    require_posix("gma replay")
    with _hold(REPLAYED, "replay"):
        unpacked = locate_path(REPLAYED) / ".archive"  # which no profile is called
        plan = _plan_replay(archive, unpacked, sintel, checkpoint)
        folders = [_start(REPLAYED, place) for _, _, place in plan]
        for (run, parameters, _), folder in zip(plan, folders, strict=True):
            surroundings = read_surroundings(run)
            _list_differences(surroundings)
            recorded, values = collect_recorded(run), collect_recorded(_compute(parameters))
            if inside := collect_inside(run):
                recorded |= inside
                values |= collect_inside(_compute(parameters, until=INSIDE))
            expected = describe_values(recorded, surroundings)
            verdicts = judge_values(drop_newer(values, recorded), expected, digests=not no_digests)
            explained = _judge(verdicts, folder)
            label = f"{run.name}, batch size {run.batch_size}"
            click.echo(f"{label}: the numbers are the archive's{explained}")


def _plan_replay(
    archive: Path, unpacked: Path, sintel: str | None, checkpoint: str | None
) -> list[tuple[Run, Record, Path]]:
    """Unpack the records of an archive. List its runs, the parameters with which each is computed
    again, and the place of its results.
    """
    remove(unpacked)
    plan = []
    for run in unpack_records(archive, unpacked):
        known = (PARAMS / f"{run.profile}.yaml").is_file()
        try:
            overrides = list_overrides(run, sintel=sintel, checkpoint=checkpoint)
            given = overrides | {"outputs": REPLAYED}
            parameters = resolve_parameters(run.profile if known else "demo", given)
        except AskedFor as error:
            raise ValueError(f"{name_file(archive)}: {error}") from error
        except ValueError as error:
            found, wanted = f"{run.title}: {error}", "parameters that this version computes"
            raise BadFile(archive, found, wanted, ASK) from error
        place = Path(parameters["profile"], run.name, f"bs{run.batch_size}")
        plan.append((run, parameters, place))
    return plan


@click.command("record", epilog='Example: gma record --profile demo --reason "new weights"')
@PROFILE
@click.option("--reason", required=True, help="Reason for the change, in one sentence.")
def record(profile: str, reason: str) -> None:
    """Record this machine's numbers as the expected ones of `gma verify`.

    Everything is computed anew. Differences from the earlier record are shown. The reason is kept
    in the file.
    """
    require_posix("gma record")
    if not (reason.strip() and reason.isprintable()):
        raise click.UsageError("--reason: give one sentence, on one line")
    path, wanted = locate_expected(profile), _resolve(profile)
    require_writable(path.parent)
    earlier = read_expected(path) if path.is_file() else None
    with _hold(VERIFIED, profile):
        remove(locate_path(VERIFIED) / profile)  # of other cores or threads, say
        run = _compute(wanted)
        values, parameters = collect_all(run), read_run_parameters(run)
    if earlier:
        is_same = earlier["parameters"] == parameters
        compared = _summarise(judge_values(values, earlier)) if is_same else ""
        click.echo(compared or "the earlier values are of other frames or settings")
    write_expected(path, values, parameters=parameters, reason=reason)
    click.echo(f"{shorten_path(path)}: {len(values)} values")


def _list_differences(there: Record) -> None:
    for difference in find_differences(there).values():
        click.echo(difference)


def _resolve(profile: str, overrides: Record | None = None) -> Record:
    try:
        given = {"batch_size": 1} | (overrides or {}) | {"outputs": VERIFIED}
        return resolve_parameters(profile, given)
    except WrongParameters as error:
        raise click.UsageError(str(error)) from None


def _hold(outputs: str, name: str) -> AbstractContextManager[None]:
    """Hold a part of a folder of results alone, as what was judged there is removed; ValueError
    where another process holds it.
    """
    home = locate_path(outputs)
    require_writable(home)
    return lock_path(home / f".{name}.lock", wait=False)


def _start(*names: str | Path) -> Path:
    """Return the folder of a computation; what an earlier one left there goes if it was judged."""
    folder = locate_path(Path(*names))
    if (folder / VERDICTS).is_file():
        remove(folder)
    require_writable(folder)
    return folder


def _compute(parameters: Record, until: str = LAST) -> Run:
    ended = run_stages([parameters], until=until, write_page=notebook_to_html)
    wrong = next((status for status in ended if EXIT[status]), None)
    if wrong or "out_of_memory" in ended:
        click.echo("not all stages ended well: there is nothing to compare", err=True)
        raise click.exceptions.Exit(EXIT[wrong] if wrong else 1)
    return make_run(parameters)


def _judge(verdicts: list[Verdict], folder: Path) -> str:
    """Write and show the verdicts; raise where one fails. Return how many differ and are explained,
    for the end of a line; empty if none is.
    """
    write_json(folder / VERDICTS, {"verdicts": [vars(verdict) for verdict in verdicts]})
    ratios = {
        kind: [verdict.ratio for verdict in verdicts if verdict.kind == kind]
        for kind in dict.fromkeys(verdict.kind for verdict in verdicts)
    }
    picture = folder / "verdicts.png"
    save_figure(plot_deviations(ratios), picture)
    click.echo(_summarise(verdicts))
    click.echo(f"{shorten_path(folder / VERDICTS)}, {picture.name}")
    failed = [verdict for verdict in verdicts if verdict.status in FAILURES]
    if failed:
        raise click.ClickException(_describe_worst(failed))
    explained = sum(verdict.status == "reported" for verdict in verdicts)
    if not explained:
        return ""
    return (
        f"; {explained} of {len(verdicts)} entries differ, which the versions and hardware above "
        "explain"
    )


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
