"""The chance to be in time, and the histograms it comes from."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llorch_shared.on_time import BUCKETS, EDGES, Spread, bucket, on_time_probability


def spread_of(ratios: list[float]) -> tuple[float, ...]:
    spread = Spread()
    for ratio in ratios:
        spread.add(ratio)
    return spread.parts()


def test_buckets_are_quarters_of_an_octave_around_one() -> None:
    assert (len(EDGES), EDGES[0], EDGES[BUCKETS // 2], EDGES[-1]) == (33, 0.0625, 1.0, 16.0)
    assert all(EDGES[bucket(edge)] == edge for edge in EDGES[:-1])
    assert (bucket(0.0), bucket(1e9)) == (0, BUCKETS - 1)


def test_before_anything_was_measured_half_takes_longer_than_expected() -> None:
    assert sum(Spread().parts()) == pytest.approx(1, abs=1e-3)
    assert on_time_probability(wait_ms=0, service_ms=100, budget_ms=100) == pytest.approx(0.5, abs=0.01)


def test_the_prior_gives_way_to_what_is_measured() -> None:
    parts = spread_of([2.1] * 2_000)
    assert parts[bucket(2.1)] > 0.99
    assert on_time_probability(wait_ms=0, service_ms=100, budget_ms=190, services=parts) < 0.01
    assert on_time_probability(wait_ms=0, service_ms=100, budget_ms=240, services=parts) > 0.99


def test_an_old_regime_is_forgotten() -> None:
    parts = spread_of([0.5] * 10_000 + [4.0] * 1_000)
    assert parts[bucket(4.0)] > 0.99


def test_counts_stay_finite_over_a_long_life() -> None:
    parts = spread_of([1.0, 2.0] * 20_000)
    assert parts[bucket(1.0)] == pytest.approx(0.5, abs=0.01)


def test_no_budget_is_never_met_and_a_vast_one_always() -> None:
    assert on_time_probability(wait_ms=0, service_ms=1, budget_ms=0) == 0
    assert on_time_probability(wait_ms=0, service_ms=1, budget_ms=-5) == 0
    assert on_time_probability(wait_ms=1000, service_ms=1000, budget_ms=10**6) == pytest.approx(1)


@pytest.mark.parametrize(("wait_ms", "service_ms"), [(0, 4_000), (60_000, 4_000), (4_000, 4_000), (500, 4_000)])
def test_it_is_the_share_of_pairs_of_samples_that_fit(wait_ms: int, service_ms: int) -> None:
    """Against the same question put to the samples themselves."""
    dice = Random(7)
    gap_ms = 250
    waits = [dice.lognormvariate(0, 0.25) for _ in range(2_000)]
    services = [dice.lognormvariate(-0.3, 0.8) for _ in range(2_000)]
    wait_spread, service_spread = spread_of(waits[-1000:]), spread_of(services[-1000:])
    for budget_ms in (2_000, 5_000, 10_000, 50_000, 65_000, 80_000):
        hits = sum(
            ((wait_ms + gap_ms) * waits[i] - gap_ms if wait_ms else 0) + service_ms * services[(7 * i) % 2_000]
            <= budget_ms
            for i in range(2_000)
        )
        told = on_time_probability(
            wait_ms=wait_ms,
            service_ms=service_ms,
            budget_ms=budget_ms,
            waits=wait_spread,
            services=service_spread,
            gap_ms=gap_ms,
        )
        assert told == pytest.approx(hits / 2_000, abs=0.08)


@given(
    wait_ms=st.floats(0, 1e7),
    service_ms=st.floats(0, 1e7),
    budget_ms=st.floats(-1e3, 1e8),
    more_ms=st.floats(0, 1e7),
    ratios=st.lists(st.floats(0, 100), max_size=30),
)
def test_it_lies_between_0_and_1_and_more_time_never_lowers_it(
    wait_ms: float, service_ms: float, budget_ms: float, more_ms: float, ratios: list[float]
) -> None:
    parts = spread_of(ratios)
    first, second = (
        on_time_probability(
            wait_ms=wait_ms, service_ms=service_ms, budget_ms=budget, waits=parts, services=parts, gap_ms=10
        )
        for budget in (budget_ms, budget_ms + more_ms)
    )
    assert 0 <= first <= second + 1e-9 <= 1 + 1e-6
