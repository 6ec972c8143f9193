"""May this node speak for its tasks? Only while its registry keys stand: then nobody has taken its tasks over.

    closed ── keys confirmed, ownership read again ──▶ open ── a key not confirmed in time, connection lost ──▶ closed

A key is trusted for `FENCE_SHARE` of its TTL after the *start* of its last confirmed renewal, so the node falls silent
before the server lets the key expire. Keys that are confirmed again do not open the fence: what others took over in
between has to be let go first, and only who began to read after the last gap has read enough (`epoch`).

A node that stays cut off goes on with its tasks for a while: after a restart of the bus they are its own as before,
and only their tokens were late. Once the server must have let a key expire, and a grace has passed, others have them,
and its engines work for nobody (`given_away_at`).

Times are seconds of one monotonic clock that goes on while the process is stopped. What holds a frame back compares
`until` with the time, and nothing else.
"""

from math import inf
from typing import Final

FENCE_SHARE: Final = 0.8


class Fence:
    """Closed at first."""

    __slots__ = ("_grace_s", "_keys", "_last", "_trust_s", "_ttl_s", "epoch", "until")

    def __init__(self, ttl_s: float, *, grace_s: float = inf) -> None:
        """`grace_s`: how long after a key's expiry its tasks are still taken for the node's own."""
        self._ttl_s: Final = ttl_s
        self._grace_s: Final = grace_s
        self._trust_s: Final = FENCE_SHARE * ttl_s
        self._last: Final[dict[str, float]] = {}
        """Registry key → start of its last confirmed renewal, whatever became of the connection since."""
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
        self._keys[key] = self._last[key] = started
        if self.until > -inf:
            self.until = self._trusted_until()

    def left(self, key: str) -> None:
        """The key is given up, and nothing depends on it any more."""
        self._keys.pop(key, None)
        self._last.pop(key, None)
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

    @property
    def given_away_at(self) -> float:
        """From then on the node's tasks are taken for somebody else's, if no key is confirmed before."""
        return min(self._last.values(), default=inf) + self._ttl_s + self._grace_s

    def _gap(self) -> None:
        self.until = -inf
        self.epoch += 1

    def _trusted_until(self) -> float:
        return min(self._keys.values(), default=-inf) + self._trust_s
