"""A value over time, and its integral."""

from typing import Final


class Gauge:
    __slots__ = ("_since_ms", "_sum", "peak", "value")

    def __init__(self) -> None:
        self.value = 0
        self.peak = 0
        self._sum = 0.0
        self._since_ms = 0.0

    def add(self, change: int, at_ms: float) -> None:
        value = self.value
        self._sum += value * (at_ms - self._since_ms)
        self._since_ms = at_ms
        self.value = value = value + change
        self.peak = value if value > self.peak else self.peak

    def integral(self, at_ms: float) -> float:
        """Value times milliseconds up to now."""
        return self._sum + self.value * (at_ms - self._since_ms)


class FlowUse:
    """Slots that one flow's tasks use and want now, and what was told of their integrals; and how its tasks ended."""

    __slots__ = ("done", "due", "met", "tokens_out", "told_used", "told_wanted", "used", "wanted")

    def __init__(self) -> None:
        self.used: Final = Gauge()
        self.wanted: Final = Gauge()
        self.told_used = 0.0
        self.told_wanted = 0.0
        self.done = self.tokens_out = 0
        """Tasks that are done, and what they generated."""
        self.due = self.met = 0
        """Tasks that ended otherwise than cancelled, and those of them that were done within their deadline."""
