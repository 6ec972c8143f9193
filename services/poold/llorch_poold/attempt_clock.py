"""The times of one attempt: when it has taken too long, and how long its tokens took.

Measured by the monotonic clock itself: the event loop's is as coarse as its turns.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from llorch_shared.wire.spec import TimeoutSpec

Expired = Callable[[str], None]
"""Told why, once per limit that passed."""


class AttemptClock:
    """`start` arms the limits, `stop` disarms them. `token` is on the hot path; `alive` is any other sign that the
    engine works on the task."""

    def __init__(self, expired: Expired) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._expired: Final = expired
        self._timers: list[asyncio.TimerHandle] = []
        self._submitted_at = 0.0
        self._first_at = 0.0
        self._last_at = 0.0
        self._alive_at = 0.0

    @property
    def first_token_s(self) -> float:
        """From the engine call to the first token."""
        return self._first_at - self._submitted_at

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self._last_at - self._first_at if self._first_at else 0.0

    def start(self, limits: TimeoutSpec) -> None:
        self._alive_at = time.monotonic()
        self._timers = [
            self._loop.call_later(
                limits.wall_ms / 1000, self._expired, f"the task held its slot for {limits.wall_ms} ms"
            ),
            self._loop.call_later(limits.idle_ms / 1000, self._check_idle, limits.idle_ms),
        ]

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def submitted(self) -> None:
        self._submitted_at = time.monotonic()

    def token(self) -> None:
        self._last_at = time.monotonic()
        if not self._first_at:
            self._first_at = self._last_at

    def alive(self) -> None:
        self._alive_at = time.monotonic()

    def _check_idle(self, idle_ms: int) -> None:
        left_s = idle_ms / 1000 - (time.monotonic() - max(self._last_at, self._alive_at))
        if left_s <= 0.001:
            self._expired(f"the engine was silent for {idle_ms} ms")
        else:
            self._timers[1] = self._loop.call_later(left_s, self._check_idle, idle_ms)
