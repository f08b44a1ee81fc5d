"""Compute a record per item, and keep those of a killed run for the next."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gma_lib.runs.files import shorten_path
from gma_lib.runs.progress import track
from gma_lib.runs.records import Record, read_json, write_json

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def map_resumably(
    compute: Callable[[Item], Record], items: Sequence[Item], label: str, kept: Path | None
) -> list[Record]:
    """Compute a record per item; the sealed file ``kept`` holds those of a killed run.

    Where it is not as it was written, all are computed again, and a warning says so. Its name has
    to tell what the records depend on.
    """
    done = _read_kept(kept) if kept and kept.is_file() else []
    for item in track(items[len(done) :], label=label, unit="pair"):
        done.append(compute(item))
        if kept:
            write_json(kept, {"done": done})
    return done


def _read_kept(kept: Path) -> list[Record]:
    try:
        done: list[Record] = read_json(kept, made_by="the same command")["done"]
    except ValueError:
        logger.warning(f"{shorten_path(kept)} was damaged or changed: computing its records again")
        return []
    return done
