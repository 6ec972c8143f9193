"""When a replica renews its registry key, and which renewals bring a report.

A renewal that says nothing is heard by nobody, so only those that can bring a report are planned on the clock; the
others are counted when somebody asks when the last one was.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from llorch_scheduler.simulator.clock import Clock

BEAT_MS: Final = 1_000.0
SILENT_BEATS: Final = 5
"""Renewals after which a report says at least which tasks are held."""


class Heartbeat:
    """Calls `report` at the beat that follows some news, and at each `SILENT_BEATS` after the last report."""

    __slots__ = ("_beats", "_clock", "_has_news", "_next_ms", "_plan", "_planned_ms", "_renewed_ms", "_report")

    def __init__(self, clock: Clock, *, has_news: Callable[[], bool], report: Callable[[], None]) -> None:
        self._clock: Final = clock
        self._has_news: Final = has_news
        self._report: Final = report
        self._beats = 0
        """Since the last report, as far as they have been counted."""
        self._renewed_ms = 0.0
        self._next_ms = inf
        """The first beat that has not been counted."""
        self._planned_ms = inf
        """The beat that is planned …"""
        self._plan = 0
        """… and the number of its plan."""

    def begin(self, first_ms: float) -> None:
        """A life begins; its first beat comes after `first_ms`."""
        self._next_ms = self._planned_ms = self._clock.now_ms + first_ms
        self._plan = self._clock.at(self._planned_ms, self._beat, self._planned_ms)

    def end(self) -> float:
        """The life ends. Returns when the key was renewed last."""
        self._count()
        self._next_ms = self._planned_ms = inf
        return self._renewed_ms

    def reported(self) -> None:
        """Which renews the key, at any time."""
        self._count()
        self._renewed_ms = self._clock.now_ms
        self._beats = 0

    def news(self) -> None:
        """The very next beat brings it, and has the place of the one that was planned among equal times."""
        self._count()
        if self._planned_ms > self._next_ms:
            self._planned_ms = self._next_ms
            self._clock.at(self._planned_ms, self._beat, self._planned_ms, instead_of=self._plan)

    def _beat(self, planned_ms: float) -> None:
        if planned_ms != self._planned_ms:
            return
        self._count()
        self._renewed_ms = planned_ms
        self._next_ms = planned_ms + BEAT_MS
        self._beats += 1
        if self._beats >= SILENT_BEATS or self._has_news():
            self._report()
        self._planned_ms = self._next_ms
        if not self._has_news():
            for _ in range(SILENT_BEATS - 1 - self._beats):
                self._planned_ms += BEAT_MS
        self._plan = self._clock.at(self._planned_ms, self._beat, self._planned_ms)

    def _count(self) -> None:
        """The beats before now."""
        while self._next_ms < self._clock.now_ms:
            self._renewed_ms = self._next_ms
            self._next_ms += BEAT_MS
            self._beats += 1
