"""Textures from banks and photographs."""

import sys

import numpy as np
import pytest

from gma_lib.training.textures import PHOTOGRAPHS, cut_photograph, draw_textures


def test_photographs_are_cut_from_pictures_that_come_with_scikit_image():
    bank = draw_textures((cut_photograph,), 12, 1)
    assert bank.shape == (12, 3, 512, 512)
    assert 0 <= bank.min() < bank.max() <= 1
    assert bank.std(dim=(1, 2, 3)).min() > 0.02  # no piece is empty
    assert len({round(float(texture.mean()), 4) for texture in bank}) == 12
    assert len(PHOTOGRAPHS) == len(set(PHOTOGRAPHS))


def test_photographs_without_scikit_image_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ValueError, match=r"pip install 'gma-lib\[training\]', or set it to 0"):
        cut_photograph(np.random.default_rng(0))
