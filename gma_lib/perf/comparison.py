"""Which variant is faster, by how much, and what it costs: variants take turns, each in a process
of its own.

    python -m gma_lib.perf.comparison --config benchmarks/cpu.yaml --out benchmarks/results/cpu.json

On a machine whose speed drifts, seconds mean little and ratios within a round mean much. While a
variant waits for its turn its process is stopped, so that threads that spin cannot slow the others.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gma_lib.backends import AlongSequence, find_backend
from gma_lib.flow.metrics import Deviation
from gma_lib.perf.timing import peak_measurement, peak_memory_bytes, peak_rss_bytes
from gma_lib.runs.machine import exclusive_machine
from gma_lib.runs.progress import show_messages, track
from gma_lib.runs.records import write_json

UNSTABLE_SPREAD = 0.05  # of the ratios: middle half by median
AT_A_TIME = 4  # variants beside the baseline
PRODUCTS_A_ROUND = 3
SPINNING_S = 0.5  # for how long threads of a matrix product may still spin when it is done


@dataclass(frozen=True)
class Variant:
    """One way to compute flow.

    Attributes
    ----------
    backend, precision
        As for ``gma_lib.backends.load_backend``.
    lookup, opset, steps, num_updates
        Of the exported graph: see ``GMAConfig``, ``export_whole`` and ``gma_lib.network.deploy``.
    batch_size, at_once
        Pairs per call, and how many of them are computed together (None: all).
    sequence
        Walk along a scene, each frame encoded once, instead of computing independent pairs.
    """

    backend: str
    precision: str
    lookup: str
    opset: int
    steps: tuple[str, ...]
    num_updates: int
    batch_size: int
    at_once: int | None
    sequence: bool


@dataclass(frozen=True)
class Comparison:
    """Variants by name, the first being the baseline, and what they all share; ``rounds`` counted
    after one to warm up.
    """

    height: int
    width: int
    checkpoint: str
    rounds: int
    variants: dict[str, Variant]


def load_comparison(path: Path) -> Comparison:
    """Read a file such as ``benchmarks/cpu.yaml``; ValueError names what it does not know."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    unknown = set(content) - {field.name for field in fields(Comparison)}
    if unknown or not content.get("variants"):
        raise ValueError(
            f"{path}: unknown {', '.join(sorted(unknown))}" if unknown else f"{path}: no variants"
        )
    known = {field.name for field in fields(Variant)}
    variants: dict[str, Variant] = {}
    baseline: dict[str, Any] = {}
    for name, given in content["variants"].items():
        if unknown := set(given) - known:
            raise ValueError(
                f"{path}: variant '{name}' has unknown settings: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}"
            )
        baseline = baseline or given
        if missing := known - set(baseline):
            raise ValueError(
                f"{path}: the first variant, '{name}', has to name every setting; missing: {', '.join(sorted(missing))}"
            )
        settings = baseline | given
        variants[name] = Variant(**settings | {"steps": tuple(settings["steps"])})
    return Comparison(
        **{key: value for key, value in content.items() if key != "variants"}, variants=variants
    )


# --- preparing ------------------------------------------------------------------------------------


def prepare(variant: Variant, folder: Path, comparison: Comparison) -> dict[str, float]:
    """Export and convert a variant's model into ``folder``; return its work by part
    (``count_work``).
    """
    from gma_lib.convert.conversion import convert
    from gma_lib.export.operators import count_work
    from gma_lib.export.trace import export_split, export_whole
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.deploy import to_deploy_form
    from gma_lib.network.model import GMAConfig

    config = GMAConfig(num_updates=variant.num_updates, lookup=variant.lookup)
    model, checkpoint = load_model(comparison.checkpoint, config)
    model = to_deploy_form(model, variant.steps)
    size = {
        "height": comparison.height,
        "width": comparison.width,
        "batch_size": variant.batch_size,
        "opset": variant.opset,
    }
    folder.mkdir(parents=True)
    whole = export_whole(model, folder / "gma.onnx", **size, checkpoint=checkpoint)
    if variant.sequence:
        export_split(model, folder, **size, checkpoint=checkpoint)
    about = {
        "num_updates": variant.num_updates,
        "attention": config.attention,
        "at_once": variant.at_once,
        "precision": variant.precision,
    }
    convert(variant.backend, folder, checkpoint=comparison.checkpoint, **about)
    return {part: work / variant.batch_size for part, work in count_work(whole).items()}


def demo_frames(height: int, width: int, count: int = 4) -> list[np.ndarray]:
    """Consecutive frames (1, 3, H, W) of a demo scene, drawn at this size."""
    from gma_lib.data.demo import DEMO_SCENES, make_scene
    from gma_lib.data.rendering import Renderer

    scene = DEMO_SCENES[0]
    renderer = Renderer(make_scene(scene.seed, height=height, width=width, speed=scene.speed))
    return [
        np.ascontiguousarray(renderer.render(number).clean[None], np.float32)
        for number in range(count)
    ]


def counted_gmac(work: dict[str, float], comparison: Comparison, variant: Variant) -> float:
    """Multiply-accumulates of a pair, 1e9, that any implementation has to make.

    The lookup's products and the coarser levels of the correlation are one way of doing what needs
    almost none, and do not count; along a sequence neither does the second encoding of each frame.
    """
    cells = (comparison.height // 8) * (comparison.width // 8)
    total = sum(work.values()) - work.get("lookup", 0) - work["correlation"] + cells**2 * 256 / 1e9
    return total - (work["feature encoder"] / 2 if variant.sequence else 0)


# --- a worker: one variant, one process -----------------------------------------------------------


def worker(variant: Variant, folder: Path, frames: list[np.ndarray]) -> None:
    """Load, warm up, write the first flow, then time one call for every line that arrives."""
    from gma_lib.backends import load_backend

    start = time.perf_counter()
    with load_backend(variant.backend, folder, precision=variant.precision) as backend:
        loaded = time.perf_counter()
        call = (
            _along(backend, frames)
            if variant.sequence
            else _independent(backend, frames, variant.batch_size)
        )
        np.save(folder / "flow.npy", call())
        first = time.perf_counter()
        print(
            json.dumps(
                {
                    "load_s": loaded - start,
                    "first_call_s": first - loaded,
                    "precision_read_back": backend.precision,
                }
            ),
            flush=True,
        )
        for _ in sys.stdin:
            before = time.perf_counter()
            call()
            seconds = (time.perf_counter() - before) / variant.batch_size
            memory = {
                "peak_rss_bytes": peak_rss_bytes(),
                "peak_device_bytes": backend.device_bytes(),
            }
            print(json.dumps({"seconds": seconds} | memory), flush=True)


def _independent(backend, frames: list[np.ndarray], batch_size: int) -> Callable[[], np.ndarray]:
    """Flow of the first two frames, in every place of the batch."""
    image1, image2 = (
        np.ascontiguousarray(np.repeat(frame, batch_size, axis=0)) for frame in frames[:2]
    )
    return lambda: backend.predict(image1, image2)[:1]


def _along(backend, frames: list[np.ndarray]) -> Callable[[], np.ndarray]:
    """Flow from each frame to the next, to and fro without end; the first call gives that of the
    first two frames.
    """
    there_and_back = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    pairs = itertools.pairwise(itertools.cycle(there_and_back))
    sequence = AlongSequence(backend)

    def call() -> np.ndarray:
        now, after = next(pairs)
        return sequence.flow(now, frames[now], after, frames[after])[0]

    return call


class Worker:
    """The measuring side of a worker process, which stands still unless it is asked."""

    def __init__(self, variant: Variant, folder: Path):
        self.folder = folder
        command = [sys.executable, "-m", "gma_lib.perf.comparison", "--worker", str(folder)]
        (folder / "variant.json").write_text(json.dumps(asdict(variant)), encoding="utf-8")
        with open(folder / "errors.txt", "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.about = self._answer()

    def call(self) -> dict[str, float]:
        """Time one call."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            message = (self.folder / "errors.txt").read_text(
                encoding="utf-8"
            ).strip().splitlines() or ["no message"]
            raise RuntimeError(f"the process ended with {self.process.returncode}: {message[-1]}")
        os.kill(self.process.pid, signal.SIGSTOP)
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# --- measuring ------------------------------------------------------------------------------------


def compare(comparison: Comparison, *, lock_file: Path) -> dict[str, Any]:
    """Measure all variants against the first, a few at a time because all of them stay in memory.

    Returns
    -------
    dict
        ``variants``: for each what ``statistics`` says, ``deviation`` in pixels from PyTorch's
        float32 flow, ``peak_rss_bytes``, ``peak_device_bytes`` (null without a GPU), ``load_s``,
        ``first_call_s``, ``gmac``, ``share_of_peak`` (null for int8, whose peak is not measured);
        or ``error``, a sentence, where it could not run.
    """
    names = list(comparison.variants)
    baseline, others = names[0], names[1:]
    groups = [others[first : first + AT_A_TIME] for first in range(0, len(others), AT_A_TIME)] or [
        []
    ]
    results: dict[str, dict[str, Any]] = {}
    with exclusive_machine(lock_file), tempfile.TemporaryDirectory() as folder:
        frames = demo_frames(comparison.height, comparison.width)
        for number, group in enumerate(groups):
            print(f"group {number + 1} of {len(groups)}: {', '.join(group)}", flush=True)
            place = Path(folder) / f"group-{number}"
            found = _compare_group(
                {name: comparison.variants[name] for name in [baseline, *group]},
                place,
                comparison,
                frames,
            )
            results |= {name: found[name] for name in found if name != baseline or not number}
    return {
        "height": comparison.height,
        "width": comparison.width,
        "checkpoint": comparison.checkpoint,
        "baseline": baseline,
        "variants": {name: results[name] for name in names},
    }


def _compare_group(
    variants: dict[str, Variant], folder: Path, comparison: Comparison, frames: list[np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Measure variants in turns; the first is the baseline."""
    results: dict[str, dict[str, Any]] = {
        name: {"settings": asdict(variant)} for name, variant in variants.items()
    }
    workers: dict[str, Worker] = {}
    folder.mkdir(parents=True)
    np.savez(folder / "frames.npz", *frames)  # where the workers look for them
    try:
        for number, (name, variant) in enumerate(
            track(list(variants.items()), label="start", unit="variant")
        ):
            place = folder / f"variant-{number}"
            try:
                work = prepare(variant, place, comparison)
                workers[name] = Worker(variant, place)
            except (RuntimeError, ValueError) as error:
                results[name]["error"] = str(error)
                continue
            deviation = Deviation.between(
                np.load(place / "flow.npy"), _reference(comparison, variant, frames)
            )
            results[name] |= workers[name].about | {
                "deviation": vars(deviation),
                "gmac": counted_gmac(work, comparison, variant),
            }
        baseline = next(iter(variants))
        if baseline not in workers:
            raise RuntimeError(f"the baseline cannot run: {results[baseline]['error']}")
        kinds = {_arithmetic(variants[name]) for name in workers}
        measurements = {
            kind: measure_peak for kind in kinds if (measure_peak := peak_measurement(*kind))
        }
        peaks = dict.fromkeys(measurements, 0.0)
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for number in track(range(comparison.rounds + 1), label="measure", unit="round"):
            for name in _in_turn(list(workers), number):
                answer = workers[name].call()
                results[name] |= {
                    key: answer[key] for key in ("peak_rss_bytes", "peak_device_bytes")
                }
                if number:  # the first round warms up
                    seconds[name].append(answer["seconds"])
            for (
                kind,
                measure_peak,
            ) in (
                measurements.items()
            ):  # every round: the machine drifts for the products as for the variants
                peaks[kind] = max(peaks[kind], measure_peak(PRODUCTS_A_ROUND))
            time.sleep(SPINNING_S)
    finally:
        for process in workers.values():
            process.close()
    for name, samples in seconds.items():
        results[name] |= statistics(samples, seconds[baseline])
        peak = peaks.get(_arithmetic(variants[name]))
        results[name]["share_of_peak"] = (
            None if peak is None else 2e9 * results[name]["gmac"] / results[name]["median_s"] / peak
        )
    return results


def _arithmetic(variant: Variant) -> tuple[str, str]:
    """What decides how fast its matrix products can be: the precision, and what computes."""
    return variant.precision, find_backend(variant.backend).computes_on


def _in_turn(names: list[str], number: int) -> list[str]:
    """Another one starts each round, so that nobody is always the first to run on a rested machine."""
    shift = number % len(names)
    return names[shift:] + names[:shift]


def _reference(comparison: Comparison, variant: Variant, frames: list[np.ndarray]) -> np.ndarray:
    """PyTorch's float32 flow of the first pair."""
    from gma_lib.export.deviation import compute_reference
    from gma_lib.network.checkpoints import load_model
    from gma_lib.network.model import GMAConfig

    model, _ = load_model(comparison.checkpoint, GMAConfig(num_updates=variant.num_updates))
    return compute_reference(model, frames[0], frames[1])


def statistics(seconds: list[float], baseline: list[float]) -> dict[str, Any]:
    """Times per pair, and how many times as fast as the baseline of the same round.

    Ratios are medians over rounds with their middle half, and a caution where that is wider than 5
    % of the median.
    """
    ratios = np.asarray(baseline) / np.asarray(seconds)
    low, ratio, high = np.percentile(ratios, [25, 50, 75])
    spread = (high - low) / ratio
    return {
        "median_s": float(np.median(seconds)),
        "samples_s": [round(sample, 6) for sample in seconds],
        "ratio": float(ratio),
        "ratio_middle_half": [float(low), float(high)],
        "caution": f"unstable: the middle half of the ratios spreads over {spread:.0%}"
        if spread > UNSTABLE_SPREAD
        else "",
    }


def table(found: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| variant | times as fast | middle half | s per pair | of the peak | memory, GB | start, s | off by, px: mean | 99 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found["variants"].items():
        if "error" in one:
            lines.append(f"| {name} | {one['error']} | | | | | | | |")
            continue
        low, high = one["ratio_middle_half"]
        share = "" if one["share_of_peak"] is None else f"{one['share_of_peak']:.0%}"
        lines.append(
            f"| {name} | **{one['ratio']:.2f}**{' (unstable)' if one['caution'] else ''} | {low:.2f} to {high:.2f} | {one['median_s']:.3f} "
            f"| {share} | {peak_memory_bytes(one) / 1e9:.2f} | {one['load_s']:.1f} "
            f"| {one['deviation']['mean']:.1e} | {one['deviation']['p99']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    show_messages()
    parser = argparse.ArgumentParser(description="Compare variants of the network, round by round.")
    parser.add_argument("--config", type=Path, help="a file such as benchmarks/cpu.yaml")
    parser.add_argument("--out", type=Path, help="where to write the results, JSON")
    parser.add_argument(
        "--lock",
        type=Path,
        default=Path("outputs/.machine.lock"),
        help="held while measuring, as by 06_perf",
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        settings = json.loads((arguments.worker / "variant.json").read_text(encoding="utf-8"))
        with np.load(arguments.worker.parent / "frames.npz") as file:
            frames = [file[name] for name in file.files]
        worker(Variant(**settings | {"steps": tuple(settings["steps"])}), arguments.worker, frames)
        return
    if not arguments.config or not arguments.out:
        parser.error("--config and --out are needed")
    found = compare(load_comparison(arguments.config), lock_file=arguments.lock)
    write_json(arguments.out, found)
    print(table(found))
    print(f"\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
