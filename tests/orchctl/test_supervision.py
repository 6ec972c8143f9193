"""When a process is started again."""

import pytest

from llorch_ctl.core.supervision import Life, Phase, RestartPolicy

POLICY = RestartPolicy(initial_s=1, factor=2, max_s=8, spread=0.5, stable_after_s=30, starts_max=3)


def started(life: Life, *, ready_at: float | None = None) -> None:
    life.started()
    if ready_at is not None:
        life.became_ready(ready_at)


def test_delays_double_up_to_the_limit() -> None:
    life = Life(POLICY)
    delays = []
    for second in range(6):
        started(life, ready_at=second)
        delays.append(life.ended(second + 0.5, luck=0))
    assert delays == [1, 2, 4, 8, 8, 8]
    assert life.restarts == 5


@pytest.mark.parametrize(("luck", "delay"), [(0.0, 4.0), (0.5, 3.0), (0.999, 2.002)])
def test_luck_takes_at_most_the_spread_off(luck: float, delay: float) -> None:
    assert POLICY.delay_s(3, luck) == pytest.approx(delay)


def test_a_stable_run_forgives_earlier_failures() -> None:
    life = Life(POLICY)
    for second in range(4):
        started(life, ready_at=second)
        life.ended(second + 1, luck=0)
    started(life, ready_at=100)
    assert life.ended(130, luck=0) == 1


def test_a_process_that_never_becomes_ready_is_given_up() -> None:
    life = Life(POLICY)
    for _ in range(2):
        started(life)
        assert life.ended(0, luck=0) is not None
        assert life.phase is Phase.BACKOFF
    started(life)
    assert life.ended(0, luck=0) is None
    assert life.phase is Phase.FAILED


def test_a_process_that_was_ready_once_always_comes_back() -> None:
    life = Life(POLICY)
    started(life, ready_at=0)
    for second in range(1, 1000):
        assert life.ended(second, luck=0) is not None
        started(life)
    assert POLICY.delay_s(100_000, 0) == POLICY.max_s


def test_an_end_that_was_wished_is_no_failure() -> None:
    life = Life(POLICY)
    started(life, ready_at=0)
    life.stop_wished()
    assert life.ended(1, luck=0) is None
    assert life.phase is Phase.STOPPED
    assert life.failures == 0


def test_a_restart_that_was_wished_is_no_failure_and_comes_at_once() -> None:
    life = Life(POLICY)
    started(life, ready_at=0)
    assert life.ended(0.5, luck=0) == 1
    started(life, ready_at=1)
    life.restart_wished()
    assert life.ended(1.5, luck=0) == 0
    started(life, ready_at=2)
    assert life.ended(2.5, luck=0) == 2
    assert life.restarts == 2
