"""Live frames that wait until the stored ones before them have been taken in. Bounded: beyond it the rest must be read
from the stored stream, too."""

from typing import Final

from llorch_shared.wire.frames import Header


class HeldFrames:
    """At most `bytes_max` of them."""

    __slots__ = ("_bytes_max", "_frames", "_size", "incomplete")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max: Final = bytes_max
        self._frames: list[tuple[Header, bytes]] = []
        self._size = 0
        self.incomplete = False
        """Whether one that came since `clear` is not among them."""

    def add(self, header: Header, data: bytes) -> None:
        if self._size + len(data) > self._bytes_max:
            self.incomplete = True
        else:
            self._frames.append((header, data))
            self._size += len(data)

    def take(self) -> list[tuple[Header, bytes]]:
        """All, in the order in which they came; none are left."""
        frames, self._frames = self._frames, []
        self._size = 0
        return frames

    def clear(self) -> None:
        self.take()
        self.incomplete = False
