"""Padding and its exact inverse."""

import numpy as np
import pytest

from gma_lib.data.padding import Padding, read_batch
from gma_lib.data.sintel import find_pairs
from gma_lib.flow.images import read_frame


@pytest.mark.parametrize(
    "size", [(436, 1024), (440, 1024), (375, 1242), (128, 129), (1, 1), (130, 7)]
)
def test_unpad_undoes_pad(size):
    frame = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
    padding = Padding.for_size(*size)
    padded = padding.pad(frame)
    assert padded.shape[-2:] == padding.padded_size(*size)
    assert all(side % 8 == 0 and side >= 128 for side in padded.shape[-2:])
    np.testing.assert_array_equal(padding.unpad(padded), frame)


def test_sintel_gets_two_rows_above_and_below():
    frame = np.arange(436, dtype=np.float32)[:, None].repeat(1024, axis=1)
    padded = Padding.for_size(436, 1024).pad(frame)
    assert padded[:4, 0].tolist() == [0, 0, 0, 1]
    assert padded[-4:, 0].tolist() == [434, 435, 435, 435]


def test_a_size_that_fits_is_left_alone():
    assert Padding.for_size(440, 1024) == Padding(0, 0, 0, 0)


def test_no_pixels_is_an_error():
    with pytest.raises(ValueError, match="5x0"):
        Padding.for_size(0, 5)


def test_a_partial_batch_is_filled_up_with_its_last_pair(tiny_sintel):
    pairs = find_pairs(tiny_sintel)[:2]
    images1, images2, padding = read_batch(pairs, 4)
    assert images1.shape == images2.shape == (4, 3, 128, 160)
    assert padding == Padding(0, 0, 0, 0)
    for place, pair in enumerate([pairs[0], pairs[1], pairs[1], pairs[1]]):
        np.testing.assert_array_equal(images1[place], read_frame(pair.image1))
        np.testing.assert_array_equal(images2[place], read_frame(pair.image2))
