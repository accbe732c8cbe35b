import math

import pytest
from scipy import stats

from condexp.results.paired import paired_difference

INF, NAN = math.inf, math.nan


def test_the_interval_is_students() -> None:
    first, second = [10.0, 12.0, 9.0, 11.0], [9.0, 10.0, 8.5, 9.5]
    found = paired_difference(first, second)
    # Differences -1, -2, -1/2, -3/2: mean -5/4, Σ(d - m)² = 5/4, so s = √(5/12) and s/√n = √(5/48).
    # t_{0.975, 3} = 3.1824463052842638 (tables).
    half = 3.1824463052842638 * math.sqrt(5 / 48)
    assert (found.num, found.mean) == (4, -1.25)
    # A few roundings and scipy's quantile, which is good to some 1e-14.
    assert found.low == pytest.approx(-1.25 - half, rel=1e-12)
    assert found.high == pytest.approx(-1.25 + half, rel=1e-12)
    other = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), rel=1e-12)


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_a_pair_that_is_not_finite_is_left_out(bad: float) -> None:
    whole = paired_difference([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert paired_difference([1.0, bad, 2.0, 3.0], [2.0, 0.0, 4.0, 6.0]) == whole
    assert paired_difference([1.0, 0.0, 2.0, 3.0], [2.0, bad, 4.0, 6.0]) == whole


def test_fewer_than_two_pairs_have_no_interval() -> None:
    one = paired_difference([1.0, INF], [3.0, 0.0])
    assert (one.num, one.mean) == (1, 2.0)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = paired_difference([], [])
    assert none.num == 0
    assert math.isnan(none.mean)


def test_pairs_have_two_members() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])
