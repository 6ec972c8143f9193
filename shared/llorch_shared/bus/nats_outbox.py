"""Collects what is written in one loop iteration and gives it to the socket at once.

One write for many messages costs the sender, the server and the readers less than many writes. A process may be stopped
between the two; for who must not say anything late there is a `SendLimit`.
"""

import asyncio
import logging
from math import inf
from typing import Any, Final, Protocol

from llorch_shared.bus.nats_client import OUTBOUND_BYTES_MAX, BusClient

log = logging.getLogger(__name__)


class SendLimit(Protocol):
    def until(self) -> float:
        """Before when what is written now has to be sent, by a clock that is its own; infinity: whenever."""

    def is_over(self, until: float) -> bool: ...


class Outbox:
    """What is not sent within its limit is dropped, and the connection with it."""

    def __init__(self, client: BusClient, *, limit: SendLimit | None = None) -> None:
        self._client: Final = client
        self._limit: Final = limit
        self._until = inf
        self._loop: Final = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._bytes = 0

    def write(self, chunk: bytes) -> bool:
        """False when the server has not read `OUTBOUND_BYTES_MAX` of what it was sent before."""
        if self._bytes > OUTBOUND_BYTES_MAX:
            self._bytes = self._unsent()
            if self._bytes > OUTBOUND_BYTES_MAX:
                return False
        if not self._chunks:
            self._loop.call_soon(self.send)
            if self._limit is not None:
                self._until = self._limit.until()
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        return True

    def send(self) -> None:
        """To the socket, now."""
        chunks, self._chunks = self._chunks, []
        if chunks and self._limit is not None and self._limit.is_over(self._until):
            log.warning("what this process wrote before it was stopped is not sent", extra={"action": "bus.late"})
            self._client.drop_connection()
            return
        transport: Any = self._client._transport
        if chunks and transport is not None and self._client.is_connected and not _closed(transport):
            transport.write(b"".join(chunks))
        self._bytes = self._unsent()

    def clear(self) -> None:
        self._chunks.clear()
        self._bytes = 0

    def _unsent(self) -> int:
        waiting = sum(map(len, self._chunks))
        writer = getattr(self._client._transport, "_io_writer", None)
        return waiting + (int(writer.transport.get_write_buffer_size()) if writer is not None else 0)


def _closed(transport: Any) -> bool:
    """The socket may be gone before the client knows: what was to be sent is dropped, as while disconnected."""
    writer = getattr(transport, "_io_writer", None)
    return writer is not None and bool(writer.is_closing())
