"""What a reduced precision costs in accuracy, on scenes that neither training nor calibration has
seen.

    python -m gma_lib.perf.precision --out benchmarks/results/precision.json

Speed means nothing without it. A precision is recommended only if it costs at most 0.1 percentage
points of 1px and 1 % of the endpoint error on every held-out family.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gma_lib.backends import find_backend, load_backend
from gma_lib.convert.conversion import convert
from gma_lib.export.deviation import compute_reference
from gma_lib.export.trace import export_whole
from gma_lib.flow.metrics import ErrorSums, sum_errors
from gma_lib.network.checkpoints import load_checkpoint, load_model
from gma_lib.network.deploy import to_deploy_form
from gma_lib.network.model import GMAConfig
from gma_lib.runs.files import PROJECT
from gma_lib.runs.progress import show_messages, track
from gma_lib.runs.records import write_json
from gma_lib.training.config import load_config
from gma_lib.training.pairs import VALIDATION, PairSource, render_held_out
from gma_lib.training.scenes import TrainingPair

RESULTS = PROJECT / "benchmarks" / "results" / "precision.json"
LARGEST_PX1_LOSS = 0.1  # percentage points
LARGEST_EPE_LOSS = 0.01  # share
# At the size whose speed is measured, and with motion as large as that size shows.
SCENES = dataclasses.replace(VALIDATION, height=440, width=1024, max_displacement=120.0)


def cost(
    flow_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    pairs: Iterable[TrainingPair],
    references: Iterable[np.ndarray],
) -> dict[str, float]:
    """Errors of a reduced precision beside those of float32, over all pixels of all pairs.

    Parameters
    ----------
    flow_of
        Two frames (1, 3, H, W) -> flow (1, 2, H, W), in the reduced precision.
    references
        Float32 flow (1, 2, H, W) of each pair.

    Returns
    -------
    dict
        ``epe``, ``px1`` and ``epe_float32``, ``px1_float32``; ``px1_loss`` in percentage points,
        ``epe_loss`` as a share; ``distance`` and ``distance_p99`` between the two flows in pixels
        (the 99th percentile is the mean of the pairs').
    """
    sums = {"": ErrorSums(), "_float32": ErrorSums()}
    distances = []
    for pair, reference in zip(pairs, references, strict=True):
        flows = {"": flow_of(*_frames(pair))[0], "_float32": reference[0]}
        for name, flow in flows.items():
            sums[name] += sum_errors(flow, pair.flow.numpy())["all"]
        distances.append(np.linalg.norm(flows[""] - flows["_float32"], axis=0))
    found = {
        f"{what}{name}": total.to_metrics()[what]
        for name, total in sums.items()
        for what in ("epe", "px1")
    }
    return found | {
        "pairs": len(distances),
        "px1_loss": 100 * (found["px1_float32"] - found["px1"]),
        "epe_loss": found["epe"] / found["epe_float32"] - 1,
        "distance": float(np.mean(distances)),
        "distance_p99": float(np.mean([np.percentile(distance, 99) for distance in distances])),
    }


def _frames(pair: TrainingPair) -> tuple[np.ndarray, np.ndarray]:
    return pair.image1.numpy()[None], pair.image2.numpy()[None]


def is_recommended(families: dict[str, dict[str, float]]) -> bool:
    """Whether a precision costs little enough on every family."""
    return all(
        one["px1_loss"] <= LARGEST_PX1_LOSS and one["epe_loss"] <= LARGEST_EPE_LOSS
        for one in families.values()
    )


def measure(
    weights: str, backend: str, precisions: Iterable[str], *, num_updates: int = 6
) -> dict[str, Any]:
    """Cost of each precision on both held-out families."""
    model, checkpoint = load_model(
        weights, GMAConfig(num_updates=num_updates, lookup=find_backend(backend).lookup)
    )
    config = load_config(PROJECT / "params" / "train.yaml")
    families = render_held_out(config, PairSource(config), SCENES)
    exact = {
        family: [
            compute_reference(model, *_frames(pair))
            for pair in track(pairs, label=f"float32 on {family}", unit="pair")
        ]
        for family, pairs in families.items()
    }
    found = {}
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            size = {"height": SCENES.height, "width": SCENES.width, "batch_size": 1}
            export_whole(to_deploy_form(model), place / "gma.onnx", **size, checkpoint=checkpoint)
            about = {
                "num_updates": num_updates,
                "attention": model.config.attention,
                "precision": precision,
            }
            convert(backend, place, checkpoint=weights, **about)
            with load_backend(backend, place, precision=precision) as network:
                costs = {
                    family: cost(
                        network.predict,
                        track(pairs, label=f"{precision} on {family}", unit="pair"),
                        exact[family],
                    )
                    for family, pairs in families.items()
                }
        found[precision] = {"families": costs, "recommended": is_recommended(costs)}
    return {
        "backend": backend,
        "weights": checkpoint.name,
        "weights_sha256": checkpoint.sha256,
        "num_updates": num_updates,
        "height": SCENES.height,
        "width": SCENES.width,
        "precisions": found,
    }


def advice(results: Path = RESULTS) -> str:
    """A sentence for each reduced precision that was measured: whether to use it, with the weights
    that come with the package.
    """
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
    except OSError:
        return "not measured: make bench"
    if found["weights_sha256"] != load_checkpoint(found["weights"]).sha256:
        return f"measured with other weights than {found['weights']} now has: make bench"
    return ". ".join(
        _advice(precision, one, found["weights"]) for precision, one in found["precisions"].items()
    )


def _advice(precision: str, found: dict[str, Any], weights: str) -> str:
    costs = "; ".join(
        f"{name}: {one['px1_loss']:+.2f} points of 1px, {round(one['epe_loss'], 3) + 0.0:+.1%} EPE"
        for name, one in found["families"].items()
    )
    return f"{precision} is {'recommended' if found['recommended'] else 'not recommended'} with {weights}: lost on held-out scenes, {costs}"


def main() -> None:
    show_messages()
    parser = argparse.ArgumentParser(description="What a reduced precision costs in accuracy.")
    parser.add_argument("--weights", default="gma-procedural")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    write_json(arguments.out, measure(arguments.weights, arguments.backend, arguments.precision))
    print(advice(arguments.out))


if __name__ == "__main__":
    main()
