"""What stays the same under other threads, instruction sets, runtimes and precisions.

    python benchmarks/determinism.py outputs/determinism [--out FILE]

Each setting is a process of its own, which imitates another machine through the libraries' own
environment variables. It renders the demo's frames and computes the flow of the same two pairs,
and is compared with the first setting. Each has two threads on two cores unless it says otherwise.
The int8 model is compiled by each, and calibrated by those that imitate another processor; the
others take the first one's.
A setting that is done is not computed again; those of other code, libraries or weights are
refused.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from gma_lib.data import FramePair
    from gma_lib.runs import Record

SIZE = {"height": 224, "width": 512, "frames": 2}
AVX512 = "X86_V4 AVX512_ICL AVX512_SPR"
THREADS = {"OMP_NUM_THREADS": "2", "CORES": "2"}  # unless a setting has others
SETTINGS = {
    "two threads": {},
    "two threads, again": {},
    "one thread": {"OMP_NUM_THREADS": "1", "CORES": "1"},
    "ATEN_CPU_CAPABILITY=avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    f"NPY_DISABLE_CPU_FEATURES={AVX512}": {"NPY_DISABLE_CPU_FEATURES": AVX512},
    f"NPY_DISABLE_CPU_FEATURES=X86_V3 {AVX512}": {"NPY_DISABLE_CPU_FEATURES": f"X86_V3 {AVX512}"},
    "OPENCV_CPU_DISABLE=AVX2,FMA3,AVX512_SKX": {"OPENCV_CPU_DISABLE": "AVX2,FMA3,AVX512_SKX"},
}
WEIGHTS = "gma-procedural"
TORCH = "torch float32"
VARIANTS = [
    ("torch", "float32"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
]


def compute(folder: Path) -> None:
    """Render the frames and compute flow in this process; write everything to one file."""
    os.sched_setaffinity(0, choose_cores(int(os.environ["CORES"])))
    from gma_lib import load
    from gma_lib.data import find_pairs
    from gma_lib.data.demo import render_demo
    from gma_lib.flow import CLASSICAL
    from gma_lib.flow.refine import refine_flow

    rendered = find_pairs(render_demo(folder / "frames", **SIZE), split="training")
    found = {f"frames/{pair.name}": np.stack(pair.load_frames()) for pair in rendered}
    found |= {f"truth/{pair.name}": pair.load_flow() for pair in rendered}
    first = folder.parent / next(iter(SETTINGS)).replace(" ", "-")
    pairs = find_pairs(first / "frames", split="training")
    for backend, precision in VARIANTS:
        if precision == "int8" and folder != first:
            share_models(first / "cache", folder / "int8")
            os.environ["GMA_CACHE"] = str(folder / "int8")
        try:
            estimator = load(WEIGHTS, num_updates=6, backend=backend, precision=precision)
            for pair in pairs:
                found[f"{backend} {precision}/{pair.name}"] = estimator(*pair.load_frames())
        except (RuntimeError, ValueError) as error:  # no kernels for this precision
            print(f"{backend} {precision} refused: {str(error).splitlines()[-1]}", flush=True)
    found |= {f"attention, share/{pair.name}": measure_attention(pair) for pair in pairs}
    for pair in pairs:
        frame1, frame2 = pair.load_frames()
        flow = np.zeros((2, *frame1.shape[1:]), np.float32)
        for name, method in CLASSICAL.items():
            found[f"{name}/{pair.name}"] = method(frame1, frame2)
        found[f"refinement of no motion/{pair.name}"] = refine_flow(frame1, frame2, flow)
    np.savez(folder / "partial.npz", **found)
    (folder / "partial.npz").rename(folder / "computed.npz")


def share_models(source: Path, target: Path) -> None:
    """Copy models as they were converted, without what a runtime compiled for the processor that
    the first setting has.
    """
    shutil.rmtree(target, ignore_errors=True)  # of an interrupted setting
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("compiled", ".*"))


def measure_attention(pair: "FramePair") -> np.ndarray:
    """Measure what 07_inside measures: shares of attention, and what chance would give."""
    from gma_lib.evaluate.insight import examine, summarise_inside

    looks = summarise_inside(examine(pair, WEIGHTS, num_updates=6), "")["attention"]
    return np.array([list(look.values()) for look in looks if look])


def choose_cores(count: int) -> list[int]:
    """The first cores that this process may use; SystemExit where there are fewer."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise SystemExit(f"{count} cores are needed; this process may use {len(cores)}")
    return cores[:count]


def require_same_software(folder: Path) -> None:
    """Keep what decides the arrays of a folder; SystemExit where they are of other code, libraries,
    weights or parameters, or another processor.
    """
    from gma_lib.network import WEIGHTS_FOLDER
    from gma_lib.runs import RESOURCES, hash_files, hash_value
    from gma_lib.runs.clusters import describe_software

    folder.mkdir(parents=True, exist_ok=True)
    given = [*WEIGHTS_FOLDER.glob("*.safetensors"), *(RESOURCES / "params").glob("*.yaml")]
    software = hash_value([describe_software(), hash_files([Path(__file__), *given])])
    file = folder / "software.txt"
    is_done = (folder / "computed.npz").is_file()
    if is_done and (not file.is_file() or file.read_text() != software):
        raise SystemExit(f"{folder} is of other code, libraries, weights or processor: delete it")
    file.write_text(software)


@click.command()
@click.argument("outputs", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--compute", "is_setting", is_flag=True, hidden=True)
def main(outputs: Path, out: Path | None, is_setting: bool) -> None:
    """Compute every setting in a folder of OUTPUTS; compare each with the first."""
    if is_setting:
        compute(outputs)
        return
    files = {name: compute_setting(outputs, name) for name in SETTINGS}
    from gma_lib import network, runs

    weights = runs.hash_file(network.WEIGHTS_FOLDER / f"{WEIGHTS}.safetensors")
    record = compare_settings({name: group_by_kind(file) for name, file in files.items()})
    runs.write_json(out or outputs / "determinism.json", {"checkpoint_sha256": weights} | record)


def compute_setting(outputs: Path, name: str) -> Path:
    """Compute a setting in a process of its own, unless it is done; return what it wrote."""
    folder = outputs / name.replace(" ", "-").replace("/", "-").replace(",", "")
    file = folder / "computed.npz"
    require_same_software(folder)
    if not file.is_file():
        print(name, flush=True)
        variables = {"GMA_CACHE": str(folder / "cache")} | THREADS | SETTINGS[name]
        command = [sys.executable, __file__, "--compute", str(folder)]
        start = time.monotonic()
        subprocess.run(command, env=os.environ | variables, check=True)
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
    return file


def compare_settings(found: "dict[str, dict[str, list[np.ndarray]]]") -> "Record":
    """Compare the arrays of every setting, by kind, with those of the first, and its other runtimes
    with PyTorch. A kind that a setting could not compute is missing there.
    """
    (name, first), *others = found.items()
    reference = score_kinds(first, first["truth"])
    return {
        "setting": name,
        "pairs": len(first["truth"]),
        "largest_difference": {
            other: {kind: compare(first[kind], kinds[kind]) for kind in first if kind in kinds}
            for other, kinds in others
        },
        "distance_from_torch": {
            variant: {
                "mean": float(np.mean(apart := distances(first[TORCH], first[variant]))),
                "max": float(np.max(apart)),
            }
            for variant in (f"{backend} {precision}" for backend, precision in VARIANTS)
            if variant in first and variant != TORCH
        },
        "largest_difference_of_scores": {
            other: {
                kind: {
                    what: float(np.abs(one[what] - reference[kind][what]).max())
                    for what in ("epe", "share", "wauc")
                }
                for kind, one in score_kinds(kinds, first["truth"]).items()
            }
            for other, kinds in others
        },
    }


def score_kinds(kinds: dict[str, list[np.ndarray]], truth: list[np.ndarray]) -> dict[str, dict]:
    """Score all flow that one setting computed."""
    other = ("frames", "truth", "attention, share")
    return {kind: score(flow, truth) for kind, flow in kinds.items() if kind not in other}


def group_by_kind(file: Path) -> dict[str, list[np.ndarray]]:
    """What one setting computed: kind -> arrays of the pairs."""
    found: dict[str, list[np.ndarray]] = {}
    for name, array in np.load(file).items():
        found.setdefault(name.split("/")[0], []).append(array)
    return found


def compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Largest difference; NaN where there is one."""
    return float(np.max([np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)]))


def distances(ours: list[np.ndarray], theirs: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.hypot(*(a - b)).ravel() for a, b in zip(ours, theirs, strict=True)])


def score(flows: list[np.ndarray], truths: list[np.ndarray]) -> dict[str, np.ndarray]:
    """EPE, shares and WAUC of every pair and group of pixels; shares and WAUC times pixels, of
    which they are made.
    """
    from gma_lib.flow.metrics import sum_errors

    metrics = [
        sums.to_metrics()
        for flow, truth in zip(flows, truths, strict=True)
        for sums in sum_errors(flow, truth).values()
        if sums.pixels
    ]
    pixels = np.array([one["pixels"] for one in metrics])
    shares = [[one[name] for name in ("px1", "px3", "px5", "fl")] for one in metrics]
    return {
        "epe": np.array([one["epe"] for one in metrics]),
        "share": np.array(shares) * pixels[:, None],
        "wauc": np.array([one["wauc"] for one in metrics]) * pixels / 100,
    }


if __name__ == "__main__":
    main()
