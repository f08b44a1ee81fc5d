"""What `benchmarks/weights_8bit.py` rounds."""

import torch
import weights_8bit


def test_each_output_channel_has_steps_of_its_own():
    weight = torch.randn(3, 4, 5, 5, generator=torch.manual_seed(0)) * torch.tensor(
        [1.0, 100.0, 0.0]
    ).reshape(3, 1, 1, 1)
    rounded = weights_8bit.round_channels(weight)
    for before, after in zip(weight, rounded, strict=True):
        step = before.abs().max() / 127
        assert (after - before).abs().max() <= 0.501 * step
        assert torch.isclose(after.abs().max(), before.abs().max())
        assert len(after.unique()) > 50 or not step
