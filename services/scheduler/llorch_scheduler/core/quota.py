"""What a tenant uses of a pool, and when it may start its next task.

A rate is metered by a leaky bucket: what is used drains at the rate, and a start must fit under the burst. In any
window of t seconds at most burst + rate · t is used. The burst is one second's worth of starts (at least one), and one
minute's worth of tokens; a task that is larger than the burst starts when the bucket is empty. Corrections may put the
level above the burst; then nothing starts until it has drained.
"""

from math import ceil
from typing import TYPE_CHECKING, Final

from llorch_scheduler.core.job import Job
from llorch_shared.wire.policy import TenantLimits

if TYPE_CHECKING:
    from llorch_scheduler.core.flow import Flow

UNTIL_END: Final = 2**62
"""Waits for one of the tenant's running tasks to end, however long that takes."""
_ROUNDING: Final = 1e-6


class Meter:
    """A leaky bucket. `rate` is per millisecond."""

    __slots__ = ("burst", "rate", "seen_ms", "used")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.used = 0.0
        self.seen_ms = 0

    def level(self, at_ms: int) -> float:
        if at_ms > self.seen_ms:
            self.used = max(0.0, self.used - self.rate * (at_ms - self.seen_ms))
            self.seen_ms = at_ms
        return self.used

    def opens_ms(self, amount: float, at_ms: int) -> int:
        """When `amount` fits; 0 when it does now."""
        over = self.level(at_ms) + min(amount, self.burst) - self.burst
        return 0 if over <= _ROUNDING else at_ms + max(1, ceil((over - _ROUNDING) / self.rate))

    def add(self, amount: float, at_ms: int) -> None:
        """Use, or give back with a negative amount."""
        self.used = max(0.0, self.level(at_ms) + amount)

    def drained_ms(self, at_ms: int) -> int:
        return at_ms + ceil(self.level(at_ms) / self.rate)


def starts_meter(rps: float | None, old: Meter | None) -> Meter | None:
    return _meter(rps, 1_000, old, burst_min=1.0)


def tokens_meter(tokens_per_min: int | None, old: Meter | None) -> Meter | None:
    return _meter(tokens_per_min, 60_000, old, burst_min=0.0)


def _meter(amount: float | None, window_ms: int, old: Meter | None, *, burst_min: float) -> Meter | None:
    """The level stays when the rate changes."""
    if amount is None:
        return None
    meter = old or Meter(0.0, 0.0)
    meter.rate, meter.burst = amount / window_ms, max(burst_min, float(amount))
    return meter


class TenantUse:
    """One tenant's running tasks and meters in one pool, over all its classes."""

    __slots__ = ("flows", "kv_mb", "limits", "metered", "remembered", "rps", "running", "tenant", "tokens", "waiting")

    def __init__(self, tenant: str, limits: TenantLimits) -> None:
        self.tenant: Final = tenant
        self.running = 0
        self.kv_mb = 0.0
        self.flows = 0
        self.remembered = False
        """It has no flow, but meters that still tell something."""
        self.waiting: list[Flow] = []
        """Its flows that wait for one of its tasks to end."""
        self.rps: Meter | None = None
        self.tokens: Meter | None = None
        self.limit(limits)

    def limit(self, limits: TenantLimits) -> None:
        """Other limits, at once. What is used stays used."""
        self.limits = limits
        self.rps = starts_meter(limits.rps, self.rps)
        self.tokens = tokens_meter(limits.tokens_per_min, self.tokens)
        self.metered = any(
            limit is not None for limit in (limits.max_concurrent, limits.rps, limits.tokens_per_min, limits.kv_mb)
        )

    def opens_ms(self, job: Job, at_ms: int) -> int:
        """When the job may start: 0 is now, UNTIL_END when one of the tenant's tasks has ended."""
        if not self.metered:
            return 0
        limits = self.limits
        if limits.max_concurrent is not None and self.running >= limits.max_concurrent:
            return UNTIL_END
        if limits.kv_mb is not None and self.kv_mb + job.est_kv_mb > limits.kv_mb + _ROUNDING:
            return UNTIL_END
        opens_ms = self.rps.opens_ms(1.0, at_ms) if self.rps is not None else 0
        if self.tokens is not None:
            opens_ms = max(opens_ms, self.tokens.opens_ms(job.tokens, at_ms))
        return opens_ms

    def start(self, tokens: float, kv_mb: float, at_ms: int, *, found: bool = False) -> None:
        """`found`: another scheduler started it, at a time we do not know."""
        self.running += 1
        self.kv_mb += kv_mb
        if self.rps is not None and not found:
            self.rps.add(1.0, at_ms)
        if self.tokens is not None:
            self.tokens.add(tokens, at_ms)

    def end(self, kv_mb: float, tokens_more: float, at_ms: int, *, ran: bool) -> None:
        """`tokens_more`: real tokens less the expected ones. A task that never ran has not started."""
        self.running -= 1
        self.kv_mb = self.kv_mb - kv_mb if self.running else 0.0
        if self.rps is not None and not ran:
            self.rps.add(-1.0, at_ms)
        if self.tokens is not None:
            self.tokens.add(tokens_more, at_ms)

    def quiet_ms(self, at_ms: int) -> int:
        """From when on its meters tell nothing: the time until which they must be remembered."""
        quiet_ms = 0
        for meter in (self.rps, self.tokens):
            if meter is not None and meter.level(at_ms) > 0:
                quiet_ms = max(quiet_ms, meter.drained_ms(at_ms))
        return quiet_ms


def never_fits(job: Job, limits: TenantLimits) -> bool:
    """No end of another task makes room for it: its KV cache alone is more than the tenant may have."""
    return limits.kv_mb is not None and job.est_kv_mb > limits.kv_mb
