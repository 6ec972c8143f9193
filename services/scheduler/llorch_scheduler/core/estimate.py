"""How long tasks hold a slot, as an exponentially weighted moving average per pool.

    mean ← sample                                 for the first sample
    mean ← mean + ALPHA · (sample - mean)         afterwards, ALPHA = 0.2

A sample is the time from the decision to place a task to its final record: what the slot was not available for, bus
hops included. With ALPHA = 0.2 the last ten tasks carry 89 % of the weight, so a change of model or load shows
within a few tasks while one odd task moves the mean by a fifth of its difference.
"""

from typing import Final

ALPHA: Final = 0.2


class SlotTime:
    """Mean time a task holds a slot, milliseconds; 0 until the first one ended."""

    __slots__ = ("mean_ms",)

    def __init__(self) -> None:
        self.mean_ms = 0.0

    def add(self, sample_ms: int) -> None:
        sample = float(max(0, sample_ms))
        self.mean_ms = sample if self.mean_ms == 0 else self.mean_ms + ALPHA * (sample - self.mean_ms)
