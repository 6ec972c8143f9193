"""When an attempt has taken too long, with the clock as the test says."""

import pytest

from llorch_poold.attempt_clock import AttemptClock
from llorch_shared.wire.spec import TimeoutSpec

IDLE_MS = 60_000


class Clock:
    """Stands until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr("llorch_poold.attempt_clock.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def expired_after(clock: Clock, *signs: str) -> list[str]:
    """What is told when a sign of life comes 50 s after the last, and then 50 s nothing."""
    told: list[str] = []
    attempt = AttemptClock(told.append)
    attempt.start(TimeoutSpec(idle_ms=IDLE_MS))
    attempt.submitted()
    for sign in signs:
        clock.now += 50
        getattr(attempt, sign)()
        attempt._check_idle()
    assert not told
    clock.now += 61
    attempt._check_idle()
    attempt.stop()
    return told


@pytest.mark.parametrize("signs", [(), ("token",), ("alive",), ("alive", "alive", "token", "token")])
async def test_an_engine_is_idle_when_nothing_comes_for_so_long(clock: Clock, signs: tuple[str, ...]) -> None:
    assert await expired_after(clock, *signs) == [f"the engine was silent for {IDLE_MS} ms"]


async def test_waiting_for_its_turn_is_not_the_engines_silence(clock: Clock) -> None:
    told: list[str] = []
    attempt = AttemptClock(told.append)
    attempt.start(TimeoutSpec(idle_ms=IDLE_MS))
    clock.now += 100
    attempt.submitted()
    clock.now += 50
    attempt._check_idle()
    attempt.stop()
    assert not told


async def test_signs_of_life_are_no_tokens(clock: Clock) -> None:
    attempt = AttemptClock(lambda _: None)
    attempt.start(TimeoutSpec())
    attempt.submitted()
    for tick in (attempt.alive, attempt.token, attempt.token, attempt.alive):
        clock.now += 2
        tick()
    attempt.stop()
    assert (attempt.first_token_s, attempt.decode_s) == (4, 2)
