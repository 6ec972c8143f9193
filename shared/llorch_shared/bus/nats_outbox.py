"""Collects what is written in one loop iteration and gives it to the socket at once.

One write for many messages costs the sender, the server and the readers less than many writes. A process may be stopped
between the two; who must not say anything late bounds the time in between, and what has waited longer is not sent.
"""

import asyncio
import logging
import time
from typing import Any, Final

from llorch_shared.bus.nats_client import OUTBOUND_BYTES_MAX, BusClient

log = logging.getLogger(__name__)


class Outbox:
    """`within_s`: how long a message may wait for the end of its loop iteration; 0 sets no bound. Over it the process
    was stopped: the messages are dropped, and the connection with them."""

    def __init__(self, client: BusClient, *, within_s: float = 0) -> None:
        self._client: Final = client
        self._within_s: Final = within_s
        self._since = 0.0
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
            if self._within_s:
                self._since = time.monotonic()
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        return True

    def send(self) -> None:
        """To the socket, now."""
        chunks, self._chunks = self._chunks, []
        if chunks and self._within_s and time.monotonic() - self._since > self._within_s:
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
