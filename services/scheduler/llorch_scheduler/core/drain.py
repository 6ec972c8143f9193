"""How fast places of one class's queue are given back, while tasks wait in it.

    rate = places · slots / slot time that passed, with PRIOR places expected at the pool's own turn

per slot, so that a lost or new replica counts at once. It is less one standard error, and less still when shorter tasks
leave than join: in the long run as many leave as join for the same slot time.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Final

DRAIN_KEEP: Final = 0.998
"""Of the places given back, which are promised far ahead: the last 500."""
ASKED_KEEP: Final = 0.98
"""Of what is expected of those that join: as fast as expectations themselves change."""
_PRIOR: Final = 4.0


@dataclass(frozen=True, slots=True)
class Drain:
    """How places of a queue are given back."""

    per_ms: float
    """Places per millisecond, less one standard error: a promise must hold. 0 while unknown."""
    watched_ms: float
    """For how long it has been measured."""
    begins_ms: int = 0
    """Nothing is given back before so much time has passed."""


class DrainMeter:
    """Places of one class's queue that are given back while tasks wait in it; the slot time that passes meanwhile."""

    __slots__ = ("_last_ms", "asked", "asked_ms", "count", "slot_time_ms", "watched_ms", "work_ms")

    def __init__(self) -> None:
        self.count = self.slot_time_ms = self.work_ms = self.watched_ms = 0.0
        self.asked = self.asked_ms = 0.0
        """Tasks that joined it lately, and the slot time expected of them."""
        self._last_ms = -1

    def joined(self, cost_ms: float) -> None:
        self.asked = ASKED_KEEP * self.asked + 1
        self.asked_ms = ASKED_KEEP * self.asked_ms + cost_ms

    @property
    def expected_ms(self) -> float:
        """Slot time expected of those that joined lately; 0 when none did."""
        return self.asked_ms / self.asked if self.asked else 0.0

    @property
    def measures(self) -> bool:
        """Whether the next place that is given back counts, and what was expected of its task."""
        return self._last_ms >= 0

    def interrupted(self) -> None:
        """What has passed since the last place does not count."""
        self._last_ms = -1

    def gave_back(self, at_ms: int, cost_ms: float, *, slots: int, others_wait: bool) -> None:
        if self._last_ms >= 0 and slots > 0:
            self.count = DRAIN_KEEP * self.count + 1
            self.slot_time_ms = DRAIN_KEEP * self.slot_time_ms + (at_ms - self._last_ms) * slots
            self.work_ms = DRAIN_KEEP * self.work_ms + cost_ms
            self.watched_ms += at_ms - self._last_ms
        self._last_ms = at_ms if others_wait else -1

    def told(self, *, slots: int, turn_ms: float, share: float, begins_ms: int) -> Drain:
        """`turn_ms`: slot time between two starts of the pool, 0 while unknown. `share`: of the class, by weight."""
        expected_ms = self.expected_ms
        prior_ms = (turn_ms or expected_ms) / share if share > 0 else 0.0
        if slots <= 0 or prior_ms <= 0:
            return Drain(0.0, 0.0, begins_ms)
        count = self.count + _PRIOR
        per_ms = count / (self.slot_time_ms + _PRIOR * prior_ms) * slots
        if expected_ms > 0 and self.work_ms > 0:
            per_ms *= min(1.0, self.work_ms / self.count / expected_ms)
        return Drain(per_ms * (1 - 1 / sqrt(count)), self.watched_ms, begins_ms)
