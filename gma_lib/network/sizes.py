"""What the network can be asked for: sizes and names. Importing this loads no PyTorch."""

STRIDE = 8  # frame pixels per feature cell
# The coarsest pyramid level is 1/64 of the frame; below two cells a side, sampling it is no longer
# defined.
SMALLEST_SIDE = 128
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


def check_sides(height: int, width: int) -> None:
    """Raise ValueError unless both sides are multiples of 8 and at least 128 pixels."""
    if height % STRIDE or width % STRIDE or min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"the network takes frames whose sides are multiples of {STRIDE} and at least "
            f"{SMALLEST_SIDE} px, not {width}x{height}; gma_lib.data.padding.Padding makes them so"
        )
