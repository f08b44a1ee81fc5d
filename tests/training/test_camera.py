"""What a camera adds leaves the flow alone."""

import dataclasses

import numpy as np
import torch

from gma_lib.training.camera import dim_light


def test_dim_pairs_hold_whole_grey_levels_and_the_same_flow(config, source):
    phase = dataclasses.replace(config.phases[0], photometric=0.0, relief=0.0, dim=0.0)
    pair = source.render_pair(7, phase)
    for seed in range(5):
        dim = dim_light(pair, np.random.default_rng(seed))
        assert 6 < dim.image1.mean() < min(62, pair.image1.mean())
        assert torch.equal(dim.image2, dim.image2.round())
        assert dim.flow is pair.flow
    dark = dataclasses.replace(pair, image1=0.02 * pair.image1, image2=0.02 * pair.image2)
    assert torch.equal(dim_light(dark, np.random.default_rng(0)).image1, dark.image1.round())
    black = dataclasses.replace(pair, image1=torch.zeros_like(pair.image1))
    assert not dim_light(black, np.random.default_rng(0)).image1.any()
