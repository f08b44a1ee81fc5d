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
from contextlib import suppress
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
START, END = "<!-- numbers: ", "<!-- end -->"
# a block ends before the next mark of any kind: one without an end must not run into another
BLOCK = re.compile(rf"({START}(\S+) -->)(\n?)((?:(?!<!-- ).)*?)(\n?)({END})", re.DOTALL)
BEGUN = ROOT / "outputs" / "numbers.json"  # the run that goes on
BACKEND = "openvino"
PRECISIONS = {"float32": (1, 4), "bfloat16": (1,), "int8": (1,)}  # batch sizes on the demo set
COLLECTED = {"convert": "03_convert", "metrics": "05_evaluate", "perf": "06_perf"}
FRAMES = {"height": 440, "width": 1024}
# What the pages and the names of commands say of a record: no other settings stand there.
CLAIMED: dict[str, dict[str, object]] = {
    "cpu": FRAMES | {"checkpoint": "gma-procedural"},
    "updates-12": FRAMES | {"checkpoint": "gma-procedural"},
    "updates-32": FRAMES | {"checkpoint": "gma-procedural"},
    "precision": FRAMES | {"weights": "gma-procedural", "backend": BACKEND, "num_updates": 6},
    "half-precision": {"checkpoint": "gma-procedural"},
    "aggregation": {"num_updates": 6},
    "weights-8bit": {"num_updates": 12},
}
UPDATES = {"cpu": 6, "updates-12": 12, "updates-32": 32}  # of every variant


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
    # these need frames of Sintel, which are no part of the package
    "weights-8bit": Measurement(
        ("benchmarks/weights_8bit.py SINTEL --out benchmarks/results/weights-8bit.json",), 15
    ),
    "half-precision": Measurement(
        (
            "-m gma_lib.cli half-precision SINTEL --most 8 "
            "--out benchmarks/results/half-precision.json --overwrite",
        ),
        15,
    ),
    "card": Measurement(("-m gma_lib.cli card --score --sintel SINTEL",), 90),
}


def _locate(name: str) -> Path:
    return CARD if name == "card" else RESULTS / f"{name}.json"


def read(name: str) -> runs.Record:
    """Read what a measurement found; BadFile where its settings are others than the pages say."""
    found = runs.load_record(_locate(name), f"what `make numbers` measured as {name}")
    for key, wanted in CLAIMED.get(name, {}).items():
        _require(name, found.get(key) == wanted, f"{key} is {found.get(key)}", f"{wanted}")
    for variant, one in found["variants"].items() if name in UPDATES else ():
        updates, wanted = one["settings"]["num_updates"], UPDATES[name]
        _require(name, updates == wanted, f"{variant}: {updates} updates", f"{wanted}")
    return found


def _read_variant(variant: str) -> runs.Record:
    """A variant of cpu.yaml; BadFile where it could not be measured."""
    one: runs.Record = read("cpu")["variants"][variant]
    _require("cpu", "error" not in one, f"{variant}: {one.get('error')}", "a measurement")
    return one


def _require(name: str, is_so: bool, found: str, wanted: str) -> None:
    if not is_so:
        raise runs.BadFile(_locate(name), found, f"{wanted}, as the pages say", "Measure it again")


# --- blocks ---------------------------------------------------------------------------------------


def tell_origin(command: str, record: runs.Record, *, short: bool = False) -> str:
    """Return command, commit, machine and date of a measurement, and whether others disturbed it;
    unless ``short`` also the note that it has.
    """
    made = record["provenance"]
    commit, _, state = (made["commit"] or "unknown").partition("+")  # None outside a checkout
    state = {"": "", "changes": " with changes"}.get(state, f" (state {state})")
    machine = made["machine"]
    note = f"; {record['note']}" if record.get("note") and not short else ""
    busy = "; **the machine was busy**" if record.get("load", {}).get("busy") else ""
    return (
        f"`{command}`, commit {commit[:7]}{state}, "
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
        one = _read_variant(name)
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
    names = ("bfloat16", "guide's graph, ONNX Runtime", "bfloat16, batch of 16")
    bf16, base, batch = map(_read_variant, names)
    at_peak = bf16["median_s"] * bf16["share_of_peak"]
    return (
        f"At peak throughput, 6 updates in bfloat16 would take {at_peak:.2f} s per pair, "
        f"{base['median_s'] / at_peak:.1f} times as fast as the baseline. Single pairs reach "
        f"{bf16['share_of_peak']:.0%} of that rate, and batches "
        f"{batch['share_of_peak']:.0%}."
    )


def _tell_speed_up(precision: str) -> str:
    ratios = [_read_variant(name)["ratio"] for name in (precision, "all steps, OpenVINO")]
    return f"{ratios[0] / ratios[1]:.1f}"


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
    ours, better, dis = (
        (f"{found['epe']:.2f} px", f"{100 * found['px1']:.1f} %")
        for found in (scores[method]["all"] for method in ("12", "12 refined", "dis"))
    )
    return (
        f"On two real Sintel pairs (clean, 12 updates): EPE {ours[0]}, 1px {ours[1]}; "
        f"with `--refine variational` {', '.join(better)}; OpenCV's DIS {', '.join(dis)}."
    )


def fast_motion() -> str:
    """README: the families of held-out scenes, which all have motion up to the same length."""
    families = read("precision")["precisions"]["bfloat16"]["families"].values()
    errors = [one["epe_float32"] for one in families]
    return (
        f"EPE {min(errors):.0f}-{max(errors):.0f} px on rendered scenes with motion up to 120 px."
    )


def aggregation() -> str:
    """What switching the aggregation off does on the demo set."""
    found = read("aggregation")
    clean = found["epe"]["clean"]
    of_all, occluded = (
        " to ".join(f"{clean[group][which]:.2f}" for which in ("with", "without"))
        for group in ("all", "occluded")
    )
    origin = tell_origin("python benchmarks/aggregation.py", found)
    return (
        f"On the {found['pairs']} clean pairs of the demo set ({found['num_updates']} updates), "
        f"switching it off ($\\gamma = 0$) changes the EPE of all pixels from {of_all} px and that "
        f"of occluded pixels from {occluded} px ({origin.removesuffix('.')})."
    )


def weights_8bit() -> str:
    """What 8 bits per weight do to the bundled weights."""
    found = read("weights-8bit")
    told = [
        f"from {one['shipped']['epe']:.4f} to {one['rounded']['epe']:.4f} px on {name} "
        f"({one['pairs']} pairs)"
        for name, one in found["frames"].items()
    ]
    origin = tell_origin("python benchmarks/weights_8bit.py SINTEL", found)
    return (
        f"changes their EPE at {found['num_updates']} updates {', '.join(told)} "
        f"({origin.removesuffix('.')})."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        speed, accuracy, demo, cpu, updates_12, updates_32, headroom, bfloat16_speed_up,
        int8_speed_up, precision, half_precision, pictures, refined, against_dis,
        fast_motion, aggregation, weights_8bit,
    )
}  # fmt: skip


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
        A record is missing, was altered, or is of another commit than the one at hand.
    """
    rows: dict[str, runs.Record] = {}
    busy = False
    for precision, sizes in PRECISIONS.items():
        found = {
            size: [
                _read_stage(outputs / f"{BACKEND}-{precision}" / f"bs{size}", *one)
                for one in COLLECTED.items()
            ]
            for size in sizes
        }
        _, metrics, _ = found[sizes[0]]
        rows[precision] = {
            "epe": {name: metrics[name]["all"]["epe"] for name in PASSES},
            "px1": {name: metrics[name]["all"]["px1"] for name in PASSES},
            "distance": {
                name: max(made["deviation"][name] for made, _, _ in found.values())
                for name in ("mean", "max")
            },
            "peak_rss_bytes": {
                str(size): find_peak_memory(perf) for size, (_, _, perf) in found.items()
            },
        }
        busy = busy or any(perf["load"]["busy"] for _, _, perf in found.values())
    return {"rows": rows, "load": {"busy": busy}}


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
    commit = find_commit() or ""
    begun = json.loads(BEGUN.read_text()) if BEGUN.is_file() else {}
    if not begun or begun["commit"].partition("+")[0] != commit.partition("+")[0]:
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
            runs.write_json(_locate("demo"), collect(outputs))
        elif write:
            write_pages()
        else:
            measure(choose(names, sintel), sintel, busy=busy)
    except (FileNotFoundError, ValueError) as error:  # of records and pages
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
