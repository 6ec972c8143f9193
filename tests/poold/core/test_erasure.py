"""How an engine that erases nothing is treated."""

from llorch_poold.core.erasure import ENOUGH, PAUSE_FIRST_S, PAUSE_MAX_S, ErasurePatience


def failed(patience: ErasurePatience, times: int, now: float = 0.0) -> float:
    """Asked as soon as it may be; returns the time."""
    for _ in range(times):
        now += patience.pause_s(now)
        assert patience.failed(now, now + 5)
        now += 5
    return now


def test_it_is_asked_ever_less_often() -> None:
    patience, pauses, now = ErasurePatience(), [], 0.0
    for _ in range(12):
        now = failed(patience, 1, now)
        pauses.append(patience.pause_s(now))
    assert pauses[:4] == [PAUSE_FIRST_S, 2 * PAUSE_FIRST_S, 4 * PAUSE_FIRST_S, 8 * PAUSE_FIRST_S]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S


def test_slots_that_fail_at_once_are_one_failure() -> None:
    patience = ErasurePatience()
    assert patience.failed(1.0, 6.0)
    assert not patience.failed(1.0, 6.1)
    assert patience.failures == 1


def test_one_that_erases_again_has_failed_never() -> None:
    patience = ErasurePatience()
    now = failed(patience, ENOUGH - 1)
    patience.erased()
    assert (patience.failures, patience.pause_s(now)) == (0, 0.0)
    failed(patience, ENOUGH - 1, now)
    assert not patience.is_over


def test_it_is_replaced_once_until_an_engine_erases() -> None:
    patience = ErasurePatience()
    now = failed(patience, ENOUGH)
    assert patience.is_over
    patience.replaced()
    patience.new_engine()
    now = failed(patience, ENOUGH - 1, now)
    assert not patience.is_hopeless
    now = failed(patience, 1, now)
    assert (patience.is_over, patience.is_hopeless) == (False, True)
    patience.erased()
    failed(patience, ENOUGH, now)
    assert patience.is_over
