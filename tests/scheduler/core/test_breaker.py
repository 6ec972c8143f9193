"""When a pool refuses because it starts too late."""

import pytest

from llorch_scheduler.core.breaker import Breaker, Level, Shed
from llorch_shared.wire.policy import BreakerSpec
from llorch_shared.wire.task import Priority

SPEC = BreakerSpec(start_ms=1_000, hold_ms=10_000)
INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def run(breaker: Breaker, from_ms: int, for_ms: int, *, late_of_ten: int, oldest_wait_ms: int = 0) -> int:
    """Ten starts a second, a look each second; the time it ends at."""
    for at_ms in range(from_ms, from_ms + for_ms, 100):
        late = (at_ms // 100) % 10 < late_of_ten
        breaker.started(5_000 if late else 10, INTERACTIVE, at_ms, SPEC)
        if at_ms % 1_000 == 0:
            breaker.step(at_ms, SPEC, oldest_wait_ms=oldest_wait_ms)
    return from_ms + for_ms


def level_of(breaker: Breaker) -> Level:
    """A call, because it changes between two looks."""
    return breaker.level


def test_without_an_objective_nothing_is_shed() -> None:
    breaker = Breaker()
    breaker.started(10**6, INTERACTIVE, 0, None)
    assert breaker.step(10**6, None, oldest_wait_ms=10**6) is Level.CLOSED
    assert breaker.shed(BATCH, 10**6, None) == Shed()


def test_it_opens_for_batch_first_and_for_all_when_that_does_not_help() -> None:
    breaker = Breaker()
    at_ms = run(breaker, 0, 9_000, late_of_ten=9)
    assert level_of(breaker) is Level.CLOSED
    at_ms = run(breaker, at_ms, 4_000, late_of_ten=9)
    assert level_of(breaker) is Level.SHEDS_BATCH
    assert breaker.shed(BATCH, at_ms, SPEC).reason.endswith("of the interactive tasks start later than 1000 ms")
    assert breaker.shed(INTERACTIVE, at_ms, SPEC) == Shed()
    at_ms = run(breaker, at_ms, 12_000, late_of_ten=9)
    assert level_of(breaker) is Level.SHEDS_ALL
    assert breaker.shed(INTERACTIVE, at_ms, SPEC).for_ms == SPEC.hold_ms


def test_it_closes_level_by_level_after_it_was_healthy_for_long_enough() -> None:
    breaker = Breaker()
    at_ms = run(breaker, 0, 30_000, late_of_ten=10)
    assert level_of(breaker) is Level.SHEDS_ALL
    levels = []
    for _ in range(150):
        at_ms = run(breaker, at_ms, 1_000, late_of_ten=0)
        levels.append(breaker.level)
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] is Level.CLOSED
    assert levels.count(Level.SHEDS_BATCH) >= SPEC.hold_ms // 1_000


@pytest.mark.parametrize("late_of_ten", [2, 3, 4])
def test_between_broken_and_healthy_nothing_changes(late_of_ten: int) -> None:
    closed = Breaker()
    run(closed, 0, 120_000, late_of_ten=late_of_ten)
    assert closed.level is Level.CLOSED
    opened = Breaker()
    at_ms = run(opened, 0, 14_000, late_of_ten=10)
    assert opened.level is Level.SHEDS_BATCH
    run(opened, at_ms, 120_000, late_of_ten=late_of_ten)
    assert opened.level >= Level.SHEDS_BATCH


def test_it_does_not_flap_when_health_comes_and_goes() -> None:
    breaker, at_ms, changes, before = Breaker(), 0, 0, Level.CLOSED
    for turn in range(60):
        at_ms = run(breaker, at_ms, 5_000, late_of_ten=10 if turn % 2 else 0)
        changes += breaker.level is not before
        before = breaker.level
    assert changes <= 2


def test_a_pool_that_starts_nothing_is_broken_too() -> None:
    breaker = Breaker()
    for at_ms in range(0, 25_000, 1_000):
        breaker.step(at_ms, SPEC, oldest_wait_ms=at_ms)
    assert breaker.level is Level.SHEDS_ALL


def test_when_all_is_shed_and_nothing_waits_it_closes_again() -> None:
    breaker = Breaker()
    at_ms = run(breaker, 0, 30_000, late_of_ten=10)
    for _ in range(600):
        at_ms += 1_000
        breaker.step(at_ms, SPEC)
    assert breaker.level is Level.CLOSED


def test_batch_tasks_that_start_late_break_nothing() -> None:
    breaker = Breaker()
    for at_ms in range(0, 60_000, 100):
        breaker.started(10**6, BATCH, at_ms, SPEC)
        breaker.step(at_ms, SPEC)
    assert breaker.level is Level.CLOSED


def test_an_objective_that_is_taken_away_closes_at_once() -> None:
    breaker = Breaker()
    at_ms = run(breaker, 0, 30_000, late_of_ten=10)
    assert breaker.step(at_ms, None) is Level.CLOSED
    assert breaker.shed(BATCH, at_ms, SPEC) == Shed()


def test_a_client_is_told_to_stay_away_for_as_long_as_closing_takes() -> None:
    breaker = Breaker()
    at_ms = run(breaker, 0, 13_000, late_of_ten=10)
    assert breaker.shed(BATCH, at_ms, SPEC).for_ms == SPEC.hold_ms
    while breaker.shed(BATCH, at_ms, SPEC).for_ms == SPEC.hold_ms:
        at_ms = run(breaker, at_ms, 1_000, late_of_ten=0)
    assert 1_000 <= breaker.shed(BATCH, at_ms, SPEC).for_ms < SPEC.hold_ms
