"""The network between one process and the bus: a TCP proxy that can be cut, stalled and slowed.

One `Link` per process, on a loopback port of its own, in the harness's loop. It forwards bytes and knows nothing of
what they say. Reading stops while `BUFFER_BYTES` wait to be sent, so a stalled link holds little and pushes back as a
network does.
"""

import asyncio
import contextlib
from typing import Final

BUFFER_BYTES: Final = 256 * 1024
CONNECT_S: Final = 2.0


class Link:
    """Listens on `port` and forwards to `127.0.0.1:<upstream>`. Whole from the start."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port: Final = port
        self.upstream: Final = upstream
        self.delay_s = 0.0
        self.up = True
        self._open: Final = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._calls: Final[set[asyncio.Task[None]]] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=BUFFER_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._hang_up()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection and refuse new ones, until `mend`."""
        self.up = False
        self._hang_up()

    def stall(self) -> None:
        """Forward nothing and break nothing, until `mend`: what is sent meanwhile arrives late, in order."""
        self._open.clear()

    def slow(self, delay_s: float) -> None:
        """Every byte takes this much longer, each way, until `mend`."""
        self.delay_s = delay_s

    def mend(self) -> None:
        self.up = True
        self.delay_s = 0.0
        self._open.set()

    def _hang_up(self) -> None:
        for call in self._calls:
            call.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            if self.up:
                await self._call(reader, writer)
        except (OSError, asyncio.CancelledError, TimeoutError):
            # A broken connection is what this link is for; both ends see theirs closed below.
            pass
        finally:
            self._calls.discard(task)
            writer.transport.abort()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(CONNECT_S):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=BUFFER_BYTES)
        ways = [
            asyncio.create_task(self._forward(reader, far_writer)),
            asyncio.create_task(self._forward(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one end closes. Bytes keep their order: they wait in a queue, each until its time."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

        async def read() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(64 * 1024):
                    await waiting.put((loop.time() + self.delay_s, data))
            await waiting.put((0.0, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await waiting.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                await self._open.wait()
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
        finally:
            reading.cancel()
