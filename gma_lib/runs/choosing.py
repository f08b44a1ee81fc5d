"""A few of many, for what cannot show or compute all."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def choose_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most ``most`` items in their order, the first, the last and evenly between."""
    places = np.linspace(0, len(items) - 1, min(most, len(items)))
    return [items[place] for place in sorted({round(place) for place in places})]
