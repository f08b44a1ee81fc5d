"""Progress and messages: bars in interactive sessions, plain lines in logs."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from gma_lib.runs.files import PACKAGE

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_COUNTS = 1.0
MOST_LINES = 60  # that one loop logs, about: fewer a minute in a long one

logger = logging.getLogger(__name__)


class Track(Protocol):
    """Pass items through and show progress, or nothing: ``track`` or ``pass_silently``."""

    def __call__(
        self, items: Iterable[Item], *, label: str, unit: str = "item", total: int | None = None
    ) -> Iterator[Item]: ...


def track(
    items: Iterable[Item],
    *,
    label: str,
    unit: str = "item",
    total: int | None = None,
    initial: int = 0,
) -> Iterator[Item]:
    """Pass items through and show progress, with rate and time left.

    ``initial`` of the ``total`` were there before: they count as done, not for the rate.

    In JupyterLab and in a terminal this is a tqdm bar. Under papermill, in a pipe or in a log it is
    one line every few seconds, about 60 in all: a widget would freeze at 0 % in the saved notebook.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _is_interactive():
        from tqdm.auto import tqdm

        quiet = not logger.isEnabledFor(logging.WARNING)
        yield from tqdm(items, desc=label, unit=unit, total=total, initial=initial, disable=quiet)
    else:
        yield from _log_lines(items, label=label, unit=unit, total=total, initial=initial)


def pass_silently(
    items: Iterable[Item], *, label: str, unit: str = "item", total: int | None = None
) -> Iterator[Item]:
    """Pass items through and show nothing: the default of every ``track`` parameter."""
    return iter(items)


def log_elapsed(moments: Iterable[float], *, label: str) -> Iterator[float]:
    """Pass moments (seconds since a start) through and log one every few seconds, for a tool that
    reports no progress.
    """
    last = 0.0
    for moment in moments:
        if moment - last >= SECONDS_BETWEEN_LINES:
            logger.info("%s: %.0f s so far", label, moment)
            last = moment
        yield moment


_counting = threading.Event()  # set while a count of seconds is the terminal's last line


@contextmanager
def show_waiting(what: str) -> Iterator[None]:
    """Count the seconds in a terminal while something without progress of its own runs."""
    ended = threading.Event()

    def count() -> None:
        started = time.monotonic()
        while not ended.wait(SECONDS_BETWEEN_COUNTS):
            text = f"{what}: {time.monotonic() - started:.0f} s"[: get_terminal_size().columns - 1]
            _counting.set()
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    counter = threading.Thread(target=count, daemon=True)
    if sys.stderr and sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING):
        counter.start()
    try:
        yield
    finally:
        ended.set()
        if counter.is_alive():
            counter.join()
            clear_count()


def clear_count() -> None:
    """Remove a count of seconds from the terminal, so that a message can have its line."""
    if _counting.is_set():
        _counting.clear()
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


class _PlainLines(logging.Handler):
    """Prints messages to what is ``sys.stdout``, or ``sys.stderr``, at that moment: tests,
    notebooks and commands replace it.
    """

    on_stderr = False

    def emit(self, record: logging.LogRecord) -> None:
        clear_count()
        stream = sys.stderr if self.on_stderr else sys.stdout
        if stream is not None:  # a shell's >&- closes it
            stream.write(self.format(record) + "\n")
            stream.flush()


def show_messages(*, on_stderr: bool = False) -> None:
    """Print what the library logs to stdout, or warnings alone to stderr where stdout is for
    results, a plain line each; for commands and notebooks. In JupyterLab, also show what the
    library refuses as a sentence, without a traceback.
    """
    for name in ("gma_lib", "__main__"):  # a module that runs as a command is __main__
        shown = logging.getLogger(name)
        shown.setLevel(logging.WARNING if on_stderr else logging.INFO)
        for handler in [one for one in shown.handlers if isinstance(one, _PlainLines)]:
            shown.removeHandler(handler)
        shown.addHandler(handler := _PlainLines())
        handler.on_stderr = on_stderr
    if is_live():
        _shorten_tracebacks()


def is_live() -> bool:
    """Tell whether this is the kernel of a Jupyter server, whose front end may answer."""
    # set by a server for its kernels, not by papermill
    return "JPY_SESSION_NAME" in os.environ and not os.environ.get("GMA_HEADLESS")


def _shorten_tracebacks() -> None:
    """Show an error that this package itself raises as its sentence; others have a traceback."""
    from IPython import get_ipython

    def show(
        shell: "InteractiveShell",
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType,
        tb_offset: int | None = None,
    ) -> None:
        *_, (frame, _) = walk_tb(trace)
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            # IPython asks an exception for its own traceback
            vars(error)["_render_traceback_"] = lambda: [f"{kind.__name__}: {error}"]
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

    if shell := get_ipython():
        shell.set_custom_exc((ValueError, OSError, RuntimeError, MemoryError), show)


def _is_interactive() -> bool:
    if "ipykernel" in sys.modules:
        return is_live()
    return sys.stderr.isatty() and not os.environ.get("GMA_HEADLESS")


def _log_lines(
    items: Iterable[Item], *, label: str, unit: str, total: int | None, initial: int
) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        wanted = total - initial if total else None
        expected = (now - start) * (wanted or done) / done  # seconds in all
        if now - last >= max(SECONDS_BETWEEN_LINES, expected / MOST_LINES) and done != wanted:
            logger.info(_describe_rate(label, done, initial, total, unit, now - start))
            last = now
    if done:
        logger.info(_describe_rate(label, done, initial, total, unit, time.monotonic() - start))


def _describe_rate(
    label: str, done: int, initial: int, total: int | None, unit: str, seconds: float
) -> str:
    rate = done / max(seconds, 1e-9)
    done += initial
    count = f"{done}/{total}" if total else f"{done}"
    units = unit if unit.isupper() else f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    speed = f"{rate:.2f} {units}/s" if rate >= 0.1 else f"{1 / rate:.1f} s/{unit}"
    if total and done < total:
        return f"{label}: {count} {units}, {speed}, {(total - done) / rate:.0f} s left"
    return f"{label}: {count} {units} in {seconds:.1f} s, {speed}"
