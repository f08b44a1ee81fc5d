"""Rehearse full Sintel: its 23 scenes and 1,064 frames a pass, as copies of two rendered scenes, go
through every stage at true size.

    python benchmarks/rehearsal.py [--out FILE]

Each stage runs in a process of its own, so that time, memory and disk are the stage's. Memory is
the largest sum over its processes, shared pages counted once. To count those takes a tenth of a
second, so it is done only where the sum with them is larger than ever before.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import psutil

from gma_lib import runs
from gma_lib.data.demo import DEMO_SCENES, render_demo
from gma_lib.data.sintel import PASSES
from gma_lib.network import WEIGHTS_FOLDER
from gma_lib.perf.load import Load
from gma_lib.pipeline.stages import STAGES
from gma_lib.runs import track

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "outputs" / "rehearsal"
WEIGHTS = WEIGHTS_FOLDER / "gma-procedural.safetensors"  # of params/sintel.yaml
SECONDS_BETWEEN_LOOKS = 2.0
SCENES = dict.fromkeys(
    (
        *("alley_1", "alley_2", "ambush_2", "ambush_4", "ambush_5", "ambush_6", "ambush_7"),
        *("bamboo_1", "bamboo_2", "bandage_1", "bandage_2", "cave_2", "cave_4", "market_2"),
        *("market_5", "market_6", "mountain_1", "shaman_2", "shaman_3", "sleeping_1"),
        *("sleeping_2", "temple_2", "temple_3"),
    ),
    50,
) | {"ambush_2": 21, "ambush_4": 33, "ambush_6": 20, "market_6": 40}  # frames
assert sum(SCENES.values()) == 1064


def make_tree(root: Path) -> Path:
    """Render two scenes and copy their frames and truth to the scenes of Sintel."""
    rendered = root.with_name("rendered") / "training"
    if not rendered.is_dir():
        with runs.write_atomically(rendered.parent) as partial:
            render_demo(partial, frames=max(SCENES.values()), track=track)
    for number, (scene, frames) in enumerate(SCENES.items()):
        source = DEMO_SCENES[number % len(DEMO_SCENES)].name
        for kind in sorted(rendered.iterdir()):
            folder = root / "training" / kind.name / scene
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted((kind / source).iterdir())[: frames - (kind.name not in PASSES)]:
                shutil.copy2(path, folder / path.name)
    return root


def measure_disk(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def add_up(processes: list[psutil.Process], measure: Callable[[psutil.Process], int]) -> int:
    """Return the sum of what is measured of those processes that have not ended."""
    total = 0
    for one in processes:
        with suppress(psutil.Error):
            total += measure(one)
    return total


def run(*arguments: str) -> runs.Record:
    """Run ``gma reproduce``; return its seconds and peak memory."""
    begun, peak, highest = time.monotonic(), 0, 0
    process = subprocess.Popen([sys.executable, "-m", "gma_lib.cli", "reproduce", *arguments])
    while process.poll() is None:
        with suppress(psutil.Error):
            parent = psutil.Process(process.pid)
            processes = [parent, *parent.children(recursive=True)]
            with_shared = add_up(processes, lambda one: one.memory_info().rss)
            if with_shared > highest:
                highest = with_shared
                peak = max(peak, add_up(processes, lambda one: one.memory_full_info().pss))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise click.ClickException(f"gma reproduce ended with exit code {process.returncode}")
    return {"seconds": time.monotonic() - begun, "peak_bytes": peak}


@click.command()
@click.option("--precision", default="int8", show_default=True)
@click.option("--cluster", default="processes:2", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(precision: str, cluster: str, out: Path | None) -> None:
    """Make the tree, run every stage, then all again with nothing to do."""
    shutil.rmtree(HOME / "data", ignore_errors=True)
    tree, results = make_tree(HOME / "data"), HOME / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    options = ("--profile", "sintel", "--sintel", str(tree), "--precision", precision)
    options += ("--cluster", cluster)
    options += ("--batch-size", "1", "--set", f"outputs={results}")
    stages: runs.Record = {}
    load = Load()
    for stage in [*STAGES, "report", "nothing to do"]:
        before = measure_disk(results)
        stages[stage] = run(*options, *(["--until", stage] if stage in STAGES else []))
        stages[stage]["disk_bytes"] = measure_disk(results) - before
        print(stage, json.dumps(stages[stage]), flush=True)
    found = load.add_to({"stages": stages, "data_bytes": measure_disk(tree)})
    found |= {"pairs": 2 * (1064 - len(SCENES)), "precision": precision, "cluster": cluster}
    found["checkpoint_sha256"] = runs.hash_file(WEIGHTS)
    runs.write_json(out or HOME / "rehearsal.json", found)


if __name__ == "__main__":
    main()
