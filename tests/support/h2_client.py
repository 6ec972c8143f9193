"""An HTTP/2 client that can do what libraries do not let one do: take back one stream and keep its connection."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Self

import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes


class H2Client:
    """One connection to `127.0.0.1:port`, in clear by prior knowledge or over TLS. Not for several users at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.received: dict[int, bytearray] = {}
        self.ended: dict[int, str] = {}
        """How streams ended: `end`, or the error code of a reset."""

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        name = "localhost" if tls else None
        client = cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name))
        client._http.initiate_connection()
        await client._send()
        try:
            yield client
        finally:
            client.close()

    async def get(self, path: str) -> int:
        """Ask; returns the number of the stream."""
        stream = self._http.get_next_available_stream_id()
        head = {":method": "GET", ":path": path, ":scheme": "http", ":authority": "x"}
        self._http.send_headers(stream, list(head.items()), end_stream=True)
        self.received[stream] = bytearray()
        await self._send()
        return stream

    async def reset(self, stream: int) -> None:
        """RST_STREAM: the client wants no more of this one."""
        self._http.reset_stream(stream, ErrorCodes.CANCEL)
        await self._send()

    async def read_until(self, stream: int, wanted: bytes) -> bytes:
        """What has come of the stream, once `wanted` is in it, or it has ended."""
        while wanted not in self.received[stream] and stream not in self.ended:
            await self._read()
        return bytes(self.received[stream])

    async def whole(self, stream: int) -> bytes:
        while stream not in self.ended:
            await self._read()
        return bytes(self.received[stream])

    def close(self) -> None:
        self._writer.close()

    async def _read(self) -> None:
        data = await self._reader.read(64 * 1024)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.received[event.stream_id] += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended[event.stream_id] = "end"
            elif isinstance(event, h2.events.StreamReset):
                self.ended[event.stream_id] = str(event.error_code)
        await self._send()

    async def _send(self) -> None:
        self._writer.write(self._http.data_to_send())
        await self._writer.drain()
