"""What the bundled weights lose when each output channel of a convolution has 8 bits per weight.

    python benchmarks/weights_8bit.py [SINTEL] [--out FILE]

Scores both at 12 updates on the test scenes of the held-out families and, where its folder is
given, on the pairs of Sintel that have ground truth.
"""

import tempfile
from functools import partial
from pathlib import Path

import click
import torch

from gma_lib import runs
from gma_lib.data import PASSES, find_pairs
from gma_lib.flow import pool_scores
from gma_lib.network import WEIGHTS_FOLDER, load_checkpoint, load_model, save_checkpoint
from gma_lib.training.config import load_config
from gma_lib.training.model_card import NAME, TEST_PAIRS, predict_updates, score_pairs
from gma_lib.training.pairs import render_held_out

UPDATES = 12


def round_channels(weight: torch.Tensor) -> torch.Tensor:
    """Round a convolution's weights (out, in, H, W) to 255 steps, symmetric around zero, whose size
    each output channel's largest weight decides.
    """
    step = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) / 127
    return (weight / step).round() * step


@click.command()
@click.argument("sintel", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(sintel: Path | None, out: Path | None) -> None:
    """Score both on held-out scenes, and on the pairs of SINTEL, and print EPE and 1px."""
    shipped = WEIGHTS_FOLDER / f"{NAME}.safetensors"
    config = load_config(runs.RESOURCES / "params" / "train.yaml")
    first = config.validation_pairs
    families = render_held_out(config, numbers=range(first, first + TEST_PAIRS))
    scored = {name: [pair.to_arrays() for pair in pairs] for name, pairs in families.items()}
    for name in PASSES if sintel else ():
        pairs = find_pairs(sintel, pass_name=name)
        scored[f"Sintel {name}"] = [pair.load() for pair in pairs if pair.flow is not None]
    with tempfile.TemporaryDirectory() as folder:
        state = load_checkpoint(shipped).state
        state |= {name: round_channels(one) for name, one in state.items() if one.ndim == 4}
        file = save_checkpoint(Path(folder) / "rounded.safetensors", state)
        (model, weights), (rounded, _) = map(load_model, (shipped, file))
    found: runs.Record = {}
    print("| frames | pairs | EPE, px | with 8 bits | 1px, % | with 8 bits |\n" + "|---" * 6 + "|")
    for name, pairs in scored.items():
        found[name] = {"pairs": len(pairs)}
        for label, one in (("shipped", model), ("rounded", rounded)):
            scores = score_pairs(partial(predict_updates, one, (UPDATES,)), pairs)
            metrics = pool_scores(scores[str(UPDATES)])["all"].to_metrics()
            found[name][label] = {metric: metrics[metric] for metric in ("epe", "px1")}
        before, after = found[name]["shipped"], found[name]["rounded"]
        cells = [f"{one['epe']:.4f}" for one in (before, after)]
        cells += [f"{100 * one['px1']:.2f}" for one in (before, after)]
        print(f"| {name} | {len(pairs)} | " + " | ".join(cells) + " |", flush=True)
    if out:
        about = {"checkpoint_sha256": weights.sha256, "num_updates": UPDATES}
        runs.write_json(out, about | {"frames": found})


if __name__ == "__main__":
    main()
