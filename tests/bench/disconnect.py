"""How soon a gateway knows that a reader has left: from the moment at which the client closes, resets or takes back its
stream until the stream's seat is closed, in one process with the client, so the figure holds both sides' work."""

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from bench.scenarios import percentile
from llorch_gateway.relay.channel import Seat
from llorch_gateway.server import HttpServer
from support.gateways import cluster_of
from support.h2_client import H2Client

ROUNDS: Final = 200
FIRST: Final = b"retry: 1000\n\n"
WITHIN_S: Final = 10.0

Leave = Callable[[], Awaitable[None]]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """p50, p99 and longest, milliseconds."""

    h1_close_ms: tuple[float, ...]
    h1_reset_ms: tuple[float, ...]
    h2_stream_reset_ms: tuple[float, ...]
    h2_close_ms: tuple[float, ...]


class Departures:
    """When a seat was closed because its client had gone."""

    def __init__(self) -> None:
        self.seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._close: Final = Seat.close

    def __enter__(self) -> "Departures":
        def close(seat: Seat, why: str) -> None:
            if why == "client" and not self.seen.done():
                self.seen.set_result(time.perf_counter())
            self._close(seat, why)

        Seat.close = close  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Seat.close = self._close  # type: ignore[method-assign]

    async def after(self, leave: Leave) -> float:
        self.seen = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await leave()
        async with asyncio.timeout(WITHIN_S):
            return (await self.seen - began) * 1000


async def measure() -> Figures:
    async with cluster_of() as cluster:
        door = await cluster.gateway()
        server = HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=64)
        await server.start()
        path = f"/v1/tasks/{await door.submit()}/stream"
        with Departures() as departures:
            figures = Figures(
                h1_close_ms=await _h1(path, server, departures, reset=False),
                h1_reset_ms=await _h1(path, server, departures, reset=True),
                h2_stream_reset_ms=await _h2(path, server, departures, whole=False),
                h2_close_ms=await _h2(path, server, departures, whole=True),
            )
        await server.stop()
    return figures


async def _h1(path: str, server: HttpServer, departures: Departures, *, reset: bool) -> tuple[float, ...]:
    took = []
    for _ in range(ROUNDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await reader.readuntil(FIRST)
        if reset:
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        async def leave(writer: asyncio.StreamWriter = writer) -> None:
            writer.close()

        took.append(await departures.after(leave))
    return _spread(took)


async def _h2(path: str, server: HttpServer, departures: Departures, *, whole: bool) -> tuple[float, ...]:
    took = []
    for _ in range(ROUNDS):
        async with H2Client.connect(server.port) as client:
            stream = await client.get(path)
            await client.read_until(stream, FIRST)

            async def leave(client: H2Client = client, stream: int = stream) -> None:
                if whole:
                    client.close()
                else:
                    await client.reset(stream)

            took.append(await departures.after(leave))
    return _spread(took)


def _spread(took: list[float]) -> tuple[float, ...]:
    return percentile(took, 0.5), percentile(took, 0.99), round(max(took), 2)
