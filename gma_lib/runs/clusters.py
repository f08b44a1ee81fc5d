"""Where shards of work are computed: in this process, in others of this machine, or by Dask.

Inference and evaluation take any ``concurrent.futures.Executor``; this module opens those that the
parameter ``cluster`` names. Whoever reaches a Dask scheduler can run code on its workers, so that
of ``dask:local`` listens to this machine alone.
"""

import asyncio
import logging
import platform
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import islice
from tempfile import gettempdir
from traceback import format_exc
from typing import TYPE_CHECKING, TypeVar, cast

import gma_lib
from gma_lib.runs.code import require_loaded_code
from gma_lib.runs.devices import Devices, Place, share_machine
from gma_lib.runs.files import PACKAGE, hash_file, hash_value
from gma_lib.runs.machine import (
    VERSIONED,
    count_cores,
    find_memory,
    find_versions,
    identify_processor,
)
from gma_lib.runs.parcels import Lacking, Sent
from gma_lib.runs.pool import ProcessPool
from gma_lib.runs.records import Record

if TYPE_CHECKING:
    from distributed import Client, LocalCluster, Worker, WorkerPlugin

Shard = TypeVar("Shard")
Answer = TypeVar("Answer")

SECONDS = 10  # for a scheduler to answer, and for its first worker
LOOPBACK = "127.0.0.1"
_FORM = re.compile(r"serial|processes:[1-9]\d{0,3}|dask:(local|([a-z]+://)?[^\s/]+:\d{1,5})")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """What computes.

    Attributes
    ----------
    executor
        Takes the shards; None: this process computes them, one after the other.
    threads
        Of each worker.
    here
        How many of them share this machine.
    """

    executor: Executor | None
    threads: int
    here: int

    @property
    def memory_bytes(self) -> int:
        """This machine's memory for each worker that shares it."""
        return find_memory() // self.here


def check_cluster(text: str) -> None:
    """Raise ValueError unless ``cluster`` may have this value here."""
    if not _FORM.fullmatch(text):
        raise ValueError("should be serial, processes:N, dask:local or dask:HOST:PORT")
    if text.startswith("dask:") and find_spec("distributed") is None:
        raise ValueError(
            "should be serial or processes:N without Dask (pip install 'gma-lib[distributed]')"
        )


@contextmanager
def open_cluster(text: str, devices: Devices | None = None) -> Iterator[Workers]:
    """Open the workers that a value of the parameter ``cluster`` names.

    Parameters
    ----------
    text
        ``serial``: this process, with all cores. ``processes:N``: worker processes of this machine,
        which share its cores. ``dask:local``: the same by Dask. ``dask:ADDRESS``: the workers of a
        scheduler; each computes one shard at a time, with the threads that Dask gave it.
    devices
        Each worker process has one of its own: those that are started here get it, and those of a
        scheduler are asked. None: the processor computes.

    Raises
    ------
    ValueError
        For another value, where workers have different numbers of threads, or where one has no
        device of its own.
    OSError
        When no scheduler answers within ten seconds, or it has no worker.
    """
    check_cluster(text)
    kind, _, where = text.partition(":")
    if kind == "serial":
        yield Workers(None, count_cores(), 1)
    elif kind == "processes":
        threads = max(1, count_cores() // int(where))
        with ProcessPool(share_machine(int(where), threads, devices)) as executor:
            logger.info("worker processes: %s; threads of each: %d", where, threads)
            yield Workers(executor, threads, int(where))
    else:
        with _connect(where, devices) as workers:
            yield workers


def compute_shards(
    executor: Executor | None, compute: Callable[[Shard, Sent], Answer], shards: Sequence[Shard]
) -> Iterator[tuple[Shard, Answer]]:
    """Yield each shard with what ``compute`` made of it, as soon as it is done.

    At most two shards for each worker are on their way, so memory does not grow with their number.

    Parameters
    ----------
    executor
        None computes here, in order. Its workers need the same versions of this package and its
        libraries.
    compute
        A function of a module, or a ``partial`` of one: workers import it. It takes a shard and the
        files that were sent along. Where it raises ``Lacking``, it is called again with those
        files, here or in another worker.

    Raises
    ------
    ValueError
        A worker has other versions, or other files; the message names both.
    OSError
        A worker's disk is full; the message names its folder.
    RuntimeError
        A worker was killed again and again, or the scheduler is gone.
    """
    if executor is None:
        yield from ((shard, compute(shard, None)) for shard in shards)
        return
    software, left = describe_software(), iter(shards)
    waiting: dict[Future[Answer | Exception], tuple[Shard, dict[str, bytes]]] = {}

    def submit(shard: Shard, sent: dict[str, bytes]) -> None:
        future = executor.submit(compute_alike, software, compute, shard, sent)
        waiting[future] = shard, sent

    try:
        while True:
            room = max(0, 2 * _count_workers(executor) - len(waiting))
            for shard in islice(left, room):
                submit(shard, {})
            if not waiting:
                return
            for future in wait(waiting, SECONDS, FIRST_COMPLETED).done:
                (shard, sent), answer = waiting.pop(future), future.result()
                if isinstance(answer, Lacking):
                    submit(shard, sent | answer.read())
                else:
                    yield shard, _take(answer)
    except CancelledError as error:
        raise RuntimeError(
            "the connection to the scheduler is lost: start it again, then this; what is done is "
            "kept"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def _take(answer: Answer | Exception) -> Answer:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _count_workers(executor: Executor) -> int:
    """How many there are, or will be: those of Dask come and go."""
    count = getattr(executor, "_max_workers", 1)
    if client := getattr(executor, "_client", None):
        with suppress(OSError):  # the scheduler is lost, as the futures will say
            count = len(client.nthreads())
    return max(1, count)


def compute_alike(
    software: Record,
    compute: Callable[[Shard, Sent], Answer],
    shard: Shard,
    sent: Mapping[str, bytes],
) -> Answer | Exception:
    """In a worker: compute a shard where the software is the same; else answer with a ValueError.

    What this package says in a sentence is returned: of an error that is raised, Dask prints the
    traceback where the worker was started.
    """
    try:
        _require_loaded_code(platform.node())
        _require_alike(describe_software(), software, platform.node())
        return compute(shard, sent)
    except (Lacking, OSError, ValueError) as error:
        error.add_note(format_exc())
        return error


def _require_loaded_code(worker: str) -> None:
    try:
        require_loaded_code()
    except RuntimeError as error:
        raise ValueError(f"on the worker {worker}, {error}") from error


def _require_alike(theirs: Record, mine: Record, worker: str) -> None:
    for name in sorted(theirs.keys() | mine.keys()):
        if theirs.get(name) != mine.get(name):
            raise ValueError(
                f"{name} is {theirs.get(name)} on the worker {worker}, and {mine.get(name)} here: "
                "install the same on both"
            )


@cache
def describe_software() -> Record:
    """What decides numbers: versions of this package, of its code and of libraries; processor."""
    code = {str(path.relative_to(PACKAGE)): hash_file(path) for path in PACKAGE.rglob("*.py")}
    own = {"gma_lib": gma_lib.__version__, "the code of gma_lib": hash_value(code)[:12]}
    return own | find_versions() | {"the processor": identify_processor()}


# --- Dask -----------------------------------------------------------------------------------------


@contextmanager
def _connect(where: str, devices: Devices | None) -> Iterator[Workers]:
    """Connect to a scheduler, or start one with workers on this machine, which ends with this."""
    from distributed import Client

    # A lost scheduler is this module's to tell, in a sentence
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Sending large graph")  # a worker's files
    with ExitStack() as stack:
        address, here = where, 1
        if where == "local":
            cluster = stack.enter_context(_start_local(devices))
            address, here = cluster.scheduler_address, len(cluster.workers)
        try:
            with ThreadPoolExecutor(1) as thread:  # a notebook's own has a running loop
                thread.submit(asyncio.run, _greet(address)).result()
            client = stack.enter_context(Client(address, timeout=SECONDS, set_as_default=False))
            client.wait_for_workers(1, timeout=SECONDS)
        except (OSError, TimeoutError) as error:
            raise OSError(
                f"no Dask scheduler with a worker answers at {address} within {SECONDS} s: start "
                "both (docs/clusters.md), or correct the address"
            ) from error
        _require_same_software(client)
        threads = sorted(set(client.nthreads().values()))
        if len(threads) > 1:
            raise ValueError(
                f"the workers at {address} have {threads} threads: give all the same number (dask "
                "worker --nthreads), so that their flow is the same"
            )
        if where == "local":
            client.register_plugin(_keep_places(share_machine(here, threads[0], devices)))
        elif devices:
            _require_own_devices(client, devices)
        client.subscribe_topic("all", _report_lost)
        stack.callback(client.unsubscribe_topic, "all")
        logger.info("Dask workers: %d; threads of each: %d", len(client.nthreads()), threads[0])
        logger.info("Dask's dashboard, where bokeh is installed: %s", client.dashboard_link)
        yield Workers(client.get_executor(pure=False), threads[0], here)


def _start_local(devices: Devices | None) -> "LocalCluster":
    """As many workers as Dask finds best for the cores, or one for each device."""
    import dask
    from distributed import LocalCluster

    count = len(devices.find()) if devices else None
    try:
        return LocalCluster(
            n_workers=count,
            threads_per_worker=max(1, count_cores() // count) if count else None,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,  # tracebacks of what is raised here all the same
        )
    except (OSError, RuntimeError) as error:
        folder = dask.config.get("temporary-directory") or gettempdir()
        raise OSError(
            f"Dask cannot start workers ({error}); their folder is {folder}: if it is full, make "
            "room there, or name another with TMPDIR"
        ) from error


def _keep_places(places: list[Place]) -> "WorkerPlugin":
    """Dask hands this to every worker, also one that replaces another, before its first shard."""
    from distributed import WorkerPlugin

    class KeepPlaces(WorkerPlugin):
        def setup(self, worker: "Worker") -> None:
            places[worker.name].take()

    return KeepPlaces()


def _require_own_devices(client: "Client", devices: Devices) -> None:
    """Raise ValueError where a worker sees no device, or the first of another."""
    users: dict[tuple[str, str], str] = {}
    for worker, (node, device) in client.run(_find_first, devices).items():
        other = users.setdefault((node, device), worker)
        if other != worker:
            raise ValueError(
                f"the workers {other} and {worker} compute on the same device, {device} of {node}: "
                f"start each with another {devices.variable} (docs/clusters.md)"
            )


def _find_first(devices: Devices) -> tuple[str, str]:
    return platform.node(), devices.find()[0]


async def _greet(address: str) -> None:
    """Raise OSError unless a scheduler answers; Client waits without end for a silent server."""
    from distributed import Security
    from distributed.comm.core import connect

    options = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=SECONDS, **options), SECONDS)
    comm.abort()


def _require_same_software(client: "Client") -> None:
    """As ``compute_alike``, before any work: a worker that cannot import this package would end,
    and its shard wait for others.
    """
    names = ("python", "gma_lib", *VERSIONED)
    found = cast(Record, client.get_versions(packages=names[1:]))
    mine = {name: found["client"]["packages"].get(name) for name in names}
    for worker, about in found["workers"].items():
        _require_alike({name: about["packages"].get(name) for name in names}, mine, worker)


def _report_lost(event: tuple[float, Record]) -> None:
    """Say that a worker is gone; Dask gives its shards to another."""
    _, what = event
    if what.get("action") == "remove-worker" and what["processing-tasks"]:
        logger.warning("the worker %s was lost; its shard goes to another", what["worker"])
