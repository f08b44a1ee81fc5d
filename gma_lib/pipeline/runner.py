"""Run a notebook so that its result can be trusted.

A thin layer around papermill: parameters are checked before anything starts; the notebook runs
under a temporary name and is renamed when it ends, to ``<stage>.ipynb`` or to
``<stage>.failed.ipynb``; a stamp with the manifest is written last. What is up to date by content
(notebook cells, parameters, library, the stages before, inputs, outputs) is not run again.

Exit codes: 0 done, up to date, or a batch size that does not fit in memory; 1 a cell failed; 2
wrong parameters; 3 another run writes the same files; 124 too slow; 130 interrupted; 138 the kernel
died.
"""

import ast
import difflib
import fcntl
import functools
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from gma_lib.report.pages import notebook_to_html
from gma_lib.runs.files import PROJECT, hash_file, hash_value, shorten_path, write_atomically
from gma_lib.runs.progress import show_messages
from gma_lib.runs.records import trace_provenance
from gma_lib.runs.run import Run, open_run

NOTEBOOKS = PROJECT / "notebooks"
PARAMS = PROJECT / "params"
# Stage -> the stages whose files it reads
STAGES = {
    "01_data": (),
    "02_export": ("01_data",),
    "03_convert": ("02_export",),
    "04_infer": ("03_convert",),
    "05_evaluate": ("04_infer",),
    "06_perf": ("03_convert",),
}
SHARED_STAGES = {"01_data"}  # once per profile, whatever the batch size and the backend
# What a stage leaves beside its notebook: patterns relative to its folder, each of which matches a
# file at least
PRODUCTS = {
    "01_data": ("index.json",),
    "02_export": (
        "export.json",
        "model/gma.onnx",
        "model/gma_features.onnx",
        "model/gma_context.onnx",
        "model/gma_refine.onnx",
        "model/reference.flo",
    ),
    "03_convert": (
        "convert.json",
        "model/*",
    ),  # not what lies in folders there: compiled models, which any stage may add
    "04_infer": ("infer.json", "flow/ledger.jsonl", "flow/*/*/*.flo"),
    "05_evaluate": ("metrics.json",),
    "06_perf": ("perf.json",),
}
DOES_NOT_FIT = "DoesNotFit"  # gma_lib.runs.run.DoesNotFit, as a notebook reports it
# Parameters of the runner itself, beside those that the notebooks declare
RUNNER_PARAMETERS = {"limit_s": "float", "cell_limit_s": "float"}
EXIT = {
    "ok": 0,
    "out_of_memory": 0,
    "skipped": 0,
    "failed": 1,
    "timeout": 124,
    "interrupted": 130,
    "died": 138,
}


class WrongParameters(ValueError):
    """Parameters that no notebook would accept."""


# --- parameters -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    annotation: str
    default: Any


@functools.cache
def notebook_cells(stage: str) -> tuple[dict, ...]:
    """The cells of a notebook as they are stored."""
    path = NOTEBOOKS / f"{stage}.ipynb"
    return tuple(json.loads(path.read_text(encoding="utf-8"))["cells"])


@functools.cache
def declared_parameters(stage: str) -> dict[str, Parameter]:
    """The parameters of a notebook, read from its tagged cell: ``name = literal  # type: int|None -
    what it is``.

    The type is a comment because papermill reads it there too (``papermill --help-notebook``), and
    no other notation of ``None``.
    """
    tagged = [
        cell for cell in notebook_cells(stage) if "parameters" in cell["metadata"].get("tags", [])
    ]
    if len(tagged) != 1:
        raise ValueError(
            f"notebooks/{stage}.ipynb has {len(tagged)} cells tagged 'parameters'; it needs one"
        )
    lines = "".join(tagged[0]["source"]).splitlines()
    parameters = {}
    for line in lines:
        match = re.fullmatch(r"(\w+) = (.+?)  # type: (\S+)( - .*)?", line)
        if match is None:
            raise ValueError(f"notebooks/{stage}.ipynb: not 'name = value  # type: ...': {line}")
        parameters[match[1]] = Parameter(match[1], match[3], ast.literal_eval(match[2]))
    return parameters


def resolve_parameters(profile: str, batch_size: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    """Merge ``params/common.yaml``, the profile's file, the batch size's file and the overrides,
    later ones winning, and check them.

    Raises
    ------
    WrongParameters
        For a name that no notebook declares, with the nearest known one, or a value of another type
        than declared.
    """
    files = [PARAMS / "common.yaml", PARAMS / f"{profile}.yaml", PARAMS / f"bs{batch_size}.yaml"]
    if not files[1].is_file():
        profiles = sorted(path.stem for path in PARAMS.glob("*.yaml") if _is_profile(path))
        raise WrongParameters(f"there is no profile {profile!r}; there are: {', '.join(profiles)}")
    merged: dict[str, Any] = {"batch_size": batch_size}
    for file in files:
        if file.is_file():
            merged |= _read_yaml(file)
    merged |= overrides | {"profile": profile}
    known = {
        name: parameter.annotation
        for stage in STAGES
        for name, parameter in declared_parameters(stage).items()
    }
    known |= RUNNER_PARAMETERS
    for name, value in merged.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else f"; there are: {', '.join(sorted(known))}"
            )
            raise WrongParameters(f"no notebook has a parameter {name!r}{hint}")
        if not _fits(value, known[name]):
            raise WrongParameters(f"{name} is {known[name]}, not {value!r}")
    return merged


def _is_profile(path: Path) -> bool:
    return path.stem not in ("common", "train") and not path.stem.removeprefix("bs").isdigit()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise WrongParameters(
            f"{shorten_path(path)} is not readable YAML: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict):
        raise WrongParameters(
            f"{shorten_path(path)} holds a {type(content).__name__}, not 'name: value' lines"
        )
    return content


_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    "None": type(None),
}


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a type written as ``int``, ``list[str]``, ``str|None``, ..."""
    for option in annotation.split("|"):
        if option.startswith("list["):
            if isinstance(value, list) and all(_fits(item, option[5:-1]) for item in value):
                return True
        elif isinstance(value, bool) and option != "bool":
            continue  # True is an int to Python only
        elif isinstance(value, _TYPES[option]):
            return True
    return False


def parse_override(text: str) -> tuple[str, Any]:
    """``name=value`` with the value read as YAML: numbers, lists, true, null."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise WrongParameters(f"{text!r} is not name=value")
    return name, yaml.safe_load(value)


def run_of(parameters: dict[str, Any]) -> Run:
    """The run that the parameters describe; checks the ones that all notebooks share."""
    shared = {
        name: parameters[name]
        for name in ("profile", "backend", "precision", "batch_size", "run", "outputs")
        if name in parameters
    }
    try:
        return open_run(**shared)
    except ValueError as error:
        raise WrongParameters(str(error)) from error


# --- what is up to date ---------------------------------------------------------------------------


@functools.cache
def library_digest() -> str:
    """Digest of every module that may decide a stage's result; training does so only through the
    weights it leaves.
    """
    modules = sorted((PROJECT / "gma_lib").rglob("*.py"))
    aside = ("doctor.py", "index.py", "trainer.py")
    return hash_value(
        [
            [str(path.relative_to(PROJECT)), hash_file(path)]
            for path in modules
            if path.name not in aside
        ]
    )


def stage_key(stage: str, run: Run, parameters: dict[str, Any]) -> str:
    """Digest of all that a stage's result depends on; a change in it means running the stage again."""
    cells = [["".join(cell["source"]), cell["cell_type"]] for cell in notebook_cells(stage)]
    return hash_value(
        [
            stage,
            cells,
            parameters,
            library_digest(),
            upstream_keys(stage, run),
            _inputs(stage, parameters),
        ]
    )


def upstream_keys(stage: str, run: Run) -> list[str | None]:
    """The keys under which the stages before were last run."""
    return [(read_stamp(before, run) or {}).get("key") for before in STAGES[stage]]


def _inputs(stage: str, parameters: dict[str, Any]) -> Any:
    """What a stage reads from outside the project: names, sizes and times of the data set, the
    content of the weights.
    """
    if stage == "01_data" and parameters.get("sintel_root"):
        root = PROJECT / Path(parameters["sintel_root"]).expanduser()
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
        return [
            [str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns]
            for path in files
        ]
    if stage == "02_export":
        named = [
            PROJECT / Path(parameters["checkpoint"]).expanduser(),
            PROJECT / "weights" / f"{parameters['checkpoint']}.safetensors",
        ]
        return [hash_file(path) for path in named if path.is_file()]
    return None


def stage_folder(stage: str, run: Run) -> Path:
    return run.data_folder if stage in SHARED_STAGES else run.folder


def stamp_path(stage: str, run: Run) -> Path:
    return stage_folder(stage, run) / f".{stage}.json"


def read_stamp(stage: str, run: Run) -> dict[str, Any] | None:
    """The manifest of a stage's last run; None if it never ended."""
    try:
        return json.loads(stamp_path(stage, run).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def is_up_to_date(stage: str, run: Run, key: str) -> bool:
    """Whether the stamp carries this key and everything that the stage left is still there,
    unchanged.
    """
    stamp = read_stamp(stage, run)
    if stamp is None or stamp["key"] != key or stamp["status"] != "ok":
        return False
    return fingerprints(stage, stage_folder(stage, run)) == stamp["outputs"]


def fingerprints(stage: str, folder: Path) -> dict[str, str]:
    """Every file that a stage left -> SHA-256; flow files by size, because the ledger beside them
    holds their hashes.
    """
    patterns = (f"{stage}.ipynb", f"{stage}.html", *PRODUCTS[stage])
    files = sorted(
        {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    )
    return {
        str(path.relative_to(folder)): str(path.stat().st_size)
        if path.suffix == ".flo"
        else hash_file(path)
        for path in files
    }


def current_status(stage: str, run: Run) -> str | None:
    """How a stage's last run ended; ``stale`` when a stage before it has run since or has not ended
    well, None if it never ran.
    """
    stamp = read_stamp(stage, run)
    if stamp is None:
        return None
    stale = stamp["upstream"] != upstream_keys(stage, run)
    stale = stale or any(
        _stops(before, stage, run) or current_status(before, run) == "stale"
        for before in STAGES[stage]
    )
    return "stale" if stale and stamp["status"] == "ok" else stamp["status"]


# --- running --------------------------------------------------------------------------------------


def run_stage(stage: str, parameters: dict[str, Any], *, force: bool = False) -> str:
    """Run one notebook, or find that nothing has to be done.

    Returns
    -------
    str
        ``up to date``, or the status that the stamp carries; see ``EXIT``.
    """
    run = run_of(parameters)
    mine = {name: parameters[name] for name in declared_parameters(stage) if name in parameters}
    label = stage if stage in SHARED_STAGES else f"{stage} bs{run.batch_size}"
    folder = stage_folder(stage, run)
    with _only_one(folder / f".{stage}.lock"):
        blocked = [before for before in STAGES[stage] if _stops(before, stage, run)]
        if blocked:
            return _skip(stage, run, label, blocked[0])
        key = stage_key(stage, run, mine)
        if not force and is_up_to_date(stage, run, key):
            print(f"{label}: up to date", flush=True)
            return "up to date"
        stamp_path(stage, run).unlink(missing_ok=True)
        print(f"{label}: running", flush=True)
        start = time.monotonic()
        limits = {name: parameters[name] for name in RUNNER_PARAMETERS}
        status, reason = _execute(stage, run, mine, label, **limits)
        seconds = time.monotonic() - start
        outputs = fingerprints(stage, folder) if status == "ok" else {}
        _write_stamp(
            stage,
            run,
            {
                "status": status,
                "reason": reason,
                "key": key,
                "upstream": upstream_keys(stage, run),
                "seconds": seconds,
                "parameters": mine,
                "outputs": outputs,
            },
        )
        word = {"ok": "done", "out_of_memory": "does not fit"}.get(status, status.upper())
        print(f"{label}: {word} in {seconds:.0f} s{': ' + reason if reason else ''}", flush=True)
        return status


def _stops(before: str, stage: str, run: Run) -> bool:
    """Whether the stage before left nothing to work on. 06 measures whatever was converted: it has
    its own row for what does not fit.
    """
    status = (read_stamp(before, run) or {}).get("status")
    return status != "ok" and not (stage == "06_perf" and status == "out_of_memory")


def _skip(stage: str, run: Run, label: str, before: str) -> str:
    upstream = read_stamp(before, run) or {}
    if upstream.get("status") in ("out_of_memory", "skipped"):
        reason = upstream["reason"]
        nothing = {
            "key": "",
            "upstream": upstream_keys(stage, run),
            "seconds": 0,
            "parameters": {},
            "outputs": {},
        }
        _write_stamp(stage, run, {"status": "skipped", "reason": reason, **nothing})
        print(f"{label}: skipped: {reason}", flush=True)
        return "skipped"
    print(
        f"{label}: not started: {before} did not end well; run it first",
        file=sys.stderr,
        flush=True,
    )
    return "failed"


def _write_stamp(stage: str, run: Run, content: dict[str, Any]) -> None:
    """Last of all: a stamp says that everything before it is in place. A failed stage leaves one
    too, for the report.
    """
    path = stamp_path(stage, run)
    with write_atomically(path) as partial:
        partial.write_text(
            json.dumps({"stage": stage, **content, "provenance": trace_provenance()}, indent=1),
            encoding="utf-8",
        )


def _execute(
    stage: str,
    run: Run,
    parameters: dict[str, Any],
    label: str,
    *,
    limit_s: float,
    cell_limit_s: float,
) -> tuple[str, str]:
    """Run the notebook and publish it under the name that says how it ended; returns (status,
    reason).
    """
    from gma_lib.runs.machine import shared_machine

    folder = stage_folder(stage, run)
    folder.mkdir(parents=True, exist_ok=True)
    running, done, failed = (
        folder / f"{stage}{ending}" for ending in (".running.ipynb", ".ipynb", ".failed.ipynb")
    )
    # Whatever happens now, an older result must not pass for this run's; models and flow are
    # checked by what reads them.
    numbers = [folder / name for name in PRODUCTS[stage] if name.endswith(".json")]
    for old in (running, done, failed, done.with_suffix(".html"), *numbers):
        old.unlink(missing_ok=True)
    lock = run.outputs / ".machine.lock"
    if stage == "06_perf":  # it measures, and asks for the machine itself
        status, reason = _papermill(stage, running, parameters, label, limit_s, cell_limit_s)
    else:
        with shared_machine(lock):
            status, reason = _papermill(stage, running, parameters, label, limit_s, cell_limit_s)
    if running.is_file():
        _tidy(running, stage, status, reason)
        os.replace(running, done if status == "ok" else failed)
    if status == "ok":
        missing = [pattern for pattern in PRODUCTS[stage] if not any(folder.glob(pattern))]
        if missing:
            os.replace(done, failed)
            return "failed", f"the notebook ended without writing {missing[0]}"
        notebook_to_html(
            done, index=run.outputs / run.profile / "index.html", neighbours=_neighbours(stage, run)
        )
    return status, reason


def _papermill(
    stage: str,
    running: Path,
    parameters: dict[str, Any],
    label: str,
    limit_s: float,
    cell_limit_s: float,
) -> tuple[str, str]:
    os.environ |= {
        "GMA_HEADLESS": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with _wall_clock_limit(limit_s):
            papermill.execute_notebook(
                str(NOTEBOOKS / f"{stage}.ipynb"),
                str(running),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(NOTEBOOKS),
                progress_bar=False,
                start_timeout=120,
                execution_timeout=cell_limit_s,
                stdout_file=_Prefixed(label),
                extra_arguments=[
                    "--log-level=CRITICAL"
                ],  # what a cell raises is in the notebook; the rest is noise
            )
    except papermill.PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        if error.ename == DOES_NOT_FIT:
            return "out_of_memory", error.evalue
        return "failed", reason
    except CellTimeoutError:
        return "timeout", f"a cell took longer than {cell_limit_s} s (the parameter cell_limit_s)"
    except TimeoutError as error:
        return "timeout", str(error)
    except DeadKernelError:
        return "died", "the kernel died, most likely for lack of memory: try a smaller batch size"
    except KeyboardInterrupt:
        return "interrupted", "interrupted; start again to go on"
    except Exception as error:
        # papermill and jupyter_client raise many kinds (no such kernel, a port in use); whatever it
        # is, the stage failed
        return "failed", f"{type(error).__name__}: {error}".splitlines()[0]
    return "ok", ""


class _Prefixed:
    """A text file that passes a notebook's printed lines on, each with the stage's name."""

    def __init__(self, label: str):
        self.label = label

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if line.strip():
                print(f"  {self.label} | {line}", flush=True)

    def flush(self) -> None:
        sys.stdout.flush()


@contextmanager
def _wall_clock_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread when the block takes longer."""

    def ring(number, frame):
        raise TimeoutError(f"the notebook took longer than {seconds} s (the parameter limit_s)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _only_one(lock_file: Path) -> Iterator[None]:
    """Refuse to write where another process writes."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with open(lock_file, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"another run is writing {shorten_path(lock_file.parent)}; wait for it or name this one with run=...",
                file=sys.stderr,
            )
            raise SystemExit(3) from None
        yield


def _tidy(path: Path, stage: str, status: str, reason: str) -> None:
    """Take machine paths and widget state out of a notebook's metadata, and say there how the run
    ended.

    After a dead kernel papermill leaves a notebook that looks complete.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    metadata = content["metadata"]
    metadata.pop("widgets", None)
    metadata.setdefault("papermill", {}).update(
        input_path=f"notebooks/{stage}.ipynb", output_path=f"{stage}.ipynb"
    )
    metadata["gma"] = {"status": status, "reason": reason}
    if status != "ok":
        metadata["papermill"]["exception"] = True
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _neighbours(stage: str, run: Run) -> tuple[Path | None, Path | None]:
    """The pages before and after a stage's; 01, which serves every batch size, leads to the index
    only.
    """
    stages = list(STAGES)
    place = stages.index(stage)
    before, after = (
        stages[place + step] if 0 <= place + step < len(stages) else None for step in (-1, 1)
    )
    pages = [
        None if name is None else stage_folder(name, run) / f"{name}.html"
        for name in (before, after)
    ]
    return pages[0], None if stage in SHARED_STAGES else pages[1]


@click.command()
@click.argument("stage", type=click.Choice(list(STAGES)))
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
def main(
    stage: str, profile: str, batch_size: str, overrides: tuple[str, ...], force: bool
) -> None:
    """Run one notebook headless and leave it executed in outputs/."""
    show_messages()
    try:
        parameters = resolve_parameters(
            profile, yaml.safe_load(batch_size), dict(map(parse_override, overrides))
        )
        run_of(parameters)
    except WrongParameters as error:
        print(f"{stage}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    status = run_stage(stage, parameters, force=force)
    raise SystemExit(EXIT.get(status, 0))


if __name__ == "__main__":
    main()
