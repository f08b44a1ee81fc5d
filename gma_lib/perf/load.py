"""What else the machine computed before and during a measurement."""

import os
import time
from dataclasses import dataclass

from gma_lib.perf.summary import UNSTABLE_SPREAD
from gma_lib.runs.records import Record

SECONDS_BEFORE = 1.0


@dataclass(frozen=True)
class _Moment:
    """Seconds: of a clock, of the work so far of the cores that this process may use, and of this
    process and its children's; and how many cores those are (a quota may allow less).
    """

    clock: float
    machine: float
    own: float
    cores: int


class Load:
    """The load of the cores that this process may use, from ``SECONDS_BEFORE`` before a measurement
    on.

    The load average looks back a minute and counts the measurement itself. Whether the machine was
    busy is therefore decided by the cores' time that other processes took: more than 5 %, the
    spread above which rounds are called unstable, may slow the network by as much.
    """

    def __init__(self) -> None:
        self._average = os.getloadavg()[0]
        before = _look()
        time.sleep(SECONDS_BEFORE)
        self._start = _look()
        self._others_before = _compute_share(before, self._start)

    def add_to(self, perf: Record) -> Record:
        """Return a measurement that has ended just now with its ``load``: load averages over a
        minute before and after and the ``cores`` of the machine, the share of the time of the cores
        that this process may use which other processes took before and during, and whether that is
        ``busy``, which is a caution, too.
        """
        shares = self._others_before, _compute_share(self._start, _look())
        busy = max(shares) > UNSTABLE_SPREAD
        cautions = [perf["caution"]] if perf.get("caution") else []
        if busy:
            cautions.append(
                "the machine was busy: other processes took {:.0%} of the cores' time before and "
                "{:.0%} while measuring; measure again".format(*shares)
            )
        return perf | {
            "caution": "; ".join(cautions),
            "load": {
                "average_before": self._average,
                "average_after": os.getloadavg()[0],
                "cores": os.cpu_count(),
                "others_before": shares[0],
                "others_during": shares[1],
                "busy": busy,
            },
        }


def _look() -> _Moment:
    import psutil

    cores = [one._asdict() for one in psutil.cpu_times(percpu=True)]
    if hasattr(os, "sched_getaffinity"):
        numbers = os.sched_getaffinity(0)
        if max(numbers) < len(cores):  # else it is a container that lists its own cores only
            cores = [cores[number] for number in numbers]
    # on Linux, time of guests is part of the user's
    waiting = ("idle", "iowait", "guest", "guest_nice")
    worked = sum(seconds for one in cores for name, seconds in one.items() if name not in waiting)
    return _Moment(time.monotonic(), worked, sum(os.times()[:4]), len(cores))


def _compute_share(before: _Moment, now: _Moment) -> float:
    """Share of our cores' time that other processes took between two moments, 0 to 1."""
    others = (now.machine - before.machine) - (now.own - before.own)
    return max(others, 0.0) / ((now.clock - before.clock) * now.cores)
