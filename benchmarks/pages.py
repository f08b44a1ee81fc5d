"""Measure what the pages say, and write it into them: ``make numbers``, ``make bench``.

A block of a page, from ``<!-- numbers: NAME -->`` to ``<!-- end -->``, is written by the function
NAME below from one record in benchmarks/results/ (or the weights' card), which one measurement
made. So no table mixes measurements, and what was not measured anew keeps its numbers, commit and
date. An interrupted run goes on with the measurement that it had not finished.

    python benchmarks/pages.py cpu precision    # only these
    python benchmarks/pages.py --write          # only the pages, from the records
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import pandas as pd

from gma_lib import runs
from gma_lib.data import PASSES
from gma_lib.perf.comparison import tabulate_comparison
from gma_lib.perf.half_precision import tabulate_study
from gma_lib.perf.load import Load
from gma_lib.perf.summary import UNSTABLE_SPREAD, find_peak_memory
from gma_lib.runs.machine import find_commit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CARD = ROOT / "weights" / "gma-procedural.json"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- numbers: (\S+) -->)(\n?)(.*?)(\n?)(<!-- end -->)", re.DOTALL)
BEGUN = ROOT / "outputs" / "numbers.json"  # the run that goes on
PRECISIONS = {"float32": (1, 4), "bfloat16": (1,), "int8": (1,)}  # batch sizes on the demo set


class Measurement(NamedTuple):
    """Commands after ``python``, and how long they take on two cores."""

    commands: tuple[str, ...]
    minutes: int
    is_timed: bool = False  # so that it needs a quiet machine


def _bench(name: str, minutes: int) -> Measurement:
    return Measurement((f"-m gma_lib.cli bench benchmarks/{name}.yaml",), minutes, is_timed=True)


def _reproduce(precision: str, batch_sizes: tuple[int, ...]) -> str:
    sizes = " ".join(f"--batch-size {size}" for size in batch_sizes)
    return f"-m gma_lib.cli reproduce --profile demo --precision {precision} {sizes} --force"


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
    "precision": Measurement(("-m gma_lib.cli precision",), 20),
    # these two need frames of Sintel, which are no part of the package
    "half-precision": Measurement(
        (
            "-m gma_lib.cli half-precision SINTEL --most 8 "
            "--out benchmarks/results/half-precision.json",
        ),
        15,
    ),
    "card": Measurement(("-m gma_lib.cli card --score --sintel SINTEL",), 90),
}


def _locate(name: str) -> Path:
    return CARD if name == "card" else RESULTS / f"{name}.json"


def read(name: str) -> runs.Record:
    """Read what a measurement found."""
    return runs.load_record(_locate(name), f"what `make numbers` measured as {name}")


# --- blocks ---------------------------------------------------------------------------------------


def tell_origin(command: str, record: runs.Record, *, short: bool = False) -> str:
    """Return command, commit, machine and date of a measurement, and whether others disturbed it;
    unless ``short`` also the note that it has.
    """
    made = record["provenance"]
    commit, *changed = made["commit"].partition("+")
    machine = made["machine"]
    note = f"; {record['note']}" if record.get("note") and not short else ""
    busy = "; **the machine was busy**" if record.get("load", {}).get("busy") else ""
    return (
        f"`{command}`, commit {commit[:7]}{' with changes' if any(changed) else ''}, "
        f"{machine['processor']}, {machine['cores']} cores, {made['created'][:10]}{note}{busy}."
    )


def _table(titles: list[str], rows: list[list[str]]) -> str:
    head, *others = (f"| {' | '.join(line)} |" for line in (titles, *rows))
    return "\n".join([head, f"|{'---|' * len(titles)}", *others])


def _compare(name: str) -> str:
    found = read(name)
    origin = tell_origin(f"gma bench benchmarks/{name}.yaml", found)
    return f"{tabulate_comparison(found)}\n\n{origin}"


def speed() -> str:
    """README: four variants, by their ratio to the guide's graph."""
    shown = {
        "guide's graph, ONNX Runtime": "guide's graph, ONNX Runtime, float32",
        "all steps, OpenVINO": "OpenVINO, float32",
        "bfloat16": "OpenVINO, bfloat16",
        "int8": "OpenVINO, int8",
    }
    found = read("cpu")
    rows = []
    for name, label in shown.items():
        one = found["variants"][name]
        memory = (find_peak_memory(one) or 0) / 1e9
        rate = "" if rows else f" ({1 / one['median_s']:.1f} pairs/s)"  # of the guide's graph
        rows.append([label, f"{one['ratio']:.2f}{rate}", f"{memory:.2f} GB"])
    table = _table(["runtime, precision", "speed", "peak memory"], rows)
    return f"{table}\n\n{tell_origin('make bench', found, short=True)}"


def accuracy() -> str:
    """README: float32 on the demo set."""
    found = read("demo")
    exact = found["rows"]["float32"]
    rows = [
        [name, f"{exact['epe'][name]:.2f} px", f"{100 * exact['px1'][name]:.1f} %"]
        for name in PASSES
    ]
    table = _table(["pass", "EPE", "1px"], rows)
    return f"{table}\n\n{tell_origin('make reproduce', found)}"


def demo() -> str:
    """Every precision on the demo set."""
    found = read("demo")
    rows = []
    for precision, one in found["rows"].items():
        sizes = list(one["peak_rss_bytes"])
        rows.append(
            [
                f"{precision}, batch size {' and '.join(sizes)}",
                " / ".join(f"{one['epe'][name]:.4f}" for name in PASSES),
                " / ".join(f"{100 * one['px1'][name]:.2f}" for name in PASSES),
                f"{one['distance']['mean']:.1g} / {one['distance']['max']:.1g}",
                " / ".join(f"{size / 1e9:.2f}" for size in one["peak_rss_bytes"].values()),
            ]
        )
    titles = ["precision", "EPE clean / final, px", "1px clean / final, %"]
    titles += ["distance from PyTorch float32, px (mean / max)", "peak memory, GB"]
    return f"{_table(titles, rows)}\n\n{tell_origin('gma reproduce, once a precision', found)}"


def cpu() -> str:
    """Every step against the guide's graph."""
    return _compare("cpu")


def updates_12() -> str:
    """The same with 12 updates."""
    return _compare("updates-12")


def updates_32() -> str:
    """The same with 32 updates."""
    return _compare("updates-32")


def headroom() -> str:
    """What the peak would allow."""
    one = read("cpu")["variants"]
    bf16, base = one["bfloat16"], one["guide's graph, ONNX Runtime"]
    at_peak = bf16["median_s"] * bf16["share_of_peak"]
    return (
        f"At peak throughput, 6 updates in bfloat16 would take {at_peak:.2f} s per pair, "
        f"{base['median_s'] / at_peak:.1f} times as fast as the baseline. Single pairs reach "
        f"{bf16['share_of_peak']:.0%} of that rate, and batches "
        f"{one['bfloat16, batch of 16']['share_of_peak']:.0%}."
    )


def _tell_speed_up(precision: str) -> str:
    one = read("cpu")["variants"]
    return f"{one[precision]['ratio'] / one['all steps, OpenVINO']['ratio']:.1f}"


def bfloat16_speed_up() -> str:
    """How many times as fast as float32 on OpenVINO."""
    return _tell_speed_up("bfloat16")


def int8_speed_up() -> str:
    """How many times as fast as float32 on OpenVINO."""
    return _tell_speed_up("int8")


def precision() -> str:
    """What reduced precision costs on held-out scenes."""
    found = read("precision")
    rows = [
        [
            name,
            family,
            str(one["pairs"]),
            f"{one['epe_float32']:.3f}",
            f"{one['epe']:.3f}",
            f"{one['epe_loss']:+.2%}",
            f"{100 * one['px1_float32']:.2f}",
            f"{100 * one['px1']:.2f}",
            f"{round(one['px1_loss'], 2) + 0:+.2f}",
            f"{one['distance']:.3f}",
        ]
        for name, costs in found["precisions"].items()
        for family, one in costs["families"].items()
    ]
    titles = ["precision", "family", "scenes", "EPE float32", "EPE", "change", "1px float32, %"]
    titles += ["1px, %", "lost, points", "distance, px"]
    verdicts = [
        f"{name}: {'yes' if costs['recommended'] else 'no'}"
        for name, costs in found["precisions"].items()
    ]
    origin = tell_origin("gma precision", found)
    return f"{_table(titles, rows)}\n\nRecommended: {', '.join(verdicts)}. {origin}"


def half_precision() -> str:
    """What float16 does to the network, emulated."""
    found = read("half-precision")
    study = pd.DataFrame.from_dict(found["variants"], orient="index")
    origin = tell_origin("gma half-precision FOLDER", found)
    return f"{tabulate_study(study)}\n\n{len(found['pairs'])} pairs. {origin}"


def pictures() -> str:
    """What drew the pictures."""
    return tell_origin("python docs/pictures.py", read("pictures"))


def refined() -> str:
    """The network alone and refined, from the weights' card."""
    scores = read("card")["scores"]
    shown = {
        f"two real Sintel pairs, {name}": scores["sintel_excerpt"][name] for name in PASSES
    } | {f"held-out scenes, {name}": one for name, one in scores["held_out_families"].items()}
    rows = [
        [
            label,
            *(f"{100 * one[which]['all']['px1']:.1f} %" for which in ("12", "12 refined")),
            *(f"{one[which]['all']['epe']:.2f} px" for which in ("12", "12 refined")),
        ]
        for label, one in shown.items()
    ]
    titles = ["frames, 12 updates", "1px, network", "1px, refined", "EPE, network", "EPE, refined"]
    return _table(titles, rows)


def against_dis() -> str:
    """README: the bundled weights and DIS on real frames, from the weights' card."""
    scores = read("card")["scores"]["sintel_excerpt"]["clean"]
    ours, dis, better = (scores[name]["all"] for name in ("12", "dis", "12 refined"))
    return (
        f"On two real Sintel pairs (clean), EPE is {ours['epe']:.2f} px, against {dis['epe']:.2f} "
        f"with OpenCV's classical DIS; 1px is {100 * ours['px1']:.1f} % against "
        f"{100 * dis['px1']:.1f} ({100 * better['px1']:.1f} with `--refine variational`)."
    )


def fast_motion() -> str:
    """README: the family of held-out scenes with the largest error at large motion."""
    families = read("precision")["precisions"]["bfloat16"]["families"].values()
    worst = max(one["epe_float32"] for one in families)
    return f"EPE {worst:.0f} px on rendered scenes with motion up to 120 px."


BLOCKS: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        speed, accuracy, demo, cpu, updates_12, updates_32, headroom, bfloat16_speed_up,
        int8_speed_up, precision, half_precision, pictures, refined, against_dis,
        fast_motion,
    )
}  # fmt: skip


def fill(page: str) -> str:
    """Return a page with every block written anew."""
    return BLOCK.sub(
        lambda found: "".join(found.group(1, 3)) + BLOCKS[found[2]]() + "".join(found.group(5, 6)),
        page,
    )


def write_pages() -> None:
    """Write the blocks of every page from the records."""
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        if (after := fill(before)) != before:
            runs.write_text(path, after)
            print(f"written: {path.relative_to(ROOT)}")


# --- measuring ------------------------------------------------------------------------------------


def collect(outputs: Path) -> runs.Record:
    """Gather what the finished runs of a profile found, one row a precision.

    Batch sizes agree in accuracy; the first stands for all, the largest distance counts.
    """
    rows, busy = {}, False
    for run in sorted(outputs.glob("*/bs*/metrics.json"), key=lambda path: path.parts):
        folder = run.parent
        metrics, perf, made = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("metrics", "perf", "convert")
        )
        row = rows.setdefault(
            made["precision"],
            {
                "epe": {name: metrics[name]["all"]["epe"] for name in PASSES},
                "px1": {name: metrics[name]["all"]["px1"] for name in PASSES},
                "distance": {"mean": 0.0, "max": 0.0},
                "peak_rss_bytes": {},
            },
        )
        for name, largest in row["distance"].items():
            row["distance"][name] = max(largest, made["deviation"][name])
        row["peak_rss_bytes"][folder.name.removeprefix("bs")] = find_peak_memory(perf)
        busy = busy or perf["load"]["busy"]
    return {"rows": rows, "load": {"busy": busy}}


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
    commit = find_commit() or ""
    begun = json.loads(BEGUN.read_text()) if BEGUN.is_file() else {}
    if begun.get("commit", "").partition("+")[0] != commit.partition("+")[0]:
        begun = {"commit": commit, "at": datetime.now(UTC).isoformat(timespec="seconds")}
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
    return read(name)["provenance"]["created"] if _locate(name).is_file() else ""


def measure(todo: list[str], sintel: Path | None, *, busy: bool) -> None:
    """Measure one after the other, in processes of their own."""
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
        write_pages()
        left -= one.minutes
    BEGUN.unlink(missing_ok=True)


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
    if outputs:
        runs.write_json(_locate("demo"), collect(outputs))
    elif write:
        write_pages()
    else:
        measure(choose(names, sintel), sintel, busy=busy)


if __name__ == "__main__":
    main()
