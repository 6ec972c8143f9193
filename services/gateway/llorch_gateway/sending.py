"""Whole answers on their way to a client: in pieces, each of which it has to take within a time. The server keeps what
a client does not take, a whole body of any size too, and an HTTP/2 client may never say that it takes more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any, Final

from llorch_gateway.answer_room import AnswerRoom
from llorch_gateway.http_errors import error_reply
from llorch_shared.errors import OrchError

log = logging.getLogger(__name__)

PIECE_BYTES: Final = 64 * 1024

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]


async def send_parts(send: _Send, parts: Sequence[bytes], *, stall_s: float) -> None:
    """The body behind a start that was sent. What a client does not take within `stall_s` a piece breaks off."""
    if sum(map(len, parts)) <= PIECE_BYTES:
        await send({"type": "http.response.body", "body": b"".join(parts)})
        return
    try:
        for piece in _pieces(parts):
            async with asyncio.timeout(stall_s):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except TimeoutError:
        log.info("a client took nothing of its answer for %g s, and is sent no more of it", stall_s)
        return
    await send({"type": "http.response.body", "body": b""})


def _pieces(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Small parts together, large ones cut."""
    small: list[bytes] = []
    size = 0
    for part in parts:
        if small and size + len(part) > PIECE_BYTES:
            yield b"".join(small)
            small, size = [], 0
        if len(part) > PIECE_BYTES:
            yield from (part[start : start + PIECE_BYTES] for start in range(0, len(part), PIECE_BYTES))
        else:
            small.append(part)
            size += len(part)
    if small:
        yield b"".join(small)


class InPieces:
    """Takes the answer of an application that sends bodies whole. Its start waits for the body: one for which there is
    no room is refused instead."""

    def __init__(self, send: _Send, answers: AnswerRoom, correlation_id: str, *, stall_s: float) -> None:
        self._send: Final = send
        self._answers: Final = answers
        self._correlation: Final = correlation_id
        self._stall_s: Final = stall_s
        self._start: _Message | None = None

    async def __call__(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        body = message.get("body", b"")
        with self._answers.for_any() as held:
            try:
                held.grow(len(body))
            except OrchError as error:
                status, headers, body = error_reply(error, self._correlation)
                self._start = {"type": "http.response.start", "status": status, "headers": headers}
            if self._start is not None:
                await self._send(self._start)
                self._start = None
            if message.get("more_body", False):
                await self._send(message)
            else:
                await send_parts(self._send, [body], stall_s=self._stall_s)
