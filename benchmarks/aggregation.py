"""What GMA's aggregation is worth with the bundled weights: EPE with it, and without (gamma = 0).

    python benchmarks/aggregation.py [FOLDER] [--out FILE]

Scores both at 6 updates on every pair of a data set in Sintel's layout, by default the demo set,
which ``make 01_data`` renders.
"""

import copy
from functools import partial
from pathlib import Path

import click
import torch

from gma_lib import runs
from gma_lib.data import PASSES, find_pairs
from gma_lib.flow import pool_scores
from gma_lib.network import load_model
from gma_lib.training.model_card import NAME, predict_updates, score_pairs

UPDATES = 6
DEMO = Path(__file__).resolve().parents[1] / "outputs" / "demo" / "data" / "frames"


@click.command()
@click.argument("frames", type=click.Path(path_type=Path), default=DEMO)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(frames: Path, out: Path | None) -> None:
    """Score both on the pairs of FRAMES, and print EPE by pass and group of pixels."""
    model, weights = load_model(NAME)
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.update_block.aggregator.gamma.zero_()
    found: runs.Record = {}
    print("| pass | pixels | EPE with aggregation, px | without, px |\n|---|---|---|---|")
    for name in PASSES:
        pairs = [pair.load() for pair in find_pairs(frames, pass_name=name)]
        scores = {
            label: pool_scores(
                score_pairs(partial(predict_updates, one, (UPDATES,)), pairs)[str(UPDATES)]
            )
            for label, one in (("with", model), ("without", without))
        }
        found[name] = {
            group: {label: one[group].to_metrics()["epe"] for label, one in scores.items()}
            for group in ("all", "occluded", "non_occluded")
        }
        for group, epe in found[name].items():
            print(f"| {name} | {group} | {epe['with']:.2f} | {epe['without']:.2f} |", flush=True)
    if out:
        about = {"checkpoint_sha256": weights.sha256, "num_updates": UPDATES}
        runs.write_json(out, about | {"pairs": len(pairs), "epe": found})


if __name__ == "__main__":
    main()
