"""Refinement sharpens what can be matched and leaves the rest as the network has it."""

import numpy as np
import pytest

from gma_lib.flow.refine import check_refinable, check_refinement, find_unmatched, refine_flow

HEIGHT, WIDTH = 96, 128
Y, X = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)


def draw(x, y):
    """A texture (3, H, W) that is known between pixels too."""
    waves = np.sin(0.5 * x + 0.2 * y) + np.sin(0.3 * y - 0.1 * x) + np.sin(0.23 * x + 0.41 * y)
    return np.rint([128 + 35 * waves] * 3).astype(np.float32)


def fade(frame):
    return np.rint(128 + (frame - 128) / 20)


def constant(u, v):
    return np.stack([np.full((HEIGHT, WIDTH), u), np.full((HEIGHT, WIDTH), v)]).astype(np.float32)


@pytest.fixture(scope="module")
def shifted():
    """Two frames and their true flow, (2.3, -1.4) px everywhere."""
    return draw(X, Y), draw(X - 2.3, Y + 1.4), constant(2.3, -1.4)


def test_perturbed_flow_is_refined_to_the_true_shift(shifted):
    frame1, frame2, truth = shifted
    start = truth + constant(0.5, 0.4)
    error = np.hypot(*(refine_flow(frame1, frame2, start) - truth))
    assert np.median(error) < 0.1  # px, from 0.64
    assert np.hypot(*(start - truth)).min() > 0.6


def test_brightness_of_the_second_frame_does_not_matter(shifted):
    frame1, frame2, truth = shifted
    start = truth + constant(0.5, 0.4)
    error = np.hypot(*(refine_flow(frame1, np.rint(0.9 * frame2 - 10), start) - truth))
    assert np.median(error) < 0.15


def test_pixels_that_leave_the_frame_keep_their_flow(shifted):
    frame1, frame2, truth = shifted
    start = truth + constant(0.5, 0.4)
    refined = refine_flow(frame1, frame2, start)
    leaves = np.rint(X + start[0]) >= WIDTH
    assert leaves.sum() == 3 * HEIGHT
    np.testing.assert_array_equal(refined[:, leaves], start[:, leaves])
    assert (refined != start)[:, ~leaves].mean() > 0.9


def test_of_two_pixels_that_arrive_at_one_place_the_worse_matched_is_covered():
    """A square moves 12 px to the right over a background at rest: the strip that it runs over.

    Contrast is low, so that nothing looks very different anywhere.
    """
    square = (abs(Y - 48) < 20) & (abs(X - 50) < 20)
    moved = (abs(Y - 48) < 20) & (abs(X - 62) < 20)
    grey1 = fade(np.where(square, draw(Y, X)[0], draw(X, Y)[0]))
    grey2 = fade(np.where(moved, draw(Y, X - 12)[0], draw(X, Y)[0]))
    flow = np.where(square, constant(12, 0), 0).astype(np.float32)
    unmatched = find_unmatched(grey1, grey2, flow)
    covered = moved & ~square
    assert unmatched[covered].mean() > 0.9
    assert unmatched[square].mean() < 0.1  # what covers is matched
    assert not unmatched[:, 90:].any()
    start = flow + constant(0.3, 0)
    refined = refine_flow(*(np.stack([grey] * 3) for grey in (grey1, grey2)), start)
    assert (refined == start)[:, covered].mean() > 0.8
    assert (refined == start)[:, square].mean() < 0.2


def test_what_looks_different_where_it_arrives_keeps_its_flow(shifted):
    frame1, frame2, truth = shifted
    changed = frame2.copy()
    changed[:, 40:60, 40:60] = 255 - changed[:, 40:60, 40:60]
    start = truth + constant(0.5, 0.4)
    refined = refine_flow(frame1, changed, start)
    inside = (slice(None), slice(46, 56), slice(44, 54))  # arrives there
    assert (refined == start)[inside].mean() > 0.7
    assert (refine_flow(frame1, frame2, start) == start)[inside].mean() < 0.1


@pytest.mark.parametrize("which", [0, 1])
def test_a_flat_frame_changes_nothing(shifted, which):
    frames = [shifted[0], shifted[1]]
    frames[which] = np.full_like(frames[which], 90)
    start = np.random.default_rng(0).normal(0, 3, (2, HEIGHT, WIDTH)).astype(np.float32)
    np.testing.assert_array_equal(refine_flow(*frames, start), start)


def test_frames_too_small_to_refine_keep_their_flow(shifted):
    small = [array[:, :15] for array in shifted]
    found = refine_flow(*small)
    np.testing.assert_array_equal(found, small[2])
    assert not np.shares_memory(found, small[2])


def test_no_pixel_moves_by_more_than_three(shifted):
    frame1, frame2, truth = shifted
    noise = np.random.default_rng(0).normal(0, 20, truth.shape).astype(np.float32)
    refined = refine_flow(fade(frame1), fade(frame2), truth + noise)
    assert np.isfinite(refined).all()
    assert np.hypot(*(refined - truth - noise)).max() == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_values_that_are_not_finite_are_refused(shifted, which):
    arrays = [array.copy() for array in shifted]
    arrays[which][0, 3, 4] = np.nan
    with pytest.raises(ValueError, match="finite"):
        refine_flow(*arrays)


def test_frames_with_fractions_of_grey_levels_are_refused(shifted):
    """Regression: refinement gained more on unrounded renders than on files of 8 bits."""
    frame1, frame2, truth = shifted
    with pytest.raises(ValueError, match="grey levels"):
        refine_flow(frame1 + 0.25, frame2, truth)


def test_frames_of_16_bits_and_small_ones_and_unknown_names_are_refused():
    check_refinable(np.full((1, 3, 16, 16), 7.0), "frame1")
    with pytest.raises(ValueError, match=r"frame1 .* 16 bits"):
        check_refinable(np.full((1, 3, 16, 16), 7.5), "frame1")
    with pytest.raises(ValueError, match=r"frame1 has 16x15 px"):
        check_refinable(np.full((1, 3, 15, 16), 7.0), "frame1")
    check_refinement("variational")
    check_refinement(None)
    with pytest.raises(ValueError, match="magic"):
        check_refinement("magic")
