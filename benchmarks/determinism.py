"""What stays the same under other threads, instruction sets, runtimes and precisions: a table.

    python benchmarks/determinism.py outputs/determinism

Each setting is a process of its own, which imitates another machine through the libraries' own
environment variables. It renders the demo's frames and computes the flow of the same four pairs,
and is compared with the first setting. A setting that is done is not computed again.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SIZE = {"height": 224, "width": 512, "frames": 2}
AVX512 = "X86_V4 AVX512_ICL AVX512_SPR"
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
    "OPENCV_CPU_DISABLE=AVX2,AVX512_SKX": {"OPENCV_CPU_DISABLE": "AVX2,FMA3,AVX512_SKX"},
}
VARIANTS = [
    ("torch", "float32"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
]


def compute(folder: Path) -> None:
    """Render the frames and compute flow in this process; write everything to one file."""
    if os.environ.get("CORES"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from gma_lib import load
    from gma_lib.data import find_pairs
    from gma_lib.data.demo import render_demo
    from gma_lib.flow import CLASSICAL
    from gma_lib.flow.refine import refine_flow

    rendered = find_pairs(render_demo(folder / "frames", **SIZE), split="training")
    found = {f"frames/{pair.name}": np.stack(pair.load_frames()) for pair in rendered}
    found |= {f"truth/{pair.name}": pair.load_flow() for pair in rendered}
    same = folder.parent / next(iter(SETTINGS)).replace(" ", "-") / "frames"
    pairs = find_pairs(same, split="training")
    for backend, precision in VARIANTS:
        estimator = load(num_updates=6, backend=backend, precision=precision)
        for pair in pairs:
            found[f"{backend} {precision}/{pair.name}"] = estimator(*pair.load_frames())
    for pair in pairs:
        frame1, frame2 = pair.load_frames()
        flow = np.zeros((2, *frame1.shape[1:]), np.float32)
        for name, method in CLASSICAL.items():
            found[f"{name}/{pair.name}"] = method(frame1, frame2)
        found[f"refinement of no motion/{pair.name}"] = refine_flow(frame1, frame2, flow)
    np.savez(folder / "partial.npz", **found)
    (folder / "partial.npz").rename(folder / "computed.npz")


def main(outputs: Path) -> None:
    files = {}
    for name, variables in SETTINGS.items():
        folder = outputs / name.replace(" ", "-").replace("/", "-")
        files[name] = folder / "computed.npz"
        if not files[name].is_file():
            print(name, flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            environment = os.environ | {"GMA_CACHE": str(folder / "cache")} | variables
            command = [sys.executable, __file__, "--compute", str(folder)]
            subprocess.run(command, env=environment, check=True)
    first = dict(np.load(next(iter(files.values()))))
    kinds = list(dict.fromkeys(name.split("/")[0] for name in first))
    rows = {}
    for name, file in itertools.islice(files.items(), 1, None):
        other = dict(np.load(file))
        rows[name] = {
            kind: max(
                float(np.abs(other[key] - first[key]).max())
                for key in first
                if key.split("/")[0] == kind
            )
            for kind in kinds
        }
    print("| largest difference | " + " | ".join(kinds) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    for name, row in rows.items():
        print(
            f"| {name} | "
            + " | ".join(f"{value:.1e}" if value else "0" for value in row.values())
            + " |"
        )
    (outputs / "determinism.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "--compute":
        compute(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
