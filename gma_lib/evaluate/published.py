"""Numbers that others published, each with its source.

They hold for the authors' weights on all 1041 training pairs of a pass. Those weights were trained
on the same frames: the numbers say how faithfully a deployment computes, not how well the network
generalises.
"""

# Deployment guide for Ascend 310P3: 6 updates, float16 with InstanceNorm in float32, all pixels
# pooled, no mask.
GUIDE_PX1 = {"clean": 0.9265, "final": 0.8895}
GUIDE_UPDATES = 6
GUIDE_DATA = "MPI-Sintel"  # how the description of frames begins that 01_data found on disk
GUIDE_ACCURACY_BATCH_SIZE = 1  # accuracy is given for no other
GUIDE_SOURCE = "Ascend ModelZoo guide, 310P3, float16, 6 updates"
# Pairs per second by batch size, pure inference on the card, transfers not counted; 16 ran out of
# its memory.
GUIDE_PAIRS_PER_SECOND = {1: 0.766, 4: 0.772, 8: 0.678, 16: None}
# What these numbers were made with, as far as the guide's page and code say; the page itself says
# neither updates nor precision.
GUIDE_MADE_WITH = {
    "weights": "the authors', no hash given",
    "frames": "MPI-Sintel, training split, all 1041 pairs of each pass",
    "updates": str(GUIDE_UPDATES),
    "graph": "gather lookup, opset 12, every layer as published; rewritten by a vendor's tool, "
    "at first by another than the page now names",
    "precision": "float16, InstanceNorm in float32",
    "tools": "CANN 6.0.RC1, atc, ais_bench",
    "hardware": "Ascend310P3",
    "computed at once": "the whole batch",
    "throughput": "1000 x batch size / mean milliseconds on the card of 100 calls; zeros in, "
    "transfers not counted",
}

# Jiang et al. 2021, C+T+S+K+H weights on Sintel's training split (trained on it), as their table
# gives it.
PAPER_EPE = {"clean": 0.62, "final": 1.06}
PAPER_SOURCE = "paper, table 1 (weights trained on these frames)"

# ptlflow's re-evaluation of the same weights: 32 updates, per-pair means over valid pixels.
PTLFLOW = {
    "clean": {"epe": 0.631, "px1": 0.930, "px3": 0.972, "px5": 0.981},
    "final": {"epe": 1.056, "px1": 0.894, "px3": 0.951, "px5": 0.967},
}
PTLFLOW_SOURCE = "ptlflow re-evaluation, 32 updates, per-pair means, invalid masked"

# The guide rounds to two decimals of a percent; half precision and another toolchain explain a
# little more.
PX1_TOLERANCE = 0.005
# Two evaluations of these weights, the paper's and ptlflow's, differ by up to 0.011 px.
EPE_TOLERANCE = 0.02
