"""What GMA's aggregation is worth with the bundled weights: EPE with it, and without (gamma = 0).

    python benchmarks/aggregation.py [FOLDER]

Scores both at 6 updates on every pair of a data set in Sintel's layout, by default the demo set,
which ``make 01_data`` renders.
"""

import copy
import sys
from functools import partial
from pathlib import Path

import torch

from gma_lib.data import PASSES, find_pairs
from gma_lib.flow import pool_scores
from gma_lib.network import load_model
from gma_lib.training.model_card import NAME, predict_updates, score_pairs

UPDATES = 6
DEMO = Path(__file__).resolve().parents[1] / "outputs" / "demo" / "data" / "frames"


def main(frames: Path) -> None:
    model = load_model(NAME)[0]
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.update_block.aggregator.gamma.zero_()
    print("| pass | pixels | EPE with aggregation, px | without, px |\n|---|---|---|---|")
    for name in PASSES:
        pairs = [pair.load() for pair in find_pairs(frames, pass_name=name)]
        with_it, without_it = (
            pool_scores(score_pairs(partial(predict_updates, one, (UPDATES,)), pairs)[str(UPDATES)])
            for one in (model, without)
        )
        for group in ("all", "occluded", "non_occluded"):
            epes = (f"{found[group].to_metrics()['epe']:.2f}" for found in (with_it, without_it))
            print(f"| {name} | {group} | " + " | ".join(epes) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else DEMO)
