"""Scores."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gma_lib.flow.classical import dis
from gma_lib.flow.metrics import ErrorSums, sum_errors
from gma_lib.network.checkpoints import load_model
from gma_lib.network.model import (
    GMA,
)
from gma_lib.runs.progress import track
from gma_lib.training.config import TrainingConfig
from gma_lib.training.pairs import PairSource, validation_families
from gma_lib.training.scenes import TrainingPair


def score(
    flows_of: Callable[[Tensor, Tensor], dict[str, np.ndarray]], pairs: Iterable[TrainingPair]
) -> dict[str, dict[str, ErrorSums]]:
    """Sums of errors over all pixels of all pairs: for each method, for every group of
    ``gma_lib.flow.metrics``.

    Parameters
    ----------
    flows_of
        Two frames (1, 3, H, W) -> flow (2, H, W) by the name of what made it.
    """
    total: dict[str, dict[str, ErrorSums]] = {}
    for pair in pairs:
        truth, occluded = pair.flow.cpu().numpy(), pair.occluded.cpu().numpy()
        for method, flow in flows_of(pair.image1[None], pair.image2[None]).items():
            sums = sum_errors(flow, truth, occluded=occluded)
            known = total.setdefault(method, {name: ErrorSums() for name in sums})
            total[method] = {name: known[name] + sums[name] for name in sums}
    return total


def network_flows(
    model: GMA, updates: tuple[int, ...]
) -> Callable[[Tensor, Tensor], dict[str, np.ndarray]]:
    """The network's flow after each of the given numbers of updates, in float32, as ``score`` asks
    for it.
    """

    def flows_of(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            flows = model.predict_sequence(image1, image2, num_updates=max(updates))
        return {str(count): flows[count - 1][0].float().cpu().numpy() for count in updates}

    return flows_of


def classical_flows(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
    """OpenCV's DIS at its medium preset, for comparison."""
    return {"dis": dis(image1[0].cpu().numpy(), image2[0].cpu().numpy())}


TEST_PAIRS = (
    32  # of each family; they follow those of validation, so that nothing was chosen by them
)


SCORED_UPDATES = (1, 2, 4, 6, 12, 32)


SCORED_GROUPS = ("all", "occluded", "non_occluded", "s0_10", "s10_40", "s40_plus")


def score_card(config: TrainingConfig, weights: str | Path, *, device: str = "cpu") -> dict:
    """Scores of weights and of DIS on test scenes of both held-out families, as they stand on the
    card of the shipped weights.
    """
    model, _ = load_model(weights)
    first = config.validation_pairs
    families = validation_families(
        config, PairSource(config, device), numbers=range(first, first + TEST_PAIRS)
    )
    flows_of = network_flows(model.to(device), SCORED_UPDATES)

    def both(image1: Tensor, image2: Tensor) -> dict[str, np.ndarray]:
        return flows_of(image1, image2) | classical_flows(image1, image2)

    found = {
        family: score(both, track(pairs, label=family, unit="pair"))
        for family, pairs in families.items()
    }
    return {
        family: {
            method: {name: sums[name].to_metrics() for name in SCORED_GROUPS}
            for method, sums in methods.items()
        }
        for family, methods in found.items()
    }
