"""Optimisers."""

import dataclasses

import pytest
import torch

from gma_lib.training.optimisers import KernelMuon
from gma_lib.training.trainer import Trainer


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


def test_every_parameter_is_moved_by_one_optimiser(config):
    trainer = Trainer(dataclasses.replace(config, optimiser="muon", phases=config.phases[1:]))
    kernels = {values.data_ptr() for values in trainer.optimisers[0].matrices}
    others = {
        values.data_ptr()
        for group in trainer.optimisers[1].param_groups
        for values in group["params"]
    }
    everything = {values.data_ptr(): name for name, values in trainer.model.named_parameters()}
    assert not kernels & others
    assert kernels | others == set(everything)
    assert "update_block.flow_head.conv2.weight" in {
        everything[place] for place in others
    }  # two rows are no matrix
    assert "update_block.gru.convq1.weight" in {everything[place] for place in kernels}
    before = {name: values.detach().clone() for name, values in trainer.model.named_parameters()}
    trainer.advance()
    moved = {
        name
        for name, values in trainer.model.named_parameters()
        if not torch.equal(values, before[name])
    }
    # the published network has positions that it does not use, and attention whose share (gamma)
    # starts at 0
    still = {
        name
        for name in before
        if "pos_emb" in name or name.endswith(("to_qk.weight", "to_v.weight"))
    }
    assert moved == set(before) - still
