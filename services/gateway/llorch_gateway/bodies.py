"""Request bodies: read whole, bounded in size, in time, and in what all of them together may hold while they arrive."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from llorch_gateway.failures import unavailable
from llorch_shared.errors import invalid
from llorch_shared.json_values import VALUES_MAX, has_too_many

DRAINED_BODY_MAX: Final = 32 * 1024 * 1024
"""A body that is not taken, up to this size, is read and thrown away, so that its sender gets to see the answer."""
SMALL_BODY_MAX: Final = 1024 * 1024
LARGE_BODIES_MAX: Final = 256 * 1024 * 1024
"""What bodies over `SMALL_BODY_MAX` may hold together while they arrive, bytes: sixteen of the largest, at the pace of
their senders."""


class Room:
    """Bytes that are free."""

    def __init__(self, free: int) -> None:
        self.free = free

    def take(self, count: int) -> bool:
        if count > self.free:
            return False
        self.free -= count
        return True

    def give(self, count: int) -> None:
        self.free += count


LARGE: Final = Room(LARGE_BODIES_MAX)
"""Of this process."""


def check_json(headers: Mapping[bytes, bytes], what: str) -> None:
    """Raises OrchError 415."""
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        raise invalid(f"send the {what} as content-type application/json", status=415)


def check_values(data: bytes) -> None:
    """Before it is decoded. Raises OrchError 413."""
    if has_too_many(data):
        raise invalid(f"more than {VALUES_MAX} JSON values in one request; text is one value, however long", status=413)


async def read_body(
    receive: Callable[[], Awaitable[Any]],
    headers: Mapping[bytes, bytes],
    limit: int,
    *,
    within_s: float,
    room: Room = LARGE,
) -> bytes:
    """The whole body. Raises OrchError 413 when it is longer than `limit` or of too many values, 408 when it takes
    longer than `within_s`, 400 when it is cut short, 503 when too many large ones arrive at once."""
    body = _Body(limit, room)
    try:
        async with asyncio.timeout(within_s):
            return await body.read(receive, headers)
    except TimeoutError:
        raise invalid(f"the body did not arrive within {within_s:g} s", status=408) from None
    finally:
        room.give(body.held)


class _Body:
    def __init__(self, limit: int, room: Room) -> None:
        self._limit: Final = limit
        self._room: Final = room
        self._parts: list[bytes] = []
        self._size = 0
        self._taken = True
        self.held = 0
        """Taken of the room."""

    async def read(self, receive: Callable[[], Awaitable[Any]], headers: Mapping[bytes, bytes]) -> bytes:
        announced = headers.get(b"content-length", b"0")
        length = int(announced) if announced.isdigit() else 0
        while not (length > DRAINED_BODY_MAX or self._size > DRAINED_BODY_MAX):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise invalid("the request body was cut short")
            self._add(message.get("body", b""))
            if not message.get("more_body", False):
                break
        if max(self._size, length) > self._limit:
            raise invalid(f"the body is over {self._limit} bytes", status=413)
        if not self._taken:
            raise unavailable("too many large requests arrive at once")
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        check_values(data)
        return data

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._taken and (self._size > self._limit or not self._fits()):
            self._taken = False
            self._parts.clear()
        if self._taken:
            self._parts.append(part)

    def _fits(self) -> bool:
        if self._size <= SMALL_BODY_MAX:
            return True
        if not self._room.take(self._size - self.held):
            return False
        self.held = self._size
        return True
