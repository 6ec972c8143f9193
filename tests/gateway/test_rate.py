"""The token bucket, with time as an argument."""

import pytest

from llorch_gateway.core.rate import Bucket


def test_a_burst_passes_at_once_and_then_one_per_interval() -> None:
    bucket = Bucket(10, 3)
    assert [bucket.take(100.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(100.0) == pytest.approx(0.1)
    assert bucket.take(100.05) == pytest.approx(0.05)
    assert bucket.take(100.1) == 0
    assert bucket.take(100.1) == pytest.approx(0.1)


def test_what_is_refused_is_not_counted() -> None:
    bucket = Bucket(1, 1)
    assert bucket.take(5.0) == 0
    assert [bucket.take(5.5) for _ in range(100)] == [pytest.approx(0.5)] * 100
    assert bucket.take(6.0) == 0


def test_who_comes_back_when_told_passes() -> None:
    bucket, now = Bucket(7, 2), 1000.0
    for _ in range(500):
        if wait := bucket.take(now):
            now += wait
            assert bucket.take(now) == 0


@pytest.mark.parametrize(("per_s", "burst"), [(0.5, 1), (3, 7), (1000, 50)])
def test_the_long_run_is_the_rate_and_a_pause_gives_no_more_than_the_burst(per_s: float, burst: int) -> None:
    bucket = Bucket(per_s, burst)
    passed = sum(bucket.take(50 + step * 0.25 / per_s) == 0 for step in range(4000))
    assert passed == pytest.approx(1000 + burst, abs=2)
    passed = sum(bucket.take(1e7) == 0 for _ in range(burst + 20))
    assert passed == burst
