"""May this node speak for its tasks? Only while its registry keys stand: then nobody has taken its tasks over.

    closed ── keys confirmed, ownership read again ──▶ open ── a key not confirmed in time, connection lost ──▶ closed

A key is trusted for `FENCE_SHARE` of its TTL after the *start* of its last confirmed renewal, so the node falls silent
before the server lets the key expire. Keys that are confirmed again do not open the fence: what others took over in
between has to be let go first, and only who began to read after the last gap has read enough (`epoch`).

Times are seconds of one monotonic clock that goes on while the process is stopped. What holds a frame back compares
`until` with the time, and nothing else.
"""

from math import inf
from typing import Final

FENCE_SHARE: Final = 0.8


class Fence:
    """Closed at first."""

    __slots__ = ("_keys", "_trust_s", "epoch", "until")

    def __init__(self, ttl_s: float) -> None:
        self._trust_s: Final = FENCE_SHARE * ttl_s
        self._keys: Final[dict[str, float]] = {}
        """Registry key → start of its last confirmed renewal; minus infinity when it has to be confirmed again."""
        self.until = -inf
        """Open before this time. Minus infinity: closed."""
        self.epoch = 0
        """Counts the gaps: moments from which on somebody may have taken tasks over."""

    def renewed(self, key: str, started: float, now: float) -> None:
        """The server has confirmed a renewal of `key` that began at `started`."""
        self.look(now)
        before = self._keys.get(key)
        if before is not None and started - before >= self._trust_s:
            self._gap()
        self._keys[key] = started
        if self.until > -inf:
            self.until = self._trusted_until()

    def left(self, key: str) -> None:
        """The key is given up, and nothing depends on it any more."""
        self._keys.pop(key, None)
        if self.until > -inf:
            self.until = self._trusted_until()

    def close(self) -> None:
        """The connection is lost: nothing that was confirmed before counts."""
        for key in self._keys:
            self._keys[key] = -inf
        self._gap()

    def look(self, now: float) -> bool:
        """Whether the fence was open and has just closed because a key was not confirmed in time."""
        if self.until == -inf or now < self.until:
            return False
        self._gap()
        return True

    def holds(self, now: float) -> bool:
        """Whether every key is confirmed. A node without a key holds nothing."""
        return bool(self._keys) and now < self._trusted_until()

    def open(self, epoch: int, now: float) -> bool:
        """Open, if ownership was read after the last gap and every key is still confirmed."""
        if epoch != self.epoch or not self.holds(now):
            return False
        self.until = self._trusted_until()
        return True

    def _gap(self) -> None:
        self.until = -inf
        self.epoch += 1

    def _trusted_until(self) -> float:
        return min(self._keys.values(), default=-inf) + self._trust_s
