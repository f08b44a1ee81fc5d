"""Whether a batch changes the flow: a converted model's flow of different pairs, next to PyTorch's
flow of each pair alone.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from gma_lib import ascend, backends, export, runs
from gma_lib.convert.conversion import ModelSpec, prepare_model
from gma_lib.data import FramePair, read_batch
from gma_lib.flow.metrics import Deviation
from gma_lib.network import SHARE_OF_MEMORY, predict_memory
from gma_lib.runs.leftovers import temporary_folder

SMALL = 128, 160  # height and width of the details that every batch size is compared on, at most
LIMIT_S = 60.0  # what comparing full-size pairs may take


@dataclass(frozen=True)
class Batch:
    """Pairs at the network's size and what PyTorch computes for each of them.

    Attributes
    ----------
    image1, image2
        Frames, float32 (N, 3, H, W).
    flow
        In pixels, float32 (N, 2, H, W).
    what
        Which pairs they are, in words.
    """

    image1: np.ndarray
    image2: np.ndarray
    flow: np.ndarray
    what: str


def read_different_pairs(
    pairs: list[FramePair], spec: ModelSpec, *, first: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read a padded batch (N, 3, H, W) of different pairs, beginning with the one named ``first``.

    Where the batch has more places than there are pairs, they repeat, shifted sideways.
    """
    chosen = sorted(pairs, key=lambda pair: pair.name != first)[: spec.batch_size]
    image1, image2, _ = read_batch(chosen, spec.batch_size)
    for place in range(len(chosen), spec.batch_size):
        shift, source = divmod(place, len(chosen))
        for images in (image1, image2):
            images[place] = np.roll(images[source], 7 * shift, axis=-1)
    return image1, image2


def compare_together(
    image1: np.ndarray, image2: np.ndarray, spec: ModelSpec, *, card: ascend.Card | None = None
) -> dict[str, Deviation]:
    """Export and convert the network for small frames and the whole batch at once, and compare its
    flow of a detail of each pair with PyTorch's; return the distance under what was compared.
    """
    height, width = (min(sides) for sides in zip(SMALL, image1.shape[2:], strict=True))
    spec = replace(spec, height=height, width=width, at_once=None)
    image1, image2 = (images[..., :height, :width] for images in (image1, image2))
    options: runs.Record = {"card": card} if spec.backend == "ascend" else {}
    reference = np.concatenate(list(_compute_references(spec, image1, image2)))
    with temporary_folder() as folder:
        prepare_model(spec, folder, card=card)
        with backends.load_backend(
            spec.backend, folder, precision=spec.precision, **options
        ) as network:
            found = Deviation.between(network.predict(image1, image2), reference)
    return {f"{_count(spec.batch_size)} of {width}x{height} px, computed together": found}


def compare_along(
    network: backends.Backend, batch: Batch, spec: ModelSpec, folder: Path
) -> dict[str, Deviation]:
    """Compare what the model's parts compute along a sequence, as 04_infer runs them, with
    PyTorch's flow of the first pair; empty where ``network``, which may be closed, is run whole.

    The model is loaded again, so that ``network`` can be closed before.
    """
    if not backends.is_for_sequences(network):
        return {}
    with backends.load_backend(spec.backend, folder, precision=spec.precision) as again:
        sequence = backends.AlongSequence(cast(backends.SplitBackend, again))
        flow, _ = sequence.flow("first", batch.image1[:1], "second", batch.image2[:1])
    found = Deviation.between(flow, batch.flow[:1])
    return {f"1 pair of {spec.width}x{spec.height} px, in parts along a sequence": found}


def gather_batch(
    image1: np.ndarray,
    image2: np.ndarray,
    spec: ModelSpec,
    reference: np.ndarray,
    *,
    limit_s: float = LIMIT_S,
) -> Batch:
    """Gather PyTorch's flow of every pair of a batch where memory and time allow it; else the first
    pair takes every place.

    Parameters
    ----------
    reference
        PyTorch's flow of the first pair, float32 (2, H, W).
    limit_s
        Seconds that PyTorch and the converted model may need for the whole batch, judged by the
        second pair.
    """
    size, full = spec.batch_size, f"{spec.width}x{spec.height} px"
    needed = predict_memory("torch", "float32", 1, spec.height, spec.width) or 0
    if size > 1 and needed > SHARE_OF_MEMORY * runs.find_memory():
        why = f"PyTorch needs {needed / 1e9:.1f} GB for another one"
        return _repeat(image1, image2, reference, f"1 pair of {full}", why)
    start, flows = time.monotonic(), [reference[None]]
    for flow in _compute_references(spec, image1[1:], image2[1:]):
        flows.append(flow)
        predicted_s = 2 * (size - 1) * (time.monotonic() - start) / (len(flows) - 1)
        if predicted_s > limit_s:
            why = f"{size} different pairs would take about {predicted_s:.0f} s"
            return _repeat(image1, image2, reference, f"1 pair of {full}", why)
    return Batch(image1, image2, np.concatenate(flows), f"{_count(size)} of {full}")


def _repeat(image1: np.ndarray, image2: np.ndarray, flow: np.ndarray, full: str, why: str) -> Batch:
    places = len(image1)
    what = f"1 pair of {full} in all {places} places of the batch ({why})"
    images1, images2, flows = (
        np.repeat(first[None], places, axis=0) for first in (image1[0], image2[0], flow)
    )
    return Batch(images1, images2, flows, what)


def _count(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} different pairs"


def _compute_references(
    spec: ModelSpec, image1: np.ndarray, image2: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield PyTorch's flow of each pair alone, (1, 2, H, W)."""
    model, _ = spec.load_network()
    for place in range(len(image1)):
        alone = slice(place, place + 1)
        yield export.compute_reference(model, image1[alone], image2[alone])
