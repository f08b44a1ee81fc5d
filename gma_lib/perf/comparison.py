"""Variants of the network, timed in turns: how many times as fast each is as the first, and at what
cost.

    gma bench benchmarks/cpu.yaml

Variants take turns, each in a process of its own. On a machine whose speed drifts, seconds mean
little and ratios within a round mean much. While a variant waits for its turn its process is
stopped, so that threads that spin cannot slow the others.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import numpy as np
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from gma_lib import backends, convert, export, network, runs
from gma_lib.data import DEMO_SCENES
from gma_lib.flow.metrics import Deviation
from gma_lib.perf.load import Load
from gma_lib.perf.peak import prepare_peak
from gma_lib.perf.summary import UNSTABLE_SPREAD, find_peak_memory
from gma_lib.perf.worker import Variant, Worker
from gma_lib.runs.leftovers import temporary_folder
from gma_lib.training.config import check_entries

AT_A_TIME = 4  # variants measured together with the baseline, because all stay in memory
PRODUCTS_A_ROUND = 3
SPINNING_S = 0.5  # for how long threads of a matrix product may still spin when it is done

logger = logging.getLogger(__name__)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class BenchPlan:
    """Variants by name, the first being the baseline, and what they all share; ``rounds`` are
    counted after one to warm up.
    """

    height: int
    width: int
    checkpoint: str
    rounds: PositiveInt
    variants: Annotated[dict[str, Variant], Field(min_length=1)]


def load_comparison(path: Path) -> BenchPlan:
    """Read a file such as ``benchmarks/cpu.yaml``, whose first variant names every setting and is
    what the others start from; BadFile names what is unknown or missing.
    """
    with runs.reading(path, "a comparison of variants", "Correct the entry") as path:
        content = cast(runs.Record, runs.read_yaml(path))
        given: dict[str, runs.Record] = content.get("variants") or {}
        baseline: runs.Record = next(iter(given.values()), {})
        variants = {name: baseline | settings for name, settings in given.items()}
        return check_entries(BenchPlan, content | {"variants": variants})


# --- preparing ------------------------------------------------------------------------------------


def prepare_variant(variant: Variant, folder: Path, comparison: BenchPlan) -> dict[str, float]:
    """Export and convert a variant's model into ``folder``; return its work by part
    (``count_work``).
    """
    settings = asdict(variant)
    spec = convert.ModelSpec(
        comparison.checkpoint,
        comparison.height,
        comparison.width,
        parts=settings.pop("sequence"),
        **settings,
    )
    folder.mkdir(parents=True)
    convert.prepare_model(spec, folder)
    return {
        part: gmac / variant.batch_size
        for part, gmac in export.count_work(folder / "gma.onnx").items()
    }


def draw_demo_frames(height: int, width: int, count: int = 4) -> list[np.ndarray]:
    """Draw consecutive frames (1, 3, H, W) of a demo scene at this size."""
    renderer = DEMO_SCENES[0].make_renderer(height=height, width=width)
    return [
        np.ascontiguousarray(renderer.render(number).clean[None], np.float32)
        for number in range(count)
    ]


def count_needed_work(work: Mapping[str, float], comparison: BenchPlan, variant: Variant) -> float:
    """Count the multiply-accumulates of a pair, 1e9, that any implementation has to make.

    The lookup's products and the coarser levels of the correlation are one way of doing what needs
    almost none, and do not count; along a sequence neither does the second encoding of each frame.
    """
    cells = (comparison.height // 8) * (comparison.width // 8)
    total = sum(work.values()) - work.get("lookup", 0) - work["correlation"] + cells**2 * 256 / 1e9
    return total - (work["feature encoder"] / 2 if variant.sequence else 0)


# --- measuring ------------------------------------------------------------------------------------


class BaselineError(RuntimeError):
    """The baseline of a group cannot run, or has ended, so that the group has no ratios."""


def compare(comparison: BenchPlan) -> runs.Record:
    """Measure all variants against the first, a few at a time.

    Returns
    -------
    dict
        ``variants``: for each what ``compute_ratios`` returns, ``deviation`` in pixels from
        PyTorch's float32 flow, ``peak_rss_bytes``, ``peak_device_bytes`` (null without a GPU),
        ``load_s`` of ``loaded_parts`` (none: the whole network), ``first_call_s``, ``gmac``,
        ``share_of_peak`` (null for int8, whose peak is not measured); or ``error``, a sentence,
        where it could not run, or ended while it was measured. ``load`` and ``caution`` say what
        else the machine computed, ``checkpoint_sha256`` which weights were used.

    Raises
    ------
    RuntimeError
        The baseline of the first group cannot run. That of a later one is an ``error`` of its
        group, so that what was measured before it is kept.
    """
    baseline, *others = comparison.variants
    firsts = range(0, max(len(others), 1), AT_A_TIME)
    groups = [others[first : first + AT_A_TIME] for first in firsts]
    results: dict[str, runs.Record] = {}
    sha256 = network.load_checkpoint(comparison.checkpoint).sha256
    with runs.exclusive_machine(), temporary_folder() as folder:
        load = Load()
        frames = draw_demo_frames(comparison.height, comparison.width)
        for number, group in enumerate(groups, 1):
            logger.info("group %d of %d: %s", number, len(groups), ", ".join(group))
            try:
                found = _compare_group(
                    [baseline, *group], folder / f"group-{number}", comparison, frames
                )
            except BaselineError as error:
                if not results:
                    raise
                settings = {name: asdict(comparison.variants[name]) for name in group}
                found = {
                    name: {"settings": one, "error": str(error)} for name, one in settings.items()
                }
            results = found | results  # the baseline of the first group counts
        compared: runs.Record = {
            "height": comparison.height,
            "width": comparison.width,
            "checkpoint": comparison.checkpoint,
            "checkpoint_sha256": sha256,
            "baseline": baseline,
            "variants": {name: results[name] for name in comparison.variants},
        }
        return load.add_to(compared)


def _compare_group(
    names: Sequence[str], folder: Path, comparison: BenchPlan, frames: Sequence[np.ndarray]
) -> dict[str, runs.Record]:
    """Measure variants in turns; the first is the baseline."""
    variants = {name: comparison.variants[name] for name in names}
    results: dict[str, runs.Record] = {
        name: {"settings": asdict(variant)} for name, variant in variants.items()
    }
    workers: dict[str, Worker] = {}
    folder.mkdir(parents=True)
    np.savez(folder / "frames.npz", *frames)  # where the workers look for them
    try:
        for number, name in enumerate(runs.track(names, label="start", unit="variant")):
            place = folder / f"variant-{number}"
            try:
                work = prepare_variant(variants[name], place, comparison)
                workers[name] = Worker(variants[name], place)
            except (ImportError, MemoryError, RuntimeError, ValueError) as error:
                results[name]["error"] = str(error)
                continue
            config = network.GMAConfig(num_updates=variants[name].num_updates)
            model, _ = network.load_model(comparison.checkpoint, config)
            reference = export.compute_reference(model, *frames[:2])
            results[name] |= workers[name].about | {
                "deviation": vars(Deviation.between(np.load(place / "flow.npy"), reference)),
                "gmac": count_needed_work(work, comparison, variants[name]),
            }
        if names[0] not in workers:
            raise BaselineError(f"the baseline cannot run: {results[names[0]]['error']}")
        # What decides how fast matrix products can be: the precision, and what computes.
        kinds = {
            name: (
                variants[name].precision,
                backends.find_backend(variants[name].backend).computes_on,
            )
            for name in workers
        }
        answers, peaks, ended = _take_turns(workers, set(kinds.values()), comparison.rounds)
    finally:
        for process in workers.values():
            process.close()
    for name, reason in ended.items():
        results[name]["error"] = reason
    samples = {name: [one["seconds"] for one in given] for name, given in answers.items()}
    for name, seconds in samples.items():
        memory = {key: answers[name][-1][key] for key in ("peak_rss_bytes", "peak_device_bytes")}
        results[name] |= memory | compute_ratios(seconds, samples[names[0]])
        rate = 2e9 * results[name]["gmac"] / results[name]["median_s"]
        peak = peaks.get(kinds[name])
        results[name]["share_of_peak"] = rate / peak if peak else None
    return results


def _take_turns(
    workers: Mapping[str, Worker], kinds: set[tuple[str, str]], rounds: int
) -> tuple[dict[str, list[runs.Record]], dict[tuple[str, str], float], dict[str, str]]:
    """Answers of every worker, one a round, the peak of every kind of arithmetic, and why workers
    ended, which have no answers then; BaselineError where the first one did.
    """
    products = {kind: product for kind in kinds if (product := prepare_peak(*kind))}
    peaks = dict.fromkeys(products, 0.0)
    answers: dict[str, list[runs.Record]] = {name: [] for name in workers}
    ended: dict[str, str] = {}
    baseline = next(iter(workers))
    for number in runs.track(range(rounds + 1), label="measure", unit="round"):
        # Another one starts each round, because the first runs on a rested machine.
        for name in np.roll(list(answers), -number).tolist():
            try:
                answer = workers[name].time_call()
            except RuntimeError as error:
                if name == baseline:
                    raise BaselineError(f"the baseline cannot run: {error}") from error
                ended[name] = str(error)
                del answers[name]
                continue
            if number:  # the first round warms up
                answers[name].append(answer)
        # Every round: the machine drifts for the products as for the variants.
        for kind, measure_rounds in products.items():
            peaks[kind] = max(peaks[kind], measure_rounds(PRODUCTS_A_ROUND))
        time.sleep(SPINNING_S)
    return answers, peaks, ended


def compute_ratios(seconds: Sequence[float], baseline: Sequence[float]) -> runs.Record:
    """Return times per pair, and how many times as fast as the baseline of the same round.

    Ratios are medians over rounds with their middle half, and a caution where that is wider than 5
    % of the median.
    """
    ratios = np.asarray(baseline) / np.asarray(seconds)
    low, ratio, high = np.percentile(ratios, [25, 50, 75])
    spread = measure_spread(ratios)
    return {
        "median_s": float(np.median(seconds)),
        "samples_s": [round(sample, 6) for sample in seconds],
        "ratio": float(ratio),
        "ratio_middle_half": [float(low), float(high)],
        "caution": f"unstable: the middle half of the ratios spreads over {spread:.0%}"
        if spread > UNSTABLE_SPREAD
        else "",
    }


def measure_spread(values: Sequence[float] | np.ndarray) -> float:
    """Return the interquartile range as a share of the median."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / median)


def tabulate_comparison(found: runs.Record) -> str:
    """Return the comparison as a Markdown table."""
    lines = [
        "| variant | speed-up | interquartile range | s per pair | share of peak | memory, GB "
        "| load, s | error, px: mean | 99th percentile |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found["variants"].items():
        if "error" in one:
            lines.append(f"| {name} | {one['error']} | | | | | | | |")
            continue
        low, high = one["ratio_middle_half"]
        share = "" if one["share_of_peak"] is None else f"{one['share_of_peak']:.0%}"
        # Older records of sequences have loaded nothing yet: their first call did.
        is_loaded = "loaded_parts" in one or not one["settings"]["sequence"]
        load = f"{one['load_s']:.1f}" if is_loaded else ""
        vary = " (unstable)" if measure_spread(one["samples_s"]) > UNSTABLE_SPREAD else ""
        lines.append(
            f"| {name} | **{one['ratio']:.2f}**{' (unstable)' if one['caution'] else ''} "
            f"| {low:.2f} to {high:.2f} | {one['median_s']:.3f}{vary} "
            f"| {share} | {(find_peak_memory(one) or 0) / 1e9:.2f} | {load} "
            f"| {one['deviation']['mean']:.1e} | {one['deviation']['p99']:.1e} |"
        )
    return "\n".join(lines)
