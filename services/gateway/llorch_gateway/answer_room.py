"""What answers that are collected before they are sent may hold in memory: each of them, and all of a process together.

A small answer needs no room. A larger one takes it as it grows, and gives it back when it was sent.
"""

from types import TracebackType
from typing import Final, Self

from llorch_gateway.bodies import Room
from llorch_gateway.failures import unavailable
from llorch_shared.errors import invalid

SMALL_ANSWER_MAX: Final = 1024 * 1024
ANSWERS_MAX: Final = 256 * 1024 * 1024
"""Of all answers over `SMALL_ANSWER_MAX` of this process, bytes."""


class AnswerRoom:
    """`most`: bytes of one answer."""

    def __init__(self, most: int, *, together: int = ANSWERS_MAX) -> None:
        self._most: Final = most
        self._together: Final = together
        self._room: Final = Room(together)

    @property
    def free(self) -> int:
        return self._room.free

    def for_one(self) -> "Held":
        """Of an answer that is collected."""
        return Held(self._most, self._room)

    def for_any(self) -> "Held":
        """Of one that is there: what may be asked for bounds it."""
        return Held(self._together, self._room)


class Held:
    """What one answer holds, until the end of the `with`."""

    def __init__(self, most: int, room: Room) -> None:
        self._most: Final = most
        self._room: Final = room
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.give(self._taken)

    def grow(self, size: int) -> None:
        """It holds, or is to hold, `size` bytes. Raises OrchError: 400 when that is over the bound, 503 when other
        answers need the room."""
        if size > self._most:
            raise invalid(
                f"the whole answer would hold {size} bytes; at most {self._most} are kept for one",
                hint="stream it, or ask for less at once; vectors in base64 are a third as large",
            )
        if size > max(SMALL_ANSWER_MAX, self._taken):
            if not self._room.take(size - self._taken):
                raise unavailable("too many large answers are under way at once")
            self._taken = size
