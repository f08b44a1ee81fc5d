"""Muon: its steps, and PyTorch without it, as before 2.9."""

import subprocess
import sys

import pytest
import torch
import yaml

from gma_lib.runs.files import PROJECT
from gma_lib.training.muon import KernelMuon

pytestmark = pytest.mark.slow
# The command line, where PyTorch has no Muon; one test pair, scored after one update.
OLDER = """
import sys, torch
del torch.optim.Muon
from gma_lib.cli import main
from gma_lib.training import model_card
model_card.TEST_PAIRS, model_card.SCORED_UPDATES = 1, (1,)
main()
"""


def test_muon_moves_every_direction_of_a_kernel_alike_by_steps_as_large_as_adamw():
    torch.manual_seed(0)
    # one direction's gradient is fifty times the others'
    gradient = torch.randn(32, 16, 3, 3) * 1e-12
    gradient[0] *= 50
    kernels = {name: torch.nn.Parameter(torch.zeros(32, 16, 3, 3)) for name in ("muon", "adamw")}
    optimisers = {
        "muon": KernelMuon([kernels["muon"]], weight_decay=0.0),
        "adamw": torch.optim.AdamW([kernels["adamw"]], eps=1e-30),
    }
    for name, optimiser in optimisers.items():
        optimiser.param_groups[0]["lr"] = 1e-3
        kernels[name].grad = gradient.clone()
        optimiser.step()
    stretches, before = (
        torch.linalg.svdvals(values.detach().flatten(1)) for values in (kernels["muon"], gradient)
    )
    assert before[0] > 20 * before[1]  # what it is there for
    assert stretches.max() < 3 * stretches.min()
    sizes = {
        name: kernel.detach().square().mean().sqrt().item() for name, kernel in kernels.items()
    }
    assert sizes["adamw"] == pytest.approx(
        1e-3, rel=0.01
    )  # the very first step, when every number's mean is its own
    assert sizes["muon"] == pytest.approx(
        0.2e-3, rel=0.2
    )  # the size that AdamW's steps have later on


def run_with_older_torch(*arguments, exit_code=0) -> str:
    """Run a command; returns its errors."""
    command = [sys.executable, "-c", OLDER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == exit_code, done.stderr
    return done.stderr


def test_without_muon_everything_else_works(tiny, tmp_path):
    """It ended in a traceback, whatever the configuration said."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny | {"validation_pairs": 0}))
    options = "--config", file, "--device", "cpu"
    run_with_older_torch("train", *options, "--out", tmp_path / "adamw")
    assert (tmp_path / "adamw" / "averaged.safetensors").is_file()
    run_with_older_torch("held-out", "seeded", *options)
    run_with_older_torch("card", "--help")


def test_muon_is_refused_with_the_remedy_where_pytorch_has_none(tiny, tmp_path):
    """A recipe before it trains anything."""
    muon = tiny | {"optimiser": "muon"}
    (file := tmp_path / "muon.yaml").write_text(yaml.safe_dump(muon))
    out = "--device", "cpu", "--out", tmp_path / "muon"
    settings = {name: muon[name] for name in muon if name not in ("phases", "seed")}
    parts = [{"name": "a", "what": "x", "training": {"seed": 3, "phases": [{}]}}]
    content = {"settings": settings, "phase": muon["phases"][0], "parts": parts}
    (recipe := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    for given in (("--config", file), ("--recipe", recipe)):
        (line,) = run_with_older_torch("train", *given, *out, exit_code=1).splitlines()
        assert "needs PyTorch 2.9" in line
        assert "pip install 'gma-lib[training]'" in line
        assert not list((tmp_path / "muon").glob("[!.]*"))
