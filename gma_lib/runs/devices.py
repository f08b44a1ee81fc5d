"""What one worker process of several on a machine computes on: its device, and its cores."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Devices:
    """Devices of which each worker process gets one.

    Attributes
    ----------
    variable
        Of the environment: it tells a runtime, when that starts, which of them a process sees.
    find
        Names those that this process sees, as the variable does; raises ValueError where there is
        none. Worker processes import it.
    """

    variable: str
    find: Callable[[], list[str]]

    def share(self, workers: int) -> list[str]:
        """One for each worker; ValueError where there are fewer."""
        found = self.find()
        if len(found) < workers:
            raise ValueError(
                f"{workers} worker processes need as many devices, and {len(found)} can be used "
                f"({self.variable}={','.join(found)}): start fewer, or correct the variable"
            )
        return found[:workers]


@dataclass(frozen=True)
class Place:
    """What a worker process computes on.

    Attributes
    ----------
    cores
        Empty where the system has no affinity.
    variables
        Of its environment.
    """

    cores: list[int]
    variables: dict[str, str] = field(default_factory=dict)

    def take(self) -> None:
        """Restrict this process, before it imports a runtime, and the threads that it starts."""
        os.environ.update(self.variables)
        if self.cores:
            os.sched_setaffinity(0, self.cores)


def share_machine(workers: int, threads: int, devices: Devices | None = None) -> list[Place]:
    """A place for each worker, with cores of its own as far as there are enough.

    Raises ValueError where there are fewer devices than workers.
    """
    named = [{devices.variable: name} for name in devices.share(workers)] if devices else []
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = [
        [cores[number % len(cores)] for number in range(first, first + threads)] if cores else []
        for first in range(0, workers * threads, threads)
    ]
    return [Place(*both) for both in zip(shares, named or [{}] * workers, strict=True)]
