"""A flow field moves along itself, as the first guess for the next pair."""

import numpy as np

from gma_lib.flow.warm_start import carry_forward


def test_uniform_flow_carries_on_as_it_is():
    flow = np.full((2, 6, 9), 1.25, np.float32)
    np.testing.assert_array_equal(carry_forward(flow), flow)
    np.testing.assert_array_equal(carry_forward(np.zeros((2, 6, 9))), np.zeros((2, 6, 9)))


def test_a_moving_patch_takes_its_flow_along():
    flow = np.zeros((2, 8, 12), np.float32)
    flow[0] = 0.25  # the background lands between the cells, the patch on them
    flow[0, 2:5, 2:5] = 3
    carried = carry_forward(flow)
    assert (carried[0, 2:5, 5:8] == 3).all()
    assert (carried[0, :, :3] == 0.25).all()
    assert (carried[1] == 0).all()


def test_every_cell_takes_the_vector_that_landed_nearest():
    flow = np.random.default_rng(0).normal(0, 2, (2, 7, 9)).astype(np.float32)
    places = np.stack(np.mgrid[:7, :9][::-1]).reshape(2, -1)
    landed = (places + flow.reshape(2, -1)).astype(np.float64)
    inside = (landed > 0).all(axis=0) & (landed[0] < 9) & (landed[1] < 7)
    distances = np.hypot(*(places[:, :, None] - landed[:, None, inside]))
    expected = flow.reshape(2, -1)[:, inside][:, distances.argmin(axis=1)].reshape(flow.shape)
    np.testing.assert_array_equal(carry_forward(flow), expected)


def test_flow_that_leaves_the_frame_carries_nothing():
    np.testing.assert_array_equal(carry_forward(np.full((2, 4, 4), 50.0)), np.zeros((2, 4, 4)))
