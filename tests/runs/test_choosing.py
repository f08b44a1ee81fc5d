"""A few of many are spread over all of them."""

import pytest

from gma_lib.runs.choosing import choose_evenly


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [
        (20, 4, [1, 7, 14, 20]),
        (4, 3, [1, 3, 4]),
        (3, 3, [1, 2, 3]),
        (2, 9, [1, 2]),
        (5, 1, [1]),
        (5, 0, []),
        (0, 4, []),
    ],
)
def test_the_first_the_last_and_evenly_between(count, most, chosen):
    assert choose_evenly(range(1, count + 1), most) == chosen
