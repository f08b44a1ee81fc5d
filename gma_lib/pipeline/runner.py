"""Run a notebook so that its result can be trusted.

A thin layer around papermill: parameters are checked before anything starts; the notebook runs
under a temporary name and is renamed when it ends, to ``<stage>.ipynb`` or to
``<stage>.failed.ipynb``; a stamp is written last. What is up to date by content (notebook cells,
parameters, library, the stages before, inputs, outputs) is not run again.

Exit codes: 0 done, up to date, or a batch size that does not fit in memory; 1 a cell failed, or a
stage before did; 2 wrong parameters; 124 too slow; 130 interrupted; 138 the kernel died.
"""

import errno
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from types import FrameType
from typing import Protocol

from gma_lib.pipeline.chain import locate_earlier
from gma_lib.pipeline.dropped import list_dropped, locate_note
from gma_lib.pipeline.headlines import describe_result
from gma_lib.pipeline.parameters import read_parameters
from gma_lib.pipeline.settings import find_contradiction, make_run
from gma_lib.pipeline.stages import (
    NOTEBOOKS,
    STAGES,
    locate_neighbours,
    locate_record,
    locate_stage,
)
from gma_lib.pipeline.stamps import (
    Stamp,
    blocks,
    digest_consumed,
    digest_pages,
    digest_products,
    find_changes,
    find_other_data,
    locate_stamp,
    of_modules,
    read_stamp,
    write_stamp,
)
from gma_lib.runs.code import drop_stale_bytecode
from gma_lib.runs.digests import Digests
from gma_lib.runs.files import IN_CHECKOUT, PACKAGE, PROJECT, shorten_path, write_text
from gma_lib.runs.leftovers import temporary_folder
from gma_lib.runs.machine import shared_machine
from gma_lib.runs.processes import hold_lock, tie_child
from gma_lib.runs.progress import show_waiting
from gma_lib.runs.records import Record, read_json
from gma_lib.runs.run import DoesNotFit, Run

EXIT = {
    "ok": 0,
    "up to date": 0,
    "out_of_memory": 0,
    "skipped": 0,
    "not started": 1,
    "failed": 1,
    "timeout": 124,
    "interrupted": 130,
    "died": 138,
}

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of a stage's notebook while it runs, done, or failed, and of its page
ENDINGS = (".running.ipynb", ".ipynb", ".failed.ipynb", ".html")
# What a cell raises is in the notebook; the rest of a kernel's messages is noise, most of all if it
# is stopped while it answers.
QUIET_KERNEL = [
    "--log-level=CRITICAL",
    "--IPKernelApp.exec_lines=__import__('logging').getLogger('tornado').setLevel('CRITICAL')",
]
KERNEL_FOLDER = NOTEBOOKS if IN_CHECKOUT else PROJECT  # as in JupyterLab; or where outputs/ lies


class WritePage(Protocol):
    """A function that writes an executed notebook as a page: ``report.pages.notebook_to_html``."""

    def __call__(
        self,
        notebook: Path,
        *,
        index: Path,
        neighbours: tuple[Path | None, Path | None],
        whose: str,
    ) -> Path: ...


class NotReady(RuntimeError):
    """A stage before has left nothing to work on."""


@dataclass(frozen=True)
class Job:
    """One notebook to run: its stage and run, the parameters that it declares, and its limits in
    seconds.
    """

    stage: str
    run: Run
    parameters: Record
    limit_s: float
    cell_limit_s: float

    @property
    def label(self) -> str:
        return (
            self.stage if STAGES[self.stage].is_shared else f"{self.stage} bs{self.run.batch_size}"
        )

    @property
    def folder(self) -> Path:
        return locate_stage(self.stage, self.run)


def run_stage(
    stage: str,
    parameters: Record,
    *,
    write_page: WritePage,
    force: bool = False,
    place: str = "",
) -> str:
    """Run one notebook, or find that nothing has to be done.

    Parameters
    ----------
    place
        What the line that says that it runs begins with.

    Returns
    -------
    str
        ``up to date``, or the status that the stamp carries; see ``EXIT``.

    Raises
    ------
    WrongParameters, NotReady
        Before anything is written.
    """
    run = make_run(parameters)
    mine = _take_declared(stage, parameters)
    job = Job(stage, run, mine, parameters["limit_s"], parameters["cell_limit_s"])
    with hold_lock(
        job.folder / ".lock", f"another run in {shorten_path(job.folder)} ({job.label})"
    ):
        for before in STAGES[stage].reads:
            if blocks(before, stage, run):
                return _skip(job, before)
        _require_one_run(job, parameters)
        digests = Digests(run.outputs / ".digests.json")
        changes = find_changes(stage, run, mine, digests)
        changes = changes or _find_needing_dropped(stage, run, parameters, digests)
        if not force and not changes:
            digests.save()
            logger.info("%s: up to date", job.label)
            return "up to date"
        locate_stamp(stage, run).unlink(missing_ok=True)
        logger.info("%s%s: running%s", place, job.label, _describe_changes(changes))
        consumed = digest_consumed(stage, run, mine, digests)
        start = time.monotonic()
        try:
            status, reason = _publish(job, write_page)
            seconds = time.monotonic() - start
            products: dict[str, str] = {}
            if status == "ok":
                consumed = of_modules(consumed, stage, run)
                products = digest_products(stage, run, digests) | digest_pages(stage, run, digests)
            write_stamp(run, Stamp(stage, status, reason, seconds, mine, consumed, products))
        except OSError:  # a full disk
            _remove_results(job, ENDINGS)
            raise
        digests.save()
        _log_end(job, status, seconds, reason)
        return status


def _take_declared(stage: str, parameters: Record) -> Record:
    """The parameters that a stage's notebook declares."""
    return {name: parameters[name] for name in read_parameters(stage) if name in parameters}


def _find_needing_dropped(stage: str, run: Run, parameters: Record, digests: Digests) -> list[str]:
    """Of 04_infer: say which later stage has to run again with flow that was dropped."""
    if stage != "04_infer" or not list_dropped(run):
        return []
    return [
        f"{name}, which needs the flow that was dropped,"
        for name in STAGES
        if stage in STAGES[name].reads
        and find_changes(name, run, _take_declared(name, parameters), digests)
    ]


def _require_one_run(job: Job, parameters: Record) -> None:
    """Raise NotReady where another run has changed what the stages before this one left."""
    reads = STAGES[job.stage].reads
    other = find_other_data(job.run, parameters) if "01_data" in reads else None
    if "02_export" in reads:
        other = other or find_contradiction(job.run, parameters)
    if other:
        raise NotReady(f"{job.label}: not started: {other}")


def _log_end(job: Job, status: str, seconds: float, reason: str) -> None:
    """Say in a line how a stage ended, and what it found."""
    remark = reason
    if status == "ok":
        record = read_json(locate_record(job.stage, job.run), made_by=job.stage)
        remark = describe_result(job.stage, record)
    word = {"ok": "done", "out_of_memory": "does not fit"}.get(status, status.upper())
    because = f": {remark}" if remark else ""
    logger.info("%s: %s in %.0f s%s", job.label, word, seconds, because)


def _skip(job: Job, before: str) -> str:
    """Leave a stamp where a batch size does not fit; refuse where a stage before failed."""
    upstream = read_stamp(before, job.run)
    if upstream is None or upstream.status not in ("out_of_memory", "skipped"):
        raise NotReady(f"{job.label}: not started: {before} did not end well")
    write_stamp(job.run, Stamp(job.stage, "skipped", upstream.reason, 0, {}, {}, {}))
    logger.info("%s: skipped: %s", job.label, upstream.reason)
    return "skipped"


def _describe_changes(changes: list[str]) -> str:
    """Say why a stage runs again: what differs from its last run."""
    if changes == ["not run"]:
        return ""
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return f" again: {', '.join(changes[:3])}{more} changed"


def _publish(job: Job, write_page: WritePage) -> tuple[str, str]:
    """Run the notebook and publish it under the name that says how it ended; return (status,
    reason).
    """
    stage, folder = job.stage, job.folder
    folder.mkdir(parents=True, exist_ok=True)
    running, done, failed, _ = (folder / f"{stage}{ending}" for ending in ENDINGS)
    _remove_results(job, ENDINGS)  # from now on an older one must not pass for this run's
    if stage == "04_infer":
        locate_note(job.run).unlink(missing_ok=True)
    machine = nullcontext() if STAGES[stage].is_measurement else shared_machine()
    with show_waiting(job.label), machine:
        status, reason = _run_notebook(job, running)
    missing = [pattern for pattern in STAGES[stage].products if not any(folder.glob(pattern))]
    if status == "ok" and missing:
        status, reason = "failed", f"the notebook ended without writing {missing[0]}"
    if status != "ok":
        _remove_results(job)
    if running.is_file():
        with suppress(ValueError):  # a full disk cut it short
            _tidy(running, stage, status, reason)
            os.replace(running, done if status == "ok" else failed)
        running.unlink(missing_ok=True)
    if status == "ok":
        run = job.run
        whose = f"profile {run.profile}" if STAGES[stage].is_shared else run.title
        write_page(done, index=run.index, neighbours=locate_neighbours(stage, run), whose=whose)
    return status, reason


def _remove_results(job: Job, endings: Iterable[str] = ()) -> None:
    """Remove a stage's numbers and pictures, and its notebook and page with these endings; models
    and flow are checked by what reads them, and frames by 01_data itself.
    """
    stage = STAGES[job.stage]
    numbers = [name for name in stage.products if name.endswith(".json")]
    for name in [*(f"{job.stage}{ending}" for ending in endings), *numbers]:
        if name == "infer.json" and (job.folder / name).is_file():
            os.replace(job.folder / name, locate_earlier(job.folder / name))
        (job.folder / name).unlink(missing_ok=True)
    for pattern in () if stage.is_shared else stage.extras:
        for path in job.folder.glob(pattern):
            path.unlink()


def _run_notebook(job: Job, running: Path) -> tuple[str, str]:
    """Execute the cells; return how it ended: (status, reason)."""
    try:
        _require_loopback()
        _require_own_library()
        with _limit_wall_clock(job.limit_s):
            _execute_cells(job, running)
    except (Exception, KeyboardInterrupt) as error:
        # papermill and jupyter_client raise many kinds (no such kernel, a port in use); whatever it
        # is, the stage has ended.
        return _explain(error, job)
    return "ok", ""


def _explain(error: BaseException, job: Job) -> tuple[str, str]:
    """Status and reason of a notebook that an error ended."""
    from nbclient.exceptions import CellTimeoutError
    from papermill.exceptions import PapermillExecutionError

    cause = error.__cause__ or error.__context__
    if isinstance(cause, TimeoutError) and "limit_s" in str(cause):  # as a library passed it on
        error = cause
    if isinstance(error, PapermillExecutionError):
        if error.ename == DoesNotFit.__name__:
            return "out_of_memory", error.evalue
        return "failed", f"{error.ename}: {error.evalue}".splitlines()[0]
    if str(error).startswith("Kernel died"):  # while it started, or later: two kinds of error
        return "died", "the kernel died, most likely for lack of memory: try a smaller batch size"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        place = f"cannot write to {shorten_path(job.folder)} ({error.strerror})"
        return "failed", f"{place}: make room, or give another folder"
    known: dict[type[BaseException], tuple[str, str]] = {
        CellTimeoutError: (
            "timeout",
            f"a cell took longer than {job.cell_limit_s} s (the parameter cell_limit_s)",
        ),
        TimeoutError: ("timeout", str(error)),
        KeyboardInterrupt: ("interrupted", "interrupted; start again to go on"),
    }
    otherwise = ("failed", f"{type(error).__name__}: {error}".splitlines()[0])
    return next((ended for kind, ended in known.items() if isinstance(error, kind)), otherwise)


def _execute_cells(job: Job, running: Path) -> None:
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    notebook = NOTEBOOKS / f"{job.stage}.ipynb"

    class TiedKernel(AsyncKernelManager):
        start_kernel = partialmethod(AsyncKernelManager.start_kernel, **tie_child())

    # The kernel's own files lie here, because a home may be read-only, and go with other leftovers.
    with temporary_folder(job.folder) as folder:
        private = str(folder)
        drop_stale_bytecode()
        os.environ.pop("PYTHONOPTIMIZE", None)  # the notebooks check with assert
        os.environ.pop("JUPYTER_PATH", None)  # its kernels come before this environment's
        os.environ |= {
            "GMA_HEADLESS": "1",
            "IPYTHONDIR": private,
            "JUPYTER_PREFER_ENV_PATH": "1",
            "JUPYTER_RUNTIME_DIR": private,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        logging.getLogger("papermill").setLevel(logging.ERROR)
        # papermill fills in what stands in braces in a path
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, running)]
        papermill.execute_notebook(
            *paths,
            parameters=job.parameters,
            kernel_name="python3",
            kernel_manager_class=TiedKernel,
            cwd=str(KERNEL_FOLDER),
            progress_bar=False,
            start_timeout=120,
            execution_timeout=math.ceil(job.cell_limit_s),  # papermill takes whole seconds
            stdout_file=_Prefixed(job.label),
            extra_arguments=QUIET_KERNEL,
        )


def _require_loopback() -> None:
    """Refuse a machine without the network interface by which notebooks are run."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise RuntimeError(
            f"cannot connect to 127.0.0.1, over which notebooks are run ({error}): "
            "start the loopback interface (ip link set lo up)"
        ) from error


def _require_own_library() -> None:
    """Refuse an environment whose notebooks would import another checkout of this package."""
    code = "import importlib.util as u; print(getattr(u.find_spec('gma_lib'), 'origin', ''))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=KERNEL_FOLDER, check=True)
    found = done.stdout.strip()
    if Path(found).resolve() != PACKAGE / "__init__.py":
        raise RuntimeError(
            f"{sys.executable} imports gma_lib from {found or 'nowhere'}, not from {PACKAGE}. "
            f"Install this checkout: {sys.executable} -m pip install --no-deps --editable {PROJECT}"
        )


class _Prefixed:
    """A text file that passes a notebook's printed lines on, each with the stage's name."""

    def __init__(self, label: str):
        self.label = label

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if line.strip():
                logger.info("  %s | %s", self.label, line)

    def flush(self) -> None:
        pass


@contextmanager
def _limit_wall_clock(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread when the block takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the notebook took longer than {seconds} s (the parameter limit_s)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _tidy(path: Path, stage: str, status: str, reason: str) -> None:
    """Take machine paths and widget state out of a notebook's metadata, and record there how the
    run ended.

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
    write_text(path, json.dumps(content, indent=1))
