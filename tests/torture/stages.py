"""Kill stages at every moment, change bytes in every kind of file, and change settings:
``make torture PART=kills``, ``PART=faults`` or ``PART=settings``.

All call the stage graph directly, with the profile ``tiny`` and batch size 1 (settings: 1 and 4),
and compare what is there in the end with an undisturbed run. A case that is done is not done again,
so that an interrupted call goes on; cases of other code or libraries are refused.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import click
import nbconvert
import papermill
import psutil
from state import HOME, require_same_software

from gma_lib.infer.inference import LEDGER
from gma_lib.pipeline.chain import digest_record
from gma_lib.pipeline.parameters import resolve_parameters
from gma_lib.pipeline.runner import EXIT, run_stage
from gma_lib.pipeline.settings import make_run
from gma_lib.pipeline.stages import STAGES, locate_stage
from gma_lib.pipeline.stamps import read_statuses
from gma_lib.report.pages import notebook_to_html
from gma_lib.runs.files import hash_file
from gma_lib.runs.machine import has_bf16
from gma_lib.runs.progress import show_messages
from gma_lib.runs.records import Record, read_json, write_json

OUTPUTS = HOME / "now"  # every case at the same place: records hold paths
PRINTED = HOME / "printed.txt"  # by the last runner
SETTINGS: list[Record] = [
    {"num_updates": 3},
    {"checkpoint": "gma-procedural"},
    {"precision": "bfloat16"},
    {"backend": "torch"},
]
KILLS, KILLS_WHILE_WRITING = 6, 2
SECONDS_TO_END = 2.0
OTHER_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Case = tuple[str, Callable[[], str]]  # its name, and what does it: "held", or what did not
LOADED = (papermill, nbconvert)  # once, for all runners, which are forks of this process
Runner = multiprocessing.context.ForkProcess
FORK = multiprocessing.get_context("fork")


def set_up(**settings: object) -> tuple:
    given = {"batch_size": 1, "outputs": str(OUTPUTS), "run": "torture"} | settings
    parameters = resolve_parameters("tiny", given)
    return parameters, make_run(parameters)


def start(*stages: str, **settings: object) -> Runner:
    """A process that runs stages, one after the other."""
    process = FORK.Process(target=run_stages_here, args=(stages, settings))
    process.start()
    return process


def run_stages_here(stages: tuple[str, ...], settings: Record) -> None:
    """Do so in this process; what is printed goes to a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup started, this one
    with open(PRINTED, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    show_messages()
    parameters = set_up(**settings)[0]
    for stage in stages:
        status = run_stage(stage, parameters, write_page=notebook_to_html)
        if EXIT[status]:
            raise SystemExit(EXIT[status])


def end(process: Runner) -> str:
    """Wait for a runner; return the last line that it printed, or an error's traceback."""
    process.join()
    printed = PRINTED.read_text(errors="replace").strip()
    return printed if "Traceback (most" in printed else printed.rpartition("\n")[2]


def list_leftovers() -> list[str]:
    return [
        str(path.relative_to(OUTPUTS))
        for path in OUTPUTS.rglob("*")
        if path.name.startswith(".gma-") or ".running." in path.name
    ]


def describe_result(**settings: object) -> dict[str, str]:
    """Digests of all flow and records; times, load and counts of computed pairs do not count."""
    run = set_up(**settings)[1]
    found = {str(path.relative_to(OUTPUTS)): hash_file(path) for path in OUTPUTS.rglob("*.flo")}
    for stage, graph in STAGES.items():
        path = locate_stage(stage, run) / graph.products[0]
        if path.is_file():
            record = read_json(path, made_by=stage)
            if graph.is_measurement:
                record = {name: record[name] for name in ("status", "precision", "made_from")}
            found[stage] = digest_record(record)
    return found


def restore(name: str) -> None:
    """Put a stored state of the outputs at the place of the cases; times of files stay."""
    shutil.rmtree(OUTPUTS, ignore_errors=True)
    shutil.copytree(HOME / "states" / name, OUTPUTS)


def measure_cpu() -> float:
    """Seconds that all children that have ended computed for, with theirs."""
    return sum(os.times()[2:4])


def prepare() -> dict[str, float]:
    """Run all stages undisturbed, once; keep the state after each. Stage -> CPU seconds."""
    file = HOME / "undisturbed.json"
    if not file.is_file():
        shutil.rmtree(HOME / "states", ignore_errors=True)
        shutil.rmtree(OUTPUTS, ignore_errors=True)
        OUTPUTS.mkdir(parents=True)
        shutil.copytree(OUTPUTS, HOME / "states" / "nothing")
        seconds, results = {}, {}
        for stage in STAGES:
            before = measure_cpu()
            process = start(stage)
            line = end(process)
            if process.exitcode:
                raise RuntimeError(f"the undisturbed run of {stage} failed: {line}")
            seconds[stage] = measure_cpu() - before
            shutil.copytree(OUTPUTS, HOME / "states" / stage)
            results[stage] = describe_result()
        file.write_text(json.dumps({"seconds": seconds, "results": results}))
    return json.loads(file.read_text())["seconds"]


def compare(stage: str) -> str:
    """``held``, or what differs from the undisturbed run up to this stage."""
    wanted = json.loads((HOME / "undisturbed.json").read_text())["results"][stage]
    found = describe_result()
    wrong = [name for name in sorted(wanted | found) if found.get(name) != wanted.get(name)]
    if wrong:
        return f"another result: {', '.join(wrong[:3])}"
    return f"left over: {left[0]}" if (left := list_leftovers()) else "held"


# --- kills ----------------------------------------------------------------------------------------


def count_stored() -> int:
    """Pairs that the ledger of 04 names."""
    ledgers = OUTPUTS.rglob(f"flow/{LEDGER}")
    return sum(path.read_text(errors="replace").count('"sha256"') for path in ledgers)


def is_running(process: psutil.Process) -> bool:
    """Whether a process is neither gone nor waits for its parent to notice that it has ended."""
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def kill(stage: str, number: int, *moments: Callable[[Runner], bool]) -> str:
    """Send a signal at a moment, look after two seconds, resume, compare.

    The first of the moments that comes before the stage has ended counts.
    """
    names = list(STAGES)
    place = names.index(stage)
    for moment in moments:
        restore(names[place - 1] if place else "nothing")
        process = start(stage)
        if moment(process):
            break
    else:
        return "ended before"
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    alive = psutil.wait_procs(family, SECONDS_TO_END)[1]
    process.join(SECONDS_TO_END)
    if process.is_alive():
        alive.append(psutil.Process(process.pid))
    left = []
    for one in alive:
        with suppress(psutil.NoSuchProcess):  # it ends just now
            if is_running(one):
                left.append(f"{one.pid} {one.status()} {one.cmdline()[:4]}")
            one.kill()
    process.join()
    if left:
        return f"still there after {SECONDS_TO_END:.0f} s: {'; '.join(left)}"
    stored = count_stored()
    resumed = start(stage)
    line = end(resumed)
    if resumed.exitcode:
        return f"not resumed: {line}"
    if stage == "04_infer":
        run = set_up()[1]
        summary = read_json(run.folder / "infer.json", made_by=stage)["summary"]
        if summary["reused"] < min(stored, summary["pairs"]) and stored and summary["computed"]:
            return f"{stored} pairs were stored and {summary['reused']} reused"
    return compare(stage)


def wait_for_time(seconds: float) -> Callable[[Runner], bool]:
    """Wait until a runner and its children have computed for so long; a busy machine delays it."""

    def wait(process: Runner) -> bool:
        family = psutil.Process(process.pid)
        while process.is_alive():
            computed = 0.0
            with suppress(psutil.NoSuchProcess):
                for one in [family, *family.children(recursive=True)]:
                    computed += sum(one.cpu_times()[:4])  # its own, and of children that ended
            if computed >= seconds:
                return True
            process.join(0.1)
        return False

    return wait


def wait_for_file(skipped: int) -> Callable[[Runner], bool]:
    """Wait until a file is being written, after so many others."""

    def wait(process: Runner) -> bool:
        seen: set[str] = set()
        while process.is_alive():
            for folder, folders, files in os.walk(OUTPUTS):
                new = [name for name in folders + files if name.startswith(".gma-")]
                seen |= {f"{folder}/{name}" for name in new if not name.endswith(".kernel")}
            if len(seen) > skipped:
                return True
            time.sleep(0.001)
        return False

    return wait


def list_kills() -> Iterator[Case]:
    seconds = prepare()
    for number in range(KILLS + KILLS_WHILE_WRITING):  # round by round, so that a part says much
        for stage in STAGES:
            if number < KILLS:
                at = seconds[stage] * (number + 0.5) / KILLS
                moments = [wait_for_time(share * at) for share in (1, 0.9, 0.8, 0.7)]
                what = "moment"
            else:
                moments, what = [wait_for_file(number - KILLS)], "while writing"
            name = f"{stage} SIGKILL {what} {number}"
            yield name, lambda stage=stage, moments=moments: kill(stage, signal.SIGKILL, *moments)
    for one in OTHER_SIGNALS:
        for stage in STAGES:
            moment = wait_for_time(seconds[stage] / 2)
            name = f"{stage} {one.name} moment 0"
            yield name, lambda stage=stage, one=one, moment=moment: kill(stage, one, moment)


# --- faults ---------------------------------------------------------------------------------------


def list_kinds(after: str) -> dict[str, Path]:
    """One file of each kind that is there after a stage: by folder and ending, or by name."""
    root = HOME / "states" / after
    kinds: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.stat().st_size and path.name not in (".lock", ".machine.lock"):
            relative = path.relative_to(root)
            parts = [part for part in relative.parts if part in ("frames", "flow", "compiled")]
            many = path.suffix in (".png", ".flo", ".blob")
            name = "/".join([*parts, f"*{path.suffix}" if many else path.name])
            if "frames" in parts:
                name = f"frames/{relative.parts[-3]}/*{path.suffix}"
            kinds.setdefault(name, relative)
    return kinds


def change_byte(path: Path) -> None:
    """Change a byte in the middle; size and modification time stay."""
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def damage(after: str, relative: Path) -> str:
    """Change a byte between two stages, run all up to the second one, compare.

    If nothing differs then, nothing can later: the stages that follow read what is compared.
    """
    restore(after)
    change_byte(OUTPUTS / relative)
    wanted = list(STAGES)[: list(STAGES).index(after) + 2]
    process = start(*wanted)
    line = end(process)
    if "Traceback" in line:
        return f"a traceback: {line.splitlines()[-1]}"
    if process.exitcode:
        return f"did not heal: {line}"
    statuses = read_statuses(set_up()[1])
    if any(statuses[stage] != "ok" for stage in wanted):
        return f"ended as {statuses}"
    return compare(wanted[-1])


def list_faults() -> Iterator[Case]:
    prepare()
    kinds = [(stage, kind, path) for stage in STAGES for kind, path in list_kinds(stage).items()]
    first = {kind: stage for stage, kind, _ in reversed(kinds)}  # first what a stage left itself
    for after, kind, path in sorted(kinds, key=lambda one: first[one[1]] != one[0]):
        yield f"{after} {kind}", lambda after=after, path=path: damage(after, path)


# --- settings -------------------------------------------------------------------------------------


def run_sizes(settings: Record) -> list[dict[str, str]]:
    """Run all stages for two batch sizes; describe each."""
    for size in (1, 4):
        process = start(*STAGES, **settings, batch_size=size)
        line = end(process)
        if process.exitcode:
            raise RuntimeError(line)
    return [describe_result(**settings, batch_size=size) for size in (1, 4)]


def change(settings: Record) -> str:
    """Run with settings where another run was, and where nothing was; compare."""
    try:
        restore("06_perf")
        changed = run_sizes(settings)
        restore("nothing")
        fresh = run_sizes(settings)
    except RuntimeError as error:
        return f"did not run: {error}"
    wrong = [
        f"{name} bs{size}"
        for size, one, other in zip((1, 4), changed, fresh, strict=True)
        for name in sorted(one | other)
        if one.get(name) != other.get(name)
    ]
    return f"another result: {', '.join(wrong[:3])}" if wrong else "held"


def list_settings() -> Iterator[Case]:
    prepare()
    for settings in SETTINGS:
        if settings.get("precision") == "bfloat16" and not has_bf16():
            continue  # it would be refused
        name = ", ".join(f"{name} {value}" for name, value in settings.items())
        yield f"all {name}", lambda settings=settings: change(settings)


# --- commands -------------------------------------------------------------------------------------


PARTS = {"kills": list_kills, "faults": list_faults, "settings": list_settings}


@click.command()
@click.argument("part", type=click.Choice(list(PARTS)))
@click.option("--limit-s", default=7200.0, show_default=True, help="Start no case after it.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def try_part(part: str, limit_s: float, out: Path | None) -> None:
    """Do the cases of a part that are not done yet; exit code 1 if one does not hold."""
    begun = time.monotonic()
    require_same_software()
    ledger = HOME / f"{part}.jsonl"
    lines = ledger.read_text().splitlines() if ledger.is_file() else []
    done = {one["case"]: one["result"] for one in map(json.loads, lines)}
    for name, do in PARTS[part]():
        if name not in done and time.monotonic() - begun < limit_s:
            done[name] = do()
            with open(ledger, "a", encoding="utf-8") as file:
                file.write(json.dumps({"case": name, "result": done[name]}) + "\n")
            click.echo(f"{name}: {done[name]}")
    bad = [name for name, result in done.items() if result not in ("held", "ended before")]
    click.echo(f"{part}: {len(done)} cases done, {len(bad)} did not hold")
    if out:
        cases = len([*PARTS[part]()])
        write_json(out, {"cases": cases, "done": len(done), "stages": count_results(part, done)})
    raise SystemExit(bool(bad))


def count_results(part: str, done: dict[str, str]) -> dict[str, dict[str, Counter[str]]]:
    """What was tried: stage -> what was done to it -> result -> how often."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for case, result in done.items():
        stage, what = case.split(" ", 1)
        what = what.rpartition(" ")[0] if part == "kills" else what
        counts.setdefault(stage, {}).setdefault(what, Counter())[result] += 1
    return counts


if __name__ == "__main__":
    try_part()
