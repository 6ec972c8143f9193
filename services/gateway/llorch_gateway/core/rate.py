"""How often something may happen: a token bucket, as the one time at which it would be full again. Pure."""

from typing import Final

ROUNDING_S: Final = 1e-6
"""A clock of seconds since a boot long ago has no finer digits; who comes when told must pass."""


class Bucket:
    """`per_s` in the long run, up to `burst` at once after a pause. Times are seconds of one clock."""

    __slots__ = ("_full_at", "burst", "per_s")

    def __init__(self, per_s: float, burst: int) -> None:
        self.per_s: Final = per_s
        self.burst: Final = burst
        self._full_at = 0.0

    def take(self, now: float) -> float:
        """0 when this one may happen, and it is counted; else how many seconds until one may, and nothing is."""
        full_at = max(self._full_at, now) + 1 / self.per_s
        wait = full_at - now - self.burst / self.per_s
        if wait > ROUNDING_S:
            return wait
        self._full_at = full_at
        return 0.0
