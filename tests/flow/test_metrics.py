"""Metrics of fields whose errors are known."""

import numpy as np
import pytest

from gma_lib.flow import metrics


def field(u, v, height=4, width=5):
    return np.broadcast_to(np.array([u, v], np.float32)[:, None, None], (2, height, width)).copy()


def test_no_error():
    flow = np.random.default_rng(0).normal(0, 20, (2, 6, 7)).astype(np.float32)
    assert not metrics.endpoint_error(flow, flow).any()
    found = metrics.sum_errors(flow, flow)["all"].to_metrics()
    assert (found["epe"], found["px1"], found["fl"]) == (0, 1, 0)
    assert found["wauc"] == pytest.approx(100)


def test_zero_flow_for_a_shift_of_three_and_four():
    found = metrics.sum_errors(field(0, 0), field(3, 4))["all"].to_metrics()
    assert (found["epe"], found["px1"], found["px3"], found["px5"], found["fl"]) == (5, 0, 0, 0, 1)
    # of the hundred thresholds only the last, 5 px, is reached; it weighs 0.01 of a sum of 50.5
    assert found["wauc"] == pytest.approx(100 * 0.01 / 50.5)


def test_one_pixel_means_below_one():
    assert metrics.sum_errors(field(1, 0), field(0, 0))["all"].to_metrics()["px1"] == 0
    assert metrics.sum_errors(field(0.999, 0), field(0, 0))["all"].to_metrics()["px1"] == 1


def test_outliers_exceed_both_limits():
    assert (
        metrics.sum_errors(field(4, 0), field(0, 0))["all"].to_metrics()["fl"] == 1
    )  # 4 px, and more than 5 %
    assert (
        metrics.sum_errors(field(104, 0), field(100, 0))["all"].to_metrics()["fl"] == 0
    )  # 4 px, but 4 %


def sum_all(error, speed):
    return metrics.sum_groups(error, speed, {"": np.ones(error.shape, bool)})[""]


def test_wauc_as_its_formula():
    """Against the definition, threshold by threshold."""
    error = np.abs(np.random.default_rng(0).normal(0, 2, 1000))
    weights = [1 - (i - 1) / 100 for i in range(1, 101)]
    expected = (
        100
        * sum(w * (error <= i / 20).mean() for i, w in enumerate(weights, start=1))
        / sum(weights)
    )
    assert sum_all(error, error).to_metrics()["wauc"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("errors", "median"),
    [
        ([0.5] * 4, 0.475),  # the middle of its step, 0.45 to 0.5
        ([0.02, 0.3, 4.9], 0.275),
        ([5.0, 5.0, 9.0], 4.9875),
        ([0.1, 5.1, 9.0], None),
        ([], None),
    ],
)
def test_medians_are_interpolated_up_to_5_px(errors, median):
    error = np.array(errors)
    found = sum_all(error, np.zeros_like(error)).to_metrics()["median"]
    assert found == (None if median is None else pytest.approx(median))


def test_the_median_is_within_a_step_of_numpy_s():
    error = np.abs(np.random.default_rng(0).normal(0, 2, 1001))
    found = sum_all(error, error).to_metrics()["median"]
    assert found == pytest.approx(np.median(error), abs=0.05)


@pytest.mark.parametrize("mask", ["occluded", "invalid"])
@pytest.mark.parametrize("shape", [(5, 4), (1, 5), (4, 1), (8, 10)])
def test_a_mask_of_another_size_is_refused(mask, shape):
    """A row or a column would be spread over the frame."""
    with pytest.raises(ValueError, match=f"mask {mask}.*shape"):
        metrics.sum_errors(field(0, 0), field(0, 0), **{mask: np.ones(shape, bool)})


def test_a_group_is_summed_as_its_pixels_alone():
    rng = np.random.default_rng(0)
    error, speed = np.abs(rng.normal(0, 3, (8, 9))), np.abs(rng.normal(0, 90, (8, 9)))
    groups = {"some": rng.random((8, 9)) < 0.4, "none": np.zeros((8, 9), bool)}
    found = metrics.sum_groups(error, speed, groups)
    for name, mask in groups.items():
        assert found[name] == sum_all(error[mask], speed[mask])
    assert found["some"].to_metrics() != sum_all(error, speed).to_metrics()
    assert found["none"] == metrics.ErrorSums()


def test_sums_add_up():
    """Pooling two pairs gives what one pair with all their pixels gives."""
    rng = np.random.default_rng(0)
    error, speed = np.abs(rng.normal(0, 3, 300)), np.abs(rng.normal(0, 30, 300))
    whole = sum_all(error, speed)
    halves = sum_all(error[:100], speed[:100]) + sum_all(error[100:], speed[100:])
    assert halves.to_metrics() == pytest.approx(whole.to_metrics())
    assert metrics.ErrorSums() + whole == whole


def test_groups_of_pixels():
    truth = np.zeros((2, 2, 4), np.float32)
    truth[0] = [[0, 9.99, 10, 39], [40, -1, 0, 0]]
    occluded = np.array([[False, False, True, False], [False, True, True, False]])
    invalid = np.array([[True, False, False, False], [False, False, False, False]])
    groups = metrics.group_pixels(truth, occluded, invalid)
    counts = {name: int(mask.sum()) for name, mask in groups.items()}
    # x + u > 4 leaves the frame: 1 + 9.99, 2 + 10, 3 + 39 and 0 + 40; 1 - 1 does not
    assert counts == {
        "all": 8,
        "valid": 7,
        "occluded": 3,
        "non_occluded": 5,
        "in_frame_occluded": 2,
        "out_of_frame": 4,
        "s0_10": 5,
        "s10_40": 2,
        "s40_plus": 1,
    }


def test_without_masks_their_groups_are_absent():
    assert set(metrics.group_pixels(field(0, 0))) == {"all", "valid", "s0_10", "s10_40", "s40_plus"}


def test_a_group_without_pixels_has_no_score():
    assert metrics.sum_errors(field(0, 0), field(0, 0))["s40_plus"].to_metrics()["epe"] is None


def test_values_that_are_not_finite_are_refused():
    broken = field(0, 0)
    broken[0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        metrics.endpoint_error(broken, field(0, 0))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        metrics.endpoint_error(field(0, 0), field(0, 0, height=5))


def test_pooled_scores_are_those_of_all_pixels_together():
    rng = np.random.default_rng(0)
    errors = [np.abs(rng.normal(0, 3, 50)) for _ in range(3)]
    scores = [{"all": sum_all(error, error)} for error in errors]
    del scores[1]["all"]
    pooled = metrics.pool_scores([*scores, {"fast": metrics.ErrorSums(pixels=2, error=1.0)}])
    both = np.concatenate([errors[0], errors[2]])
    assert pooled["all"].to_metrics() == pytest.approx(sum_all(both, both).to_metrics())
    assert pooled["fast"].pixels == 2
    assert metrics.pool_scores([]) == {}


@pytest.mark.parametrize(
    ("share", "distance", "rounding"),
    [
        (0, 0, True),
        (1, 5e-4, True),
        (0.005, 7e-3, True),
        (1, 2e-3, False),
        (0.02, 7e-3, False),
        (0.001, 0.6, False),
    ],
)
def test_rounding_is_told_from_another_result(share, distance, rounding):
    flow = np.zeros((2, 100, 100), np.float32)
    moved = flow.copy()
    moved[0].flat[: int(share * 10_000)] = distance
    assert metrics.Deviation.between(moved, flow).is_rounding == rounding


def test_deviation_is_in_pixels():
    flow = np.zeros((1, 2, 4, 5), np.float32)
    moved = flow.copy()
    moved[0, :, 0, 0] = (3, 4)
    found = metrics.Deviation.between(moved, flow)
    assert (found.max, found.mean) == (5, 5 / 20)
    with pytest.raises(ValueError, match="shape"):
        metrics.Deviation.between(moved, flow[:, :, :3])
    with pytest.raises(ValueError, match="finite"):
        metrics.Deviation.between(moved * np.nan, flow)
