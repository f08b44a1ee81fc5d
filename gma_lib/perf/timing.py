"""Time and memory of a converted model, with the machine it was measured on.

A measurement runs in a process of its own: its memory is the model's, and when the system kills it,
the batch size gets a row that says so while everything else goes on.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gma_lib import export, network
from gma_lib.ascend.chip import Card
from gma_lib.backends import Backend, find_backend, load_backend
from gma_lib.perf.load import Load
from gma_lib.perf.on_device import measure_on_card
from gma_lib.perf.peak import measure_peak
from gma_lib.perf.summary import summarize
from gma_lib.runs.code import list_loaded_modules
from gma_lib.runs.files import shorten_path
from gma_lib.runs.leftovers import temporary_folder
from gma_lib.runs.machine import exclusive_machine
from gma_lib.runs.processes import end_with_parent, tie_child
from gma_lib.runs.records import Record
from gma_lib.runs.run import DoesNotFit

with suppress(ImportError):  # Windows has none
    import resource

FEWEST_ROUNDS = 3
# Of Python, C++, C++ on Windows; PyTorch, ONNX Runtime and the system begin in different words.
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "bad allocation", "allocate memory")
NOT_LOADED = "allocate memory in static TLS block"  # of a library, however much memory there is
VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes
    ----------
    backend, model_folder, precision
        As for ``gma_lib.backends.load_backend``.
    batch_size, height, width
        Size of the model's input; height and width padded.
    at_once
        Pairs that the model computes together inside a batch (``gma_lib.convert.convert``); None:
        the whole batch.
    budget_s
        Time for the counted rounds; three are made in any case.
    gmac_per_pair
        Multiply-accumulates, 1e9, from ``gma_lib.export.count_work``.
    """

    backend: str
    model_folder: str
    precision: str
    batch_size: int
    height: int
    width: int
    at_once: int | None
    budget_s: float
    gmac_per_pair: float


def measure(task: Task, *, card: Card | None = None) -> Record:
    """Measure a model alone on the machine: no other stage runs meanwhile.

    Parameters
    ----------
    card
        The Ascend card, for models of one.

    Returns
    -------
    dict
        ``status`` is ``ok``, ``out_of_memory`` (predicted, or the process was killed) or
        ``failed``, ``reason`` says why; then ``median_s``, ``p90_s``, ``spread`` (interquartile
        range by median) and ``samples_s`` of one call, ``rounds``, ``pairs_per_second``,
        ``load_s``, ``first_call_s``, ``peak_rss_bytes``, ``peak_device_bytes`` (null where the
        model has no memory but this machine's), ``predicted_bytes``; ``matrix_product_peak`` in
        operations a second, and ``share_of_peak``, the model's share of it (null where this
        precision's peak was not measured); ``load``, as ``gma_lib.perf.load.Load`` describes it.
    """
    shape = (task.backend, task.precision, task.batch_size, task.height, task.width, task.at_once)
    result = asdict(task) | {
        "model_folder": shorten_path(Path(task.model_folder)),
        "simulated": False,
        "predicted_bytes": network.predict_memory(*shape),
    }
    try:
        network.require_memory(*shape)
    except DoesNotFit as error:
        return result | {"status": "out_of_memory", "reason": f"not started: {error}"}
    if card and card.dry_run:  # another machine measured it
        return result | measure_on_card(
            Path(task.model_folder), task.precision, task.batch_size, card
        )
    with exclusive_machine():
        load = Load()
        if task.backend == "ascend":  # its own tool measures it, in a process of its own already
            folder = Path(task.model_folder)
            found = measure_on_card(folder, task.precision, task.batch_size, card or Card())
        else:
            found = _measure_in_process(task)
        return load.add_to(result | found)


def _measure_in_process(task: Task) -> Record:
    """Status, reason and numbers of a model that a process of its own has measured."""
    computes_on = find_backend(task.backend).computes_on
    peak_before = measure_peak(task.precision, computes_on)
    limit = 600 + 30 * task.budget_s
    kills_before = _count_memory_kills()
    with temporary_folder() as folder:
        answer = folder / "answer.json"
        task_and_answer = [json.dumps(asdict(task)), str(answer)]
        command = [sys.executable, "-m", "gma_lib.perf.timing", *task_and_answer]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, **tie_child()
            )
        except subprocess.TimeoutExpired:
            return {"status": "failed", "reason": f"no answer after {limit:.0f} s"}
        if not answer.is_file():
            new_kills = kills_before is None or _count_memory_kills() != kills_before
            return _explain_failure(done, for_memory=new_kills)
        measured: Record = json.loads(answer.read_text(encoding="utf-8"))
    peaks = (peak_before, measure_peak(task.precision, computes_on))
    share = _compute_share(task, measured["pairs_per_second"], *peaks)
    return {"status": "ok", "reason": ""} | measured | share


def _explain_failure(done: subprocess.CompletedProcess[str], *, for_memory: bool) -> Record:
    """Status and reason of a process that has left no answer.

    Parameters
    ----------
    for_memory
        Whether the system may have killed it for its memory, if it was killed.
    """
    said = done.stderr.replace(NOT_LOADED, "")
    out_of_memory = any(words in said for words in OUT_OF_MEMORY)
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == -9:
        out_of_memory = for_memory
        who = "the system" if for_memory else "another program"
        why = "most likely for its memory" if for_memory else "run 06_perf again"
        reason = f"{who} killed the measurement: {why}"
    return {"status": "out_of_memory" if out_of_memory else "failed", "reason": reason}


def _count_memory_kills() -> int | None:
    """How many processes Linux has killed for their memory since it started; None elsewhere."""
    with suppress(OSError, StopIteration):
        lines = VMSTAT.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return None


def _compute_share(
    task: Task, pairs_per_second: float, *peaks: float | None
) -> dict[str, float | None]:
    """The model's rate as a share of the matrix product's, measured before and after; the better of
    the two counts.
    """
    measured = [peak for peak in peaks if peak is not None]
    if len(measured) < len(peaks):
        return {"matrix_product_peak": None, "share_of_peak": None}
    return {
        "matrix_product_peak": max(measured),
        "share_of_peak": 2e9 * task.gmac_per_pair * pairs_per_second / max(measured),
    }


def _measure_here(task: Task) -> Record:
    """The body of the measuring process."""
    rng = np.random.default_rng(0)
    # Frames that resemble each other, so that the lookup reads what it would read for real flow.
    image1 = rng.integers(0, 256, (task.batch_size, 3, task.height, task.width)).astype(np.float32)
    image2 = np.roll(image1, 3, axis=-1)
    start = time.perf_counter()
    with load_backend(task.backend, Path(task.model_folder), precision=task.precision) as backend:
        backend.prepare()
        loaded = time.perf_counter()
        backend.predict(image1, image2)
        first = time.perf_counter()
        samples: list[float] = []
        while len(samples) < FEWEST_ROUNDS or sum(samples) < task.budget_s:
            before = time.perf_counter()
            backend.predict(image1, image2)
            samples.append(time.perf_counter() - before)
        peak = measure_peak_rss()  # before the profile, which loads the model once more
        return summarize(samples, task.batch_size) | {
            "parts_s": _time_by_part(task, backend, image1, image2),
            "load_s": loaded - start,
            "first_call_s": first - loaded,
            "device": backend.device,
            "precision_read_back": backend.precision,
            "peak_rss_bytes": peak,
            "peak_device_bytes": backend.device_bytes(),
            "modules": list_loaded_modules(),
        }


def _time_by_part(
    task: Task, backend: Backend, image1: np.ndarray, image2: np.ndarray
) -> dict[str, float] | None:
    """Seconds per pair of each part of the network; None if the runtime does not report them."""
    if not hasattr(backend, "profile"):
        return None
    parts = export.map_nodes_to_parts(Path(task.model_folder) / "gma.onnx")
    at_once = backend.at_once or task.batch_size
    times: Counter[str] = Counter()
    for name, seconds in backend.profile(image1[:at_once], image2[:at_once]).items():
        # OpenVINO keeps the names of the file, with an addition where it has split an operation.
        times[parts.get(name.removesuffix("/WithoutBiases"), export.REST)] += seconds / at_once
    return dict(times)


def measure_peak_rss() -> int:
    """Return the largest resident memory of this process, in bytes.

    Linux's VmHWM belongs to this program alone; ``ru_maxrss`` would still remember the process that
    started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    end_with_parent(os.getppid())
    Path(sys.argv[2]).write_text(
        json.dumps(_measure_here(Task(**json.loads(sys.argv[1])))), encoding="utf-8"
    )
