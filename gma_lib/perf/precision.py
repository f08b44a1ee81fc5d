"""Measure what a reduced precision costs in accuracy, on held-out scenes.

The network is measured as one graph. For clips it is split into parts, which int8 calibrates
separately, so their results can differ. The calibration set has other scenes than these, but shares
all outlines and some textures with the family ``layers``, and none with ``planes``.

    gma precision --out benchmarks/results/precision.json

Speed means nothing without it. A precision is recommended only if it costs at most 0.1 percentage
points of 1px and 1 % of the endpoint error on every held-out family.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from gma_lib import backends, convert, export, runs
from gma_lib.flow.metrics import pool_scores, sum_errors
from gma_lib.runs.leftovers import temporary_folder
from gma_lib.training.config import load_config
from gma_lib.training.pairs import VALIDATION, render_held_out
from gma_lib.training.scenes import TrainingPair

LARGEST_PX1_LOSS = 0.1  # percentage points
LARGEST_EPE_LOSS = 0.01  # share
# At the size whose speed is measured, and with motion as large as that size shows.
SCENES = dataclasses.replace(VALIDATION, height=440, width=1024, max_displacement=120.0)


def measure_cost(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    pairs: Iterable[TrainingPair],
    references: Iterable[np.ndarray],
) -> dict[str, float]:
    """Measure errors of a reduced precision and of float32, over all pixels of all pairs.

    Parameters
    ----------
    predict
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
    scores, distances = [], []
    for pair, reference in zip(pairs, references, strict=True):
        reduced, truth = predict(*_batch_frames(pair))[0], pair.flow.numpy()
        flows = {"": reduced, "_float32": reference[0]}
        scores.append({name: sum_errors(flow, truth)["all"] for name, flow in flows.items()})
        distances.append(np.linalg.norm(reduced - reference[0], axis=0))
    found = {
        f"{what}{name}": sums.to_metrics()[what]
        for name, sums in pool_scores(scores).items()
        for what in ("epe", "px1")
    }
    return found | {
        "pairs": len(distances),
        "px1_loss": 100 * (found["px1_float32"] - found["px1"]),
        "epe_loss": found["epe"] / found["epe_float32"] - 1,
        "distance": float(np.mean(distances)),
        "distance_p99": float(np.mean([np.percentile(distance, 99) for distance in distances])),
    }


def _batch_frames(pair: TrainingPair) -> tuple[np.ndarray, np.ndarray]:
    return pair.image1.numpy()[None], pair.image2.numpy()[None]


def is_recommended(families: dict[str, dict[str, float]]) -> bool:
    """Return whether a precision costs little enough on every family."""
    return all(
        one["px1_loss"] <= LARGEST_PX1_LOSS and one["epe_loss"] <= LARGEST_EPE_LOSS
        for one in families.values()
    )


def measure_precisions(weights: str, backend: str, precisions: Iterable[str]) -> runs.Record:
    """Measure the cost of each precision on both held-out families."""
    spec = convert.ModelSpec(weights, SCENES.height, SCENES.width, backend=backend)
    model, checkpoint = spec.load_network()
    config = load_config(runs.RESOURCES / "params" / "train.yaml")
    families = render_held_out(config, SCENES)
    exact = {
        family: [
            export.compute_reference(model, *_batch_frames(pair))
            for pair in runs.track(pairs, label=f"float32 on {family}", unit="pair")
        ]
        for family, pairs in families.items()
    }
    found = {}
    for precision in precisions:
        with temporary_folder() as folder:
            convert.prepare_model(dataclasses.replace(spec, precision=precision), folder)
            with backends.load_backend(backend, folder, precision=precision) as reduced:
                costs = {
                    family: measure_cost(
                        reduced.predict,
                        runs.track(pairs, label=f"{precision} on {family}", unit="pair"),
                        exact[family],
                    )
                    for family, pairs in families.items()
                }
        found[precision] = {"families": costs, "recommended": is_recommended(costs)}
    return {
        "backend": backend,
        "weights": checkpoint.name,
        "weights_sha256": checkpoint.sha256,
        "num_updates": spec.num_updates,
        "height": SCENES.height,
        "width": SCENES.width,
        "precisions": found,
    }
