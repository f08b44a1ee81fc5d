"""Is a wrong computation noticed by its numbers alone? ``make torture PART=computations``

Each case changes one place of the code in a copy of this checkout and runs ``gma verify --quick
--no-digests`` there, which has to fail and names its worst entry.

    python tests/torture/computations.py [--out FILE]
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from gma_lib.runs import write_json

PROJECT = Path(__file__).resolve().parents[2]
MODEL, METRICS = "gma_lib/network/model.py", "gma_lib/evaluate/evaluation.py"
CORRELATION = "        correlation = F.relu(self.convc2("
CASES = {
    "nothing": (MODEL, "self.convf1(flow)", "self.convf1(flow)"),
    "one convolution scaled by 1.01": (MODEL, "self.convf1(flow)", "1.01 * self.convf1(flow)"),
    "x and y of the lookup swapped": (
        MODEL,
        CORRELATION,
        "        windows = correlation.unflatten(1, (LEVELS, WINDOW, WINDOW))\n"
        "        correlation = windows.transpose(2, 3).flatten(1, 3)\n" + CORRELATION,
    ),
    "epsilon of the instance norms 1e-3 instead of 1e-5": (
        MODEL,
        "norm=nn.InstanceNorm2d",
        "norm=lambda channels: nn.InstanceNorm2d(channels, eps=1e-3)",
    ),
    "covered pixels averaged per pair": (
        METRICS,
        "        **_to_metrics(pooled),\n",
        "        **_to_metrics(pooled),\n"
        '        "occluded": {\n'
        "            name: sum(_to_metrics(sums[pair.name])['occluded'][name] for pair in scored)\n"
        "            / len(scored)\n"
        "            for name in _to_metrics(pooled)['occluded']\n"
        "        },\n",
    ),
}


def try_case(name: str) -> tuple[int, str]:
    """Change the code of a copy and verify it; return exit code and the worst entry."""
    file, before, after = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "gma"
        ignore = shutil.ignore_patterns(".git", ".venv", "outputs", "_build", "*_cache", "tests")
        shutil.copytree(PROJECT, copy, ignore=ignore)
        source = (copy / file).read_text()
        assert source.count(before) == 1, f"{file} no longer holds {before!r} once"
        (copy / file).write_text(source.replace(before, after))
        done = subprocess.run(
            [sys.executable, "-m", "gma_lib.cli", "verify", "--quick", "--no-digests"],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
    worst = re.search(r"The worst: (.*)", done.stderr)
    return done.returncode, worst[1] if worst else (done.stdout + done.stderr).splitlines()[-1]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(out: Path | None) -> None:
    """Try every case; exit code 1 if one is not noticed, or if nothing changed is."""
    found = {}
    for name in CASES:
        code, worst = try_case(name)
        found[name] = {"exit_code": code, "worst": worst}
        print(f"{name}: exit code {code}, {worst}", flush=True)
    if out:
        write_json(out, {"cases": found})
    sys.exit(any(one["exit_code"] != (name != "nothing") for name, one in found.items()))


if __name__ == "__main__":
    main()
