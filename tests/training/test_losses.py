"""Losses."""

import pytest
import torch

from gma_lib.training.losses import matching_loss, sequence_loss


def test_the_matching_loss_is_low_where_features_match():
    features = 20 * torch.nn.functional.normalize(
        torch.randn(1, 256, 16, 20, generator=torch.Generator().manual_seed(0)), dim=1
    )
    truth = torch.zeros(1, 2, 128, 160)
    truth[:, 0], truth[:, 1] = 16, -8  # two cells to the right, one up
    moved = features.roll((2, -1), dims=(3, 2))
    everywhere = torch.ones(1, 128, 160, dtype=torch.bool)
    assert matching_loss(features, moved, truth, everywhere) < 0.01
    assert matching_loss(features, moved, -truth, everywhere) > 5


def test_the_sequence_loss_weighs_the_last_update_most():
    truth = torch.zeros(1, 2, 4, 4)
    learnt = torch.ones(1, 4, 4, dtype=torch.bool)
    learnt[:, :, 2:] = False
    off = torch.full_like(truth, 1.0)
    off[..., 2:] = 100  # not learnt, so it does not count
    assert sequence_loss([off, truth], truth, learnt, 0.8, 1.0) == pytest.approx(0.8 * 2)
    assert sequence_loss([truth, off], truth, learnt, 0.8, 1.0) == pytest.approx(2)


def test_with_a_power_below_one_small_errors_gain_and_hopeless_ones_lose_weight():
    truth, learnt = torch.zeros(1, 2, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool)
    flow = torch.tensor([[[[0.24, 8.99]], [[0.0, 0.0]]]], requires_grad=True)
    loss = sequence_loss([flow], truth, learnt, 0.8, 0.5)
    assert loss.item() == pytest.approx((0.5 + 3) / 2)  # square roots of 0.25 and 9
    loss.backward()
    assert flow.grad[0, 0, 0].tolist() == pytest.approx([0.5 / 0.5 / 2, 0.5 / 3 / 2])
    exact = torch.zeros_like(truth, requires_grad=True)
    sequence_loss([exact], truth, learnt, 0.8, 0.5).backward()
    assert bool(exact.grad.isfinite().all())
