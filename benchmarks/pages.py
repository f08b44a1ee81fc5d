"""Measure what the pages say, and write it into them: ``make numbers``, ``make bench``.

A block of a page, from ``<!-- numbers: NAME -->`` to ``<!-- end -->``, is written by the function
NAME of ``blocks.py`` from one record in benchmarks/results/ (or the weights' card), which one
measurement made. So no table mixes measurements, and what was not measured anew keeps its numbers,
commit and date. An interrupted run goes on with the measurement that it had not finished.

    python benchmarks/pages.py cpu precision    # only these
    python benchmarks/pages.py --write          # only the pages, from the records
"""

import json
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
from blocks import BACKEND, BLOCKS, ROOT, locate, read

from gma_lib import runs
from gma_lib.data import PASSES
from gma_lib.network import WEIGHTS_FOLDER
from gma_lib.perf.load import Load
from gma_lib.perf.summary import UNSTABLE_SPREAD, find_peak_memory
from gma_lib.runs.clusters import describe_software
from gma_lib.runs.leftovers import remove
from gma_lib.runs.machine import find_commit

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
START, END = "<!-- numbers: ", "<!-- end -->"
# a block ends before the next mark of any kind: one without an end must not run into another
BLOCK = re.compile(rf"({START}(\S+) -->)(\n?)((?:(?!<!-- ).)*?)(\n?)({END})", re.DOTALL)
BEGUN = ROOT / "outputs" / "numbers.json"  # the run that goes on
PRECISIONS = {"float32": (1, 4), "bfloat16": (1,), "int8": (1,)}  # batch sizes on the demo set
RESUMED = ("determinism", "torture")  # in outputs: what goes on where it stopped, in one run
COLLECTED = {
    "export": "02_export",
    "convert": "03_convert",
    "metrics": "05_evaluate",
    "perf": "06_perf",
}


class Measurement(NamedTuple):
    """Commands after ``python``, and how long they take on two cores."""

    commands: tuple[str, ...]
    minutes: int
    is_timed: bool = False  # so that it needs a quiet machine


def _bench(name: str, minutes: int) -> Measurement:
    command = f"-m gma_lib.cli bench benchmarks/{name}.yaml --out benchmarks/results --overwrite"
    return Measurement((command,), minutes, is_timed=True)


def _reproduce(precision: str, batch_sizes: tuple[int, ...]) -> str:
    sizes = " ".join(f"--batch-size {size}" for size in batch_sizes)
    profile = f"--profile demo --backend {BACKEND} --precision {precision}"
    return f"-m gma_lib.cli reproduce {profile} {sizes} --force"


def _torture(part: str, minutes: int, options: str = "") -> Measurement:
    command = f"tests/torture/{part}.py{options} --out benchmarks/results/{part}.json"
    return Measurement((command,), minutes)


MEASUREMENTS = {
    "pictures": Measurement(("docs/pictures.py",), 2),
    "demo": Measurement(
        (
            *(_reproduce(*one) for one in PRECISIONS.items()),
            "benchmarks/pages.py --collect outputs/demo",
        ),
        15,
        is_timed=True,
    ),
    "cpu": _bench("cpu", 40),
    "updates-12": _bench("updates-12", 15),
    "updates-32": _bench("updates-32", 20),
    "precision": Measurement(
        ("-m gma_lib.cli precision --out benchmarks/results/precision.json --overwrite",), 20
    ),
    "aggregation": Measurement(
        (
            "-m gma_lib.cli reproduce --profile demo --until 01_data",
            "benchmarks/aggregation.py --out benchmarks/results/aggregation.json",
        ),
        4,
    ),
    "determinism": Measurement(
        (
            "benchmarks/determinism.py outputs/determinism "
            "--out benchmarks/results/determinism.json",
        ),
        15,
    ),
    "rehearsal": Measurement(
        ("benchmarks/rehearsal.py --out benchmarks/results/rehearsal.json",), 45, is_timed=True
    ),
    "kills": _torture("kills", 30, " --limit-s 1e6"),
    "faults": _torture("faults", 90, " --limit-s 1e6"),
    "settings": _torture("settings", 20, " --limit-s 1e6"),
    "readers": _torture("readers", 15),
    "graphs": _torture("graphs", 10),
    "computations": _torture("computations", 15),
    # these need frames of Sintel, which are no part of the package
    "half-precision": Measurement(
        (
            "-m gma_lib.cli half-precision SINTEL --most 8 "
            "--out benchmarks/results/half-precision.json --overwrite",
        ),
        15,
    ),
    "card": Measurement(("-m gma_lib.cli card --score --sintel SINTEL",), 90),
}


def fill(path: Path) -> str:
    """Return a page with every block written anew; BadFile where a block has no end, or an end no
    block.
    """
    page = path.read_text(encoding="utf-8")
    filled, blocks = BLOCK.subn(
        lambda found: "".join(found.group(1, 3)) + BLOCKS[found[2]]() + "".join(found.group(5, 6)),
        page,
    )
    starts, ends = page.count(START), page.count(END)
    if not starts == ends == blocks:
        counted = f"{starts} blocks of numbers, {ends} ends, {blocks} pairs of both"
        raise runs.BadFile(path, counted, f"one {END} for each", "Mend the marks")
    return filled


def write_pages() -> None:
    """Write the blocks of every page from the records; none where one of them is wrong."""
    for path, page in {path: fill(path) for path in PAGES}.items():
        if page != path.read_text(encoding="utf-8"):
            runs.write_text(path, page)
            print(f"written: {path.relative_to(ROOT)}")


# --- measuring ------------------------------------------------------------------------------------


def collect(outputs: Path) -> runs.Record:
    """Gather what the runs of ``PRECISIONS`` found, one row a precision; whatever else lies in the
    folder of the profile is no part of it.

    Batch sizes agree in accuracy; the first stands for all, the largest distance counts.

    Raises
    ------
    BadFile
        A record is missing, was altered, or is of another commit than the one at hand; the runs
        have several weights.
    """
    rows: dict[str, runs.Record] = {}
    busy, weights = False, set()
    for precision, sizes in PRECISIONS.items():
        found = {
            size: [
                _read_stage(outputs / f"{BACKEND}-{precision}" / f"bs{size}", *one)
                for one in COLLECTED.items()
            ]
            for size in sizes
        }
        _, _, metrics, _ = found[sizes[0]]
        rows[precision] = {
            "epe": {name: metrics[name]["all"]["epe"] for name in PASSES},
            "px1": {name: metrics[name]["all"]["px1"] for name in PASSES},
            "distance": {
                name: max(
                    one[name] for _, made, *_ in found.values() for one in made["compared"].values()
                )
                for name in ("mean", "max")
            },
            "peak_rss_bytes": {
                str(size): find_peak_memory(perf) for size, (*_, perf) in found.items()
            },
        }
        busy = busy or any(perf["load"]["busy"] for *_, perf in found.values())
        weights |= {exported["checkpoint"]["sha256"] for exported, *_ in found.values()}
    if len(weights) > 1:
        raise runs.BadFile(outputs, "runs of several weights", "one", "Measure them again")
    return {"rows": rows, "checkpoint_sha256": weights.pop(), "load": {"busy": busy}}


def _read_stage(folder: Path, name: str, stage: str) -> runs.Record:
    path = folder / f"{name}.json"
    record = runs.read_json(path, made_by=stage)
    commits = record["provenance"]["commit"], find_commit()
    made, now = (str(one).partition("+")[0] for one in commits)
    if made != now:
        raise runs.BadFile(path, f"of commit {made[:7]}", f"{now[:7]}", "Measure it again")
    return record


def require_quiet() -> None:
    """Refuse to time on a machine that computes something else."""
    others = Load().add_to({})["load"]["others_before"]
    if others > UNSTABLE_SPREAD:
        raise click.ClickException(
            f"other processes take {others:.0%} of the cores' time: end them, or measure all the "
            "same with --busy, and the pages say so"
        )


def choose(names: tuple[str, ...], sintel: Path | None) -> list[str]:
    """Return what can be measured and was not yet measured by the run that goes on."""
    settings = [*Path(__file__).parent.glob("*.py"), *Path(__file__).parent.glob("*.yaml")]
    settings += WEIGHTS_FOLDER.glob("*.safetensors")
    settings += (runs.RESOURCES / "params").glob("*.yaml")
    software = describe_software() | runs.hash_files(settings)
    begun = json.loads(BEGUN.read_text()) if BEGUN.is_file() else {}
    if begun.get("software") != software:
        begun = {"software": software, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        for name in RESUMED:
            remove(ROOT / "outputs" / name)
        runs.write_text(BEGUN, json.dumps(begun))
    todo = []
    for name in names or MEASUREMENTS:
        needs = [one for one in MEASUREMENTS[name].commands if "SINTEL" in one]
        if needs and not sintel:
            print(f"{name}: left as it is, because it needs --sintel FOLDER (SINTEL=)")
        elif _find_date(name) >= begun["at"]:
            print(f"{name}: measured since {begun['at']}")
        else:
            todo.append(name)
    return todo


def _find_date(name: str) -> str:
    """When it was measured; empty where it was not, or not as the pages say."""
    try:
        created: str = read(name)["provenance"]["created"]
    except (FileNotFoundError, ValueError):  # both say "measure it again"
        return ""
    return created


def measure(todo: list[str], sintel: Path | None, *, busy: bool) -> None:
    """Measure one after the other, in processes of their own, and write the pages.

    A record that the pages cannot show keeps none from being measured: it is an error at the end.
    """
    left = sum(MEASUREMENTS[name].minutes for name in todo)
    for number, name in enumerate(todo, 1):
        one = MEASUREMENTS[name]
        print(
            f"{number} of {len(todo)}: {name}, about {one.minutes} min; {left} min for all that is "
            "left",
            flush=True,
        )
        if one.is_timed and not busy:
            require_quiet()
        for command in one.commands:
            words = [str(sintel) if word == "SINTEL" else word for word in shlex.split(command)]
            done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
            if done.returncode:
                raise click.ClickException(
                    f"{command} ended with exit code {done.returncode}; the next call goes on here"
                )
        with suppress(FileNotFoundError, ValueError):  # raised below
            write_pages()
        left -= one.minutes
    BEGUN.unlink(missing_ok=True)  # before the error, whose remedy is to measure again
    write_pages()


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
@click.option("--write", is_flag=True, help="Only write the pages from the records.")
@click.option("--busy", is_flag=True, help="Time also while the machine computes something else.")
@click.option("--sintel", type=click.Path(path_type=Path), help="Folder of MPI Sintel.")
@click.option("--collect", "outputs", type=click.Path(path_type=Path), hidden=True)
def main(
    names: tuple[str, ...], write: bool, busy: bool, sintel: Path | None, outputs: Path | None
) -> None:
    """Measure NAMES, or all that the pages say, and write it into the pages."""
    try:
        if outputs:
            runs.write_json(locate("demo"), collect(outputs))
        elif write:
            write_pages()
        else:
            measure(choose(names, sintel), sintel, busy=busy)
    except (FileNotFoundError, ValueError) as error:  # of records and pages
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
