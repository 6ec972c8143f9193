"""News for readers whose tasks wait: when one is due, and that a reader is told nothing twice.

At most one each `EVERY_S` and reader, only when something has changed, and only while there is nothing else to send:
a client that does not read is never sent one.
"""

from collections.abc import Callable
from typing import Final

from llorch_gateway.core.notice import Notice
from llorch_shared.wire.frames import encode_metrics, encode_narration

EVERY_S: Final = 2.0
"""A task that starts sooner is announced by its `started`."""

Look = Callable[[], Notice | None]


class Notices:
    """Of one reader. `look` says how its task stands, None when it waits no more. `narrate_s`: at most one narration in
    so much time; None tells none."""

    __slots__ = ("_look", "_narrate_s", "_narrated_at", "_next_at", "_told")

    def __init__(self, look: Look, *, now: float, narrate_s: float | None) -> None:
        self._look: Final = look
        self._narrate_s: Final = narrate_s
        self._next_at = now + EVERY_S
        self._narrated_at: float | None = None
        self._told: tuple[object, ...] | None = None

    def is_due(self, now: float) -> bool:
        return now >= self._next_at

    def frame(self, now: float) -> bytes:
        """What is to be sent; empty when there is nothing new."""
        self._next_at = now + EVERY_S
        found = self._look()
        if found is None or found.changes == self._told:
            return b""
        self._told = found.changes
        return encode_metrics(found.metrics) + self._narration(found, now)

    def _narration(self, found: Notice, now: float) -> bytes:
        if self._narrate_s is None:
            return b""
        if self._narrated_at is not None and now - self._narrated_at < self._narrate_s:
            return b""
        self._narrated_at = now
        return encode_narration(found.narration)
