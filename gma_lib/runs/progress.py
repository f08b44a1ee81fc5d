"""Progress with rate and time left: live bars where somebody watches, plain lines where a log is
written.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 5.0


def track(
    items: Iterable[Item], *, label: str, unit: str = "item", total: int | None = None
) -> Iterator[Item]:
    """Pass items through and show how far it is.

    In JupyterLab and in a terminal this is a tqdm bar. Under papermill, in a pipe or in a log it is
    one line every few seconds: a widget would freeze at 0 % in the saved notebook.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _somebody_watches():
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=label, unit=unit, total=total)
    else:
        yield from _plain_lines(items, label=label, unit=unit, total=total)


def elapsed(moments: Iterable[float], *, label: str) -> Iterator[float]:
    """Pass moments, in seconds since a start, through, and print one every few seconds: for a tool
    that says nothing while it works.
    """
    last = 0.0
    for moment in moments:
        if moment - last >= SECONDS_BETWEEN_LINES:
            print(f"{label}: {moment:.0f} s so far", flush=True)
            last = moment
        yield moment


def _somebody_watches() -> bool:
    if os.environ.get("GMA_HEADLESS"):
        return False
    if "ipykernel" in sys.modules:
        return (
            "JPY_SESSION_NAME" in os.environ
        )  # set by a Jupyter server for its kernels, not by papermill
    return sys.stderr.isatty()


def _plain_lines(
    items: Iterable[Item], *, label: str, unit: str, total: int | None
) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done != total:
            print(_line(label, done, total, unit, now - start), flush=True)
            last = now
    if done:
        print(_line(label, done, total, unit, time.monotonic() - start), flush=True)


def _line(label: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    count = f"{done}/{total}" if total else f"{done}"
    units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    speed = f"{rate:.2f} {units}/s" if rate >= 0.1 else f"{1 / rate:.1f} s/{unit}"
    if total and done < total:
        return f"{label}: {count} {units}, {speed}, {(total - done) / rate:.0f} s left"
    return f"{label}: {count} {units} in {seconds:.1f} s, {speed}"
