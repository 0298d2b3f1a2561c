"""Wilson's interval against published values, and at the ends where others fail."""

import pytest

from puna.eval.rates import Rate


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Source: Agresti and Coull 1998, table of score intervals; computed again with scipy's proportion interval.
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    assert Rate(hits=hits, n=n).interval == pytest.approx((low, high), abs=1e-4)


def test_nothing_measured_is_nothing_known() -> None:
    rate = Rate.of([None, None])
    assert (rate.value, rate.interval, str(rate)) == (None, (0.0, 1.0), "-")
    assert Rate.of([True, None, False, True]) == Rate(hits=2, n=3)


def test_a_rate_says_its_interval_and_its_n() -> None:
    assert str(Rate(hits=8, n=10)) == "80.0% [49.0%, 94.3%] of 10"
    assert Rate(hits=8, n=10).to_dict() == {"hits": 8, "n": 10, "rate": 0.8, "low": 0.4902, "high": 0.9433}
