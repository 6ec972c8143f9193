"""When tasks arrive: open processes that do not care how it goes, closed ones whose users wait for an answer, traces.

An open process is an endless stream of times; a closed loop only has users and thinking times, because when its next
task comes depends on when the last one ended.
"""

from collections.abc import Iterator
from random import Random

import msgspec

from llorch_shared.wire.task import Priority


class Poisson(msgspec.Struct, frozen=True, tag="poisson"):
    """Independent arrivals at `per_s` tasks a second."""

    per_s: float

    def times_ms(self, dice: Random) -> Iterator[float]:
        now_s = 0.0
        while True:
            now_s += dice.expovariate(self.per_s)
            yield 1000 * now_s


class Bursts(msgspec.Struct, frozen=True, kw_only=True, tag="bursts"):
    """Poisson at `per_s`, and at `burst_per_s` during the first `lasts_s` of every `every_s` seconds."""

    per_s: float
    burst_per_s: float
    every_s: float
    lasts_s: float

    def times_ms(self, dice: Random) -> Iterator[float]:
        highest = max(self.per_s, self.burst_per_s)
        now_s = 0.0
        while True:
            # Thinning: draw at the highest rate, keep each arrival with the share that its moment has of that rate.
            now_s += dice.expovariate(highest)
            rate = self.burst_per_s if now_s % self.every_s < self.lasts_s else self.per_s
            if dice.random() * highest < rate:
                yield 1000 * now_s


class ClosedLoop(msgspec.Struct, frozen=True, kw_only=True, tag="closed_loop"):
    """`users` who read an answer for `think_s` on average (exponential) before they ask again."""

    users: int
    think_s: float

    def think_ms(self, dice: Random) -> float:
        return 1000 * dice.expovariate(1 / self.think_s) if self.think_s > 0 else 0.0


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What else is known of a task that a live system ran."""

    max_tokens: int
    deadline_ms: int
    session: str
    served_ms: float
    """How long it held its slot."""
    cancel_ms: float = -1.0
    """When its client cancelled, from admission on; negative: never."""
    waited_ms: float = -1.0
    """From admission to the engine; negative when no engine had it."""


class TraceRow(msgspec.Struct, frozen=True):
    """One recorded request. `at_ms` counts from the first row."""

    at_ms: float
    prompt: int
    output: int
    tenant: str
    priority: Priority
    recorded: Recorded | None = None


class Trace(msgspec.Struct, frozen=True, tag="trace"):
    """Recorded requests in order of time; they bring sizes, tenant and class with them."""

    rows: tuple[TraceRow, ...]


Arrivals = Poisson | Bursts | ClosedLoop | Trace
