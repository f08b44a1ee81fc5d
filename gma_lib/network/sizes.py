"""What the network can be asked for: sizes and names. Importing this loads no PyTorch."""

import numpy as np

STRIDE = 8  # frame pixels per feature cell
# The coarsest pyramid level is 1/64 of the frame; below two cells a side, sampling it is no longer
# defined.
SMALLEST_SIDE = 128
MOST_UPDATES = 1000  # each adds its operators to a graph; the authors submit with 32
LARGEST_BATCH = 4096
SEEDED = "seeded"  # weights that are noise, the same everywhere
ATTENTIONS = ("content", "position", "position_and_content")
# Form of the correlation lookup -> opsets in which all its operators exist; grid_sample's name for
# bilinear changed at 20.
OPSETS = {
    "matmul": range(13, 20),
    "rows": range(13, 20),
    "gather": range(12, 20),
    "grid_sample": range(16, 20),
}
DEFAULT_OPSET = 13  # the newest that all versions of CANN read


def choose_opset(lookup: str, opset: int | None) -> int:
    """Return the opset asked for; None: 13, or the first that has this form of the lookup."""
    return max(DEFAULT_OPSET, OPSETS[lookup][0]) if opset is None else opset


def check_updates(num_updates: int) -> None:
    """Raise ValueError unless this is a whole number from 1 to ``MOST_UPDATES``."""
    is_whole = isinstance(num_updates, (int, np.integer)) and not isinstance(num_updates, bool)
    if not is_whole or not 1 <= num_updates <= MOST_UPDATES:
        raise ValueError(
            f"num_updates is a whole number from 1 to {MOST_UPDATES}, not {num_updates!r}"
        )


def check_sides(height: int, width: int) -> None:
    """Raise ValueError unless both sides are multiples of 8 and at least 128 pixels."""
    if height % STRIDE or width % STRIDE or min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"the network takes frames whose sides are multiples of {STRIDE} and at least "
            f"{SMALLEST_SIDE} px, not {width}x{height}; round up and pad the frames"
        )
