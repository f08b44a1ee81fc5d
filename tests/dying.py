"""What tests have workers do: importable there, as tests/ is on the path."""

import os
import signal
from pathlib import Path


def die_the_first_time(marker: Path, function, *arguments):
    """Do the work, but the first time die before the answer."""
    answer = function(*arguments)
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return answer
    return die()


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
