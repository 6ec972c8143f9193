"""Frames kept by the node, to be published again when the bus came back without them.

Kept: every frame of tasks that run, and of tasks that ended in the last minute; bounded in bytes. Over the bound the
tasks that ended first go first, then the largest running one. Cost per frame: one append and two additions.
"""

from collections.abc import Iterator
from typing import Final

from llorch_shared.wire.frames import MESSAGE_BYTES_MAX

KEEP_ENDED_S: Final = 60.0
FRAME_OVERHEAD_BYTES: Final = 48


class KeptFrames:
    """Frames of one task, in the order they were published."""

    __slots__ = ("_owner", "attempt", "dropped", "ended_at", "parts", "size", "subject")

    def __init__(self, owner: "FrameRetention", subject: str, attempt: int) -> None:
        self._owner: Final = owner
        self.attempt: Final = attempt
        """Which attempt published them; what readers had before it comes first."""
        self.subject: Final = subject
        self.parts: list[bytes] = []
        self.size = 0
        self.ended_at: float | None = None
        self.dropped = False

    def add(self, data: bytes) -> None:
        if self.dropped:
            return
        self.parts.append(data)
        grown = len(data) + FRAME_OVERHEAD_BYTES
        self.size += grown
        owner = self._owner
        owner.size += grown
        if owner.size > owner.limit:
            owner.shrink()

    def messages(self, first: int = 0) -> Iterator[bytes]:
        """The same frames, from part `first` on, in as few messages as the rules of wire.frames allow: only token
        events are joined."""
        joined: list[bytes] = []
        length = 0
        for part in self.parts[first:]:
            is_tokens = part.startswith(b"id: ") and part.startswith(b"\nevent: token\n", part.find(b"\n"))
            if joined and (not is_tokens or length + len(part) > MESSAGE_BYTES_MAX):
                yield b"".join(joined)
                joined, length = [], 0
            if is_tokens:
                joined.append(part)
                length += len(part)
            else:
                yield part
        if joined:
            yield b"".join(joined)


class FrameRetention:
    """All kept frames of a node. `limit` in bytes, overhead of the objects included."""

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self.size = 0
        self._tasks: dict[str, KeptFrames] = {}

    def open(self, task_id: str, subject: str, attempt: int = 1) -> KeptFrames:
        """Start keeping; what was kept of an earlier attempt of the task is forgotten."""
        self.forget(task_id)
        kept = self._tasks[task_id] = KeptFrames(self, subject, attempt)
        return kept

    def get(self, task_id: str) -> KeptFrames | None:
        return self._tasks.get(task_id)

    def end(self, task_id: str, now: float) -> None:
        if kept := self._tasks.get(task_id):
            kept.ended_at = now

    def forget(self, task_id: str) -> None:
        if kept := self._tasks.pop(task_id, None):
            self._drop(kept)

    def expire(self, now: float) -> None:
        old = [
            task_id
            for task_id, kept in self._tasks.items()
            if kept.ended_at is not None and now - kept.ended_at >= KEEP_ENDED_S
        ]
        for task_id in old:
            self.forget(task_id)

    def all(self) -> list[KeptFrames]:
        return list(self._tasks.values())

    def shrink(self) -> None:
        while self.size > self.limit:
            ended = [(kept.ended_at, task_id) for task_id, kept in self._tasks.items() if kept.ended_at is not None]
            if ended:
                self.forget(min(ended)[1])
                continue
            largest = max((kept for kept in self._tasks.values() if not kept.dropped), key=_size, default=None)
            if largest is None:
                return
            self._drop(largest)

    def _drop(self, kept: KeptFrames) -> None:
        self.size -= kept.size
        kept.size = 0
        kept.parts.clear()
        kept.dropped = True


def _size(kept: KeptFrames) -> int:
    return kept.size
