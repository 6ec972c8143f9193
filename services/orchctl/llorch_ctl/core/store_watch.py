"""When a nats-server that stores nothing more is started again.

A stream of nats-server (2.12 to 2.15) that could not write once refuses every later write, also when there is room
again, and does not even answer the publisher; only a new life of the server ends that. It says so in its log once per
stream and life, at the moment it happens. So the log is read, and the server is started again when there has been room
for a moment: not earlier, because it could not even write down where it was, and not more often than the pauses allow,
because a disk that fails for another reason fails again. Time and free space are arguments.
"""

import math
import re
from typing import Final

import msgspec

MIB: Final = 1024 * 1024

_FAILED: Final = re.compile(
    rb"\[(?:ERR|WRN|FTL)\] (?P<what>(?:JetStream|Filestore|RAFT|Filesystem) ?.*?)"
    rb"(?:critical write error: .*?(?P<why>[^:]*)|, will be DISABLED|, disabling JetStream: .*?(?P<refused>[^:]*))$",
    re.IGNORECASE,
)
"""Anchored at the words with which the server begins, so that no name that a client chose is read as a failure."""
_STREAM: Final = re.compile(rb"> (?P<quoted>[^'>]+)'|\[(?P<bracketed>[^\]]+)\]")


class WatchPolicy(msgspec.Struct, frozen=True, kw_only=True):
    room_bytes: int = 64 * MIB
    """Free space from which on there is room: several blocks of every stream, and the server's own state."""
    stands_s: float = 2.0
    """There must be room for this long: what others delete and write again is none."""
    pause_first_s: float = 5.0
    """From one restart to the next. Doubled when a write fails although there is room: then a restart helps little."""
    pause_max_s: float = 600.0
    calm_s: float = 600.0
    """After a life of this length the pause is the first again."""


class StoreFailure(msgspec.Struct, frozen=True, kw_only=True):
    part: str
    """The stream or durable; `JetStream` when it is all of the server."""
    reason: str


class StoreWatch:
    """Every method takes the time in seconds of one monotonic clock."""

    def __init__(self, policy: WatchPolicy) -> None:
        self._policy: Final = policy
        self._judged = False
        self._room_since: float | None = None
        self._restarted: float | None = None
        self._pause_s = policy.pause_first_s
        self.failure: StoreFailure | None = None
        """The first one of this life of the server."""
        self.restarts = 0

    def begun(self) -> None:
        """A new life of the server, whoever started it."""
        self.failure = None
        self._judged = False
        self._room_since = None

    def heard(self, line: bytes) -> StoreFailure | None:
        """A line of the server's log. Returns the failure when it is the first of this life."""
        if self.failure is not None:
            return None
        self.failure = read_failure(line)
        return self.failure

    def look(self, free_bytes: int, now: float) -> bool:
        """Is the server to be started again now? True counts as done."""
        if self.failure is None:
            return False
        has_room = free_bytes >= self._policy.room_bytes
        if not self._judged:
            self._judged = True
            self._pause_s = self._next_pause(has_room, now)
        if not has_room:
            self._room_since = None
            return False
        if self._room_since is None:
            self._room_since = now
        if now - self._room_since < self._policy.stands_s or self.wait_s(now):
            return False
        self._restarted = now
        self._room_since = None
        self.restarts += 1
        return True

    def wait_s(self, now: float) -> float:
        """What is left of the pause after the last restart."""
        return 0.0 if self._restarted is None else max(0.0, self._restarted + self._pause_s - now)

    def _next_pause(self, has_room: bool, now: float) -> float:
        lived_s = math.inf if self._restarted is None else now - self._restarted
        if not has_room or lived_s >= self._policy.calm_s:
            return self._policy.pause_first_s
        return min(self._policy.pause_max_s, 2 * self._pause_s)


def read_failure(line: bytes) -> StoreFailure | None:
    """What a line of nats-server's log says of a write that failed; None for any other line."""
    found = _FAILED.search(line)
    if found is None:
        return None
    named = _STREAM.search(found["what"])
    part = next((name for name in named.groups() if name), b"") if named else b""
    reason = found["why"] or found["refused"] or b"out of resources"
    return StoreFailure(
        part=part.decode(errors="replace") or "JetStream", reason=reason.strip().decode(errors="replace")
    )
