"""Rendered pairs by number, and the held-out families."""

import dataclasses

import numpy as np
import pytest
import torch

from gma_lib.training.pairs import (
    HELD_OUT,
    HELD_OUT_SEED,
    VALIDATION,
    PairSource,
    dim_light,
    render_held_out,
    require_other_seed,
)

pytestmark = pytest.mark.slow


def test_a_pair_follows_from_its_number(source, config):
    phase = config.phases[0]
    first, again, other = (
        source.render_pair(5, phase),
        source.render_pair(5, phase),
        source.render_pair(6, phase),
    )
    assert torch.equal(first.image1, again.image1)
    assert torch.equal(first.flow, again.flow)
    assert not torch.equal(first.image1, other.image1)
    assert HELD_OUT > 64 * 1_000_000  # no run of a million steps meets a held-out scene


@pytest.mark.parametrize("change", [{"photographs": 3}, {"seed": 5}], ids=["photographs", "seed"])
def test_held_out_scenes_are_the_same_whatever_is_trained_on(shipped, change):
    """No photographs, and neither the textures nor the outlines of a training's own seed."""
    shipped = dataclasses.replace(shipped, validation_pairs=2)
    other = dataclasses.replace(shipped, **change)
    source = PairSource(other)
    assert len(source.renderer.textures) == shipped.textures + other.photographs
    families = render_held_out(other)
    for family, pairs in render_held_out(shipped).items():
        assert all(
            torch.equal(a.image1, b.image1) for a, b in zip(pairs, families[family], strict=True)
        )


def test_the_shipped_configuration_trains_on_other_textures_than_those_held_out(shipped):
    """Scores of what `make train` makes would else compare with nobody's."""
    require_other_seed(shipped)
    own = PairSource(shipped).renderer.textures
    held_out = PairSource(dataclasses.replace(shipped, seed=HELD_OUT_SEED)).renderer.textures
    assert not any(torch.equal(one, other) for one in own for other in held_out)


def test_the_held_out_scenes_stay_the_same(shipped):
    """One more number drawn before others makes other scenes of all that follow, and scores that
    cannot be compared with those before.
    """
    families = render_held_out(
        dataclasses.replace(shipped, validation_pairs=2),
        dataclasses.replace(VALIDATION, height=128, width=160),
    )
    means = {
        family: [
            [
                field.mean().item()
                for field in (
                    pair.image1,
                    pair.image2,
                    pair.flow.norm(dim=0),
                    pair.occluded.float(),
                )
            ]
            for pair in pairs
        ]
        for family, pairs in families.items()
    }
    # grey levels (of rounded frames: a mean may move by a few thousandths), pixels, a share; as at
    # commit fcb9ef5, before relief and photographs came
    assert means["layers"] == [
        pytest.approx(m, abs=5e-3)
        for m in ([154.605, 144.67, 10.145, 0.072], [92.798, 104.424, 2.275, 0.006])
    ]
    assert means["planes"] == [
        pytest.approx(m, abs=5e-3)
        for m in ([205.829, 203.142, 5.016, 0.035], [105.631, 106.87, 8.872, 0.022])
    ]


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
