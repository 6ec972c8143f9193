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
        self._sum += self.value * (at_ms - self._since_ms)
        self._since_ms = at_ms
        self.value = value = self.value + change
        self.peak = value if value > self.peak else self.peak

    def integral(self, at_ms: float) -> float:
        """Value times milliseconds up to now."""
        return self._sum + self.value * (at_ms - self._since_ms)


class FlowUse:
    """Slots that one flow's tasks use and want now, and what was told of their integrals."""

    __slots__ = ("told_used", "told_wanted", "used", "wanted")

    def __init__(self) -> None:
        self.used: Final = Gauge()
        self.wanted: Final = Gauge()
        self.told_used = 0.0
        self.told_wanted = 0.0
