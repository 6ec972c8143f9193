"""Frames on their way to one client: in order, taken in pieces, and thinned out when the client does not keep up."""

from typing import Final

from llorch_shared.wire.frames import restarted_at

PIECE_BYTES: Final = 32 * 1024
"""Sent at once, more or less: several pieces wait in the server for a client that does not read."""
_TOKEN_PREFIX: Final = b"id: "
_METRICS_PREFIX: Final = b"event: metrics\n"


class Outgoing:
    """`size` is in bytes."""

    __slots__ = ("_frames", "size")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def add(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.size += len(frame)

    def take(self) -> bytes:
        """Whole frames, up to `PIECE_BYTES` or one frame that is larger; empty when there are none."""
        frames = self._frames
        if not frames:
            return b""
        if self.size > PIECE_BYTES and len(frames) > 1:
            return self._piece()
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self._frames = []
        self.size = 0
        return data

    def _piece(self) -> bytes:
        count, size = 1, len(self._frames[0])
        while size + len(self._frames[count]) <= PIECE_BYTES:
            size += len(self._frames[count])
            count += 1
        data = b"".join(self._frames[:count])
        del self._frames[:count]
        self.size -= size
        return data

    def drop_tokens(self) -> None:
        self._keep([frame for frame in self._frames if not frame.startswith(_TOKEN_PREFIX)])

    def drop_metrics(self) -> int:
        """All that a reader can do without. Returns how many went."""
        before = len(self._frames)
        self._keep([frame for frame in self._frames if not _may_go(frame)])
        return before - len(self._frames)

    def _keep(self, frames: list[bytes]) -> None:
        self._frames = frames
        self.size = sum(map(len, frames))


def _may_go(frame: bytes) -> bool:
    """That the output began anew is needed to understand what follows."""
    return frame.startswith(_METRICS_PREFIX) and restarted_at(frame) is None
