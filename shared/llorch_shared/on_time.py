"""Chance that a task ends before its deadline, from measured distributions. Pure.

With r the ratio of real to told wait and s that of real to expected slot time, both as measured lately (`Spread`), and
g the mean time between two starts of the pool, a task that was told to wait w and is expected to take c is in time with

    P = Σ_i Σ_j p_i · q_j · [ (w + g) · r_i - g + c · s_j ≤ budget ]

p and q are the parts of the samples in each bucket of r and s; g keeps short waits comparable with long ones. The sum
over the larger of the two terms is taken within its buckets, too, as if samples lay evenly in each, so that P does not
jump. Without a wait (w = 0) only c counts. Buckets are a quarter of an octave wide, from 1/16 to 16; what is
beyond counts in the outermost.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

PREEMPT_LEAD_MS: Final = 1_000
"""How long before the last moment a slot is made free for an urgent task: a stop takes some tenths of a second."""
STOP_MS: Final = 300
"""Until a stopped task has given its slot back and another one has it."""

_PER_OCTAVE: Final = 4
_OCTAVES: Final = 4
BUCKETS: Final = 2 * _OCTAVES * _PER_OCTAVE
EDGES: Final = tuple(round(2 ** (i / _PER_OCTAVE - _OCTAVES), 9) for i in range(BUCKETS + 1))
_MIDS: Final = tuple(round(2 ** ((i + 0.5) / _PER_OCTAVE - _OCTAVES), 9) for i in range(BUCKETS))
"""Rounded: the last bits of a power differ between machines, decisions must not."""

_KEEP: Final = 0.995
"""Weight of a sample against the next one: the last 200 carry 63 %."""
_RESCALE_AT: Final = 1e9
_PRIOR_WEIGHT: Final = 8.0
_PRIOR_HALF: Final = 2 * _PER_OCTAVE
_PRIOR: Final = tuple(
    max(0.0, _PRIOR_HALF + 0.5 - abs(i + 0.5 - BUCKETS / 2)) / (_PRIOR_HALF * (_PRIOR_HALF + 1)) for i in range(BUCKETS)
)
"""Before anything was measured: a triangle from a quarter to four times what was expected."""


class Spread:
    """Decaying histogram of ratios of real to expected values. `add` is O(1)."""

    __slots__ = ("_counts", "_parts", "_total", "_unit")

    def __init__(self) -> None:
        self._counts = [_PRIOR_WEIGHT * part for part in _PRIOR]
        self._total = _PRIOR_WEIGHT
        self._unit = 1.0
        self._parts: tuple[float, ...] = ()
        """Empty when it has to be worked out."""

    def add(self, ratio: float) -> None:
        self._parts = ()
        self._unit /= _KEEP
        self._counts[bucket(ratio)] += self._unit
        self._total += self._unit
        if self._unit > _RESCALE_AT:
            self._counts = [count / self._unit for count in self._counts]
            self._total /= self._unit
            self._unit = 1.0

    def parts(self) -> tuple[float, ...]:
        """Part of the samples in each bucket, as it is told."""
        if not self._parts:
            scale = 10_000 / self._total
            self._parts = tuple([round(count * scale) / 10_000 for count in self._counts])
        return self._parts


def bucket(ratio: float) -> int:
    above = bisect_right(EDGES, ratio)
    if above > BUCKETS:
        return BUCKETS - 1
    return above - 1 if above else 0


def on_time_probability(
    *,
    wait_ms: float,
    service_ms: float,
    budget_ms: float,
    waits: Sequence[float] = (),
    services: Sequence[float] = (),
    gap_ms: float = 0.0,
) -> float:
    """P as above, 0..1. `waits` and `services` are `Spread.parts`; an empty one stands for the spread before
    anything was measured."""
    if budget_ms <= 0:
        return 0.0
    services = services if len(services) == BUCKETS else _PRIOR
    waits = waits if len(waits) == BUCKETS else _PRIOR
    if service_ms <= 0:
        service_ms = 1.0
    if wait_ms <= 0:
        ratio = budget_ms / service_ms
        return 1.0 if ratio >= EDGES[-1] else _below(_sums(services), ratio)
    wait_ms, budget_ms = wait_ms + gap_ms, budget_ms + gap_ms
    if wait_ms >= service_ms:
        outer, outer_ms, inner, inner_ms = services, service_ms, waits, wait_ms
    else:
        outer, outer_ms, inner, inner_ms = waits, wait_ms, services, service_ms
    chance = 0.0
    sums = _sums(inner)
    for part, mid in zip(outer, _MIDS, strict=True):
        if part:
            chance += part * _below(sums, (budget_ms - outer_ms * mid) / inner_ms)
    return min(1.0, chance)


def chance_by_preemption(*, service_ms: float, budget_ms: float, services: Sequence[float] = ()) -> float:
    """P of a task for which another one is stopped if it must be, at most PREEMPT_LEAD_MS before the last moment at
    which it is expected to be in time, and which starts STOP_MS later: only its own slot time c counts,

    P = Σ_j q_j · [ c · s_j ≤ min(budget, c + lead) - stop ]
    """
    left_ms = min(budget_ms, service_ms + PREEMPT_LEAD_MS) - STOP_MS
    return on_time_probability(wait_ms=0.0, service_ms=service_ms, budget_ms=left_ms, services=services)


def _sums(parts: Sequence[float]) -> tuple[float, ...]:
    """Samples up to each edge. Added one by one: `sum` rounds differently from release to release of Python."""
    return tuple(accumulate(parts, initial=0.0))


def _below(sums: Sequence[float], ratio: float) -> float:
    """Part of the samples that are at most `ratio`."""
    if ratio <= EDGES[0]:
        return 0.0
    if ratio >= EDGES[-1]:
        return 1.0
    at = bucket(ratio)
    inside = (ratio - EDGES[at]) / (EDGES[at + 1] - EDGES[at])
    return min(1.0, (sums[at] + (sums[at + 1] - sums[at]) * inside) / max(sums[-1], 1e-9))
