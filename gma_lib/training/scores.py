"""Scores of weights: on held-out scenes and on Sintel, with DIS for comparison."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from gma_lib.data.padding import Padding
from gma_lib.data.sintel import LoadedPair, find_pairs, find_root
from gma_lib.flow.classical import dis
from gma_lib.flow.metrics import ErrorSums, pool_scores, sum_errors
from gma_lib.network.checkpoints import load_model
from gma_lib.network.model import GMA
from gma_lib.runs.progress import track
from gma_lib.runs.records import Record
from gma_lib.training.config import TrainingConfig
from gma_lib.training.pairs import PairSource, render_held_out

# Test scenes of each family; they follow those of validation, so that no choice was made by them.
TEST_PAIRS = 32
SCORED_UPDATES = (1, 2, 4, 6, 12, 32)
SINTEL_UPDATES = (6, 12)
SCORED_GROUPS = ("all", "occluded", "non_occluded", "s0_10", "s10_40", "s40_plus")

Flows = dict[str, np.ndarray]  # flow (2, H, W) by method


def score_pairs(
    predict: Callable[[np.ndarray, np.ndarray], Flows], pairs: Iterable[LoadedPair]
) -> dict[str, dict[str, ErrorSums]]:
    """Add up errors over all pixels of all pairs: for each method, for every group of
    ``gma_lib.flow.metrics``.

    Parameters
    ----------
    predict
        Two frames (3, H, W) -> flow (2, H, W) by the name of the method.
    """
    scores: dict[str, list[dict[str, ErrorSums]]] = defaultdict(list)
    for pair in pairs:
        if pair.flow is None:
            raise ValueError("a pair without ground truth has no score")
        for method, flow in predict(pair.frame1, pair.frame2).items():
            scores[method].append(sum_errors(flow, pair.flow, occluded=pair.occluded))
    return {method: pool_scores(groups) for method, groups in scores.items()}


def predict_updates(
    model: GMA, updates: tuple[int, ...], frame1: np.ndarray, frame2: np.ndarray
) -> Flows:
    """Return the network's flow after each of the given numbers of updates, in float32."""
    padding, device = Padding.for_size(*frame1.shape[1:]), next(model.parameters()).device
    image1, image2 = (
        torch.from_numpy(padding.pad(frame)[None]).to(device) for frame in (frame1, frame2)
    )
    with torch.inference_mode():
        flows = model.predict_sequence(image1, image2, num_updates=max(updates))
    arrays = {str(count): flows[count - 1][0].float().cpu().numpy() for count in updates}
    return {name: np.ascontiguousarray(padding.unpad(flow)) for name, flow in arrays.items()}


def _score_with_dis(
    model: GMA, updates: tuple[int, ...], pairs: Iterable[LoadedPair]
) -> dict[str, Record]:
    """Return metrics of the network after each number of updates and of DIS, by group of pixels."""

    def predict(frame1: np.ndarray, frame2: np.ndarray) -> Flows:
        flows = predict_updates(model, updates, frame1, frame2)
        return flows | {"dis": dis(frame1, frame2)}

    return {
        method: {name: sums[name].to_metrics() for name in SCORED_GROUPS}
        for method, sums in score_pairs(predict, pairs).items()
    }


def score_held_out(
    config: TrainingConfig, weights: str | Path, *, device: str = "cpu"
) -> dict[str, dict[str, Record]]:
    """Score weights and DIS on the test scenes of both held-out families."""
    model, first = load_model(weights)[0].to(device), config.validation_pairs
    numbers = range(first, first + TEST_PAIRS)
    families = render_held_out(config, PairSource(config, device), numbers=numbers)
    return {
        family: _score_with_dis(
            model,
            SCORED_UPDATES,
            (pair.to_arrays() for pair in track(pairs, label=family, unit="pair")),
        )
        for family, pairs in families.items()
    }


def score_sintel(weights: str, root: Path) -> dict[str, dict[str, Record]]:
    """Score weights and DIS on the pairs with ground truth below ``root``, pass by pass."""
    model, _ = load_model(weights)
    scores = {}
    for pass_name in ("clean", "final"):
        found = find_pairs(find_root(root, "training"), pass_name=pass_name)
        known = [pair for pair in found if pair.flow is not None]
        pairs = track(known, label=f"Sintel {pass_name}", unit="pair")
        scores[pass_name] = _score_with_dis(model, SINTEL_UPDATES, (pair.load() for pair in pairs))
    return scores
