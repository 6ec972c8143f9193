"""The times of one attempt: when it has taken too long, and how long its tokens took.

Measured by the monotonic clock itself: the event loop's is as coarse as its turns.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from llorch_shared.wire.spec import TimeoutSpec

Expired = Callable[[str], None]
"""Told why, once per limit that passed."""


class AttemptClock:
    """`start` arms the limit of the whole attempt, `submitted` that of the engine's silence, `stop` disarms both.
    `token` is on the hot path; `alive` is any other sign that the engine works on the task."""

    def __init__(self, expired: Expired) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._expired: Final = expired
        self._idle_ms = 0
        self._wall: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._budget: asyncio.TimerHandle | None = None
        self._decode_until = math.inf
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
        self._idle_ms = limits.idle_ms
        self._wall = self._loop.call_later(
            limits.wall_ms / 1000, self._expired, f"the task held its slot for {limits.wall_ms} ms"
        )

    def stop(self) -> None:
        for timer in (self._wall, self._idle, self._budget):
            if timer is not None:
                timer.cancel()

    def submitted(self) -> None:
        """May come again, when the engine was busy."""
        self._submitted_at = self._alive_at = time.monotonic()
        if self._idle is None:
            self._idle = self._loop.call_later(self._idle_ms / 1000, self._check_idle)

    def token(self) -> None:
        self._last_at = time.monotonic()
        if not self._first_at:
            self._first_at = self._last_at

    def decodes_for(self, limit_ms: int, spent: Callable[[], None]) -> None:
        """Tells when its tokens have taken so long. From the first token on."""
        self._decode_until = self._first_at + limit_ms / 1000
        self._budget = self._loop.call_later(limit_ms / 1000, spent)

    @property
    def is_spent(self) -> bool:
        """Whether a token that comes now comes too late, the timer being no more punctual than the loop."""
        return time.monotonic() > self._decode_until

    def alive(self) -> None:
        self._alive_at = time.monotonic()

    def _check_idle(self) -> None:
        idle_ms = self._idle_ms
        left_s = idle_ms / 1000 - (time.monotonic() - max(self._last_at, self._alive_at))
        if left_s <= 0.001:
            self._expired(f"the engine was silent for {idle_ms} ms")
        else:
            self._idle = self._loop.call_later(left_s, self._check_idle)
