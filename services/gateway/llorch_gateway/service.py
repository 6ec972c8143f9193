"""The life of a gateway process: a door that says why it is not ready, then the bus and the gateway
(`gateway.py`) behind it.

Stop order matters: first everything is served while readiness says no, so that whoever spreads requests looks
elsewhere; then no new connection is taken, new requests are refused, open streams end with a word about coming back,
then the server stops, then the bus.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Final

import msgspec

from llorch_gateway import open_files, tls
from llorch_gateway.entrance import Entrance
from llorch_gateway.gateway import Gateway
from llorch_gateway.identity import is_guarded, oidc
from llorch_gateway.server import HttpServer, split_address
from llorch_shared import token_file
from llorch_shared.auth import check_bind
from llorch_shared.bus import nats
from llorch_shared.bus.patience import unless_stopped
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.lifecycle import Stop, first_of
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.settings import Secret, Settings

log = logging.getLogger(__name__)

REQUESTS_BESIDE_STREAMS: Final = 2048
"""Requests at once that are not streams; more wait in the kernel's queue."""


async def run(settings: Settings, token: Secret, stop: Stop, *, bus_password: Secret | None = None) -> int:
    """Serve until `stop`. Returns the exit code: 0 when somebody wished the end, 1 when something of ours ended it.
    Raises NonLoopbackWithoutToken, TokenFileError and SettingsError before anything is opened."""
    host, _ = split_address(settings.gateway.addr)
    check_bind(host, guarded=is_guarded(settings.gateway, token))
    if (tokens := settings.gateway.tokens_path()) is not None:
        token_file.read(tokens)
    oidc(settings.gateway.oidc)
    metrics = Metrics()
    entrance = Entrance("the bus is not connected")
    wanted = settings.gateway
    connections = open_files.connections(wanted.streams_max + REQUESTS_BESIDE_STREAMS)
    settings = _with_streams(settings, min(wanted.streams_max, connections.streams_max))
    server = HttpServer(
        entrance,
        wanted.addr,
        requests_max=connections.total,
        stall_s=wanted.sse_stall_ms / 1000,
        header_read_s=wanted.header_read_ms / 1000,
        http2=wanted.prefer_h2,
        tls=tls.options(wanted.tls),
    )
    closed = asyncio.Event()
    async with AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.stop)
        bus = await unless_stopped(stop, _connect(settings, metrics, closed, bus_password))
        if bus is None:
            return 0
        stack.push_async_callback(bus.close)
        gateway = Gateway(settings, bus=bus, token=token, metrics=metrics)
        stack.push_async_callback(gateway.close)

        def waits(problem: BusError) -> None:
            entrance.missing = f"the bus: {problem or type(problem).__name__}"

        if not await gateway.start(stop, waits=waits):
            return 0
        entrance.front = gateway.front
        stack.push_async_callback(gateway.stop_serving)
        narrate(log, f"serves on {server.url}", actor="gateway", action="serve", target=server.url, lane=gateway.lane)
        await first_of(_drained(stop, gateway), gateway.tick(), server.wait(), closed.wait())
        why = stop.reason or ("the bus connection closed for good" if closed.is_set() else "the HTTP server ended")
        narrate(log, f"stops: {why}", actor="gateway", action="stop", target=server.url)
        await server.close_door()
        await gateway.stop_serving()
        await server.stop()
    return 0 if stop else 1


def _with_streams(settings: Settings, streams_max: int) -> Settings:
    fewer = msgspec.structs.replace(settings.gateway, streams_max=streams_max)
    return msgspec.structs.replace(settings, gateway=fewer)


async def _drained(stop: Stop, gateway: Gateway) -> None:
    await stop.wait()
    narrate(log, f"drains: {stop.reason}", actor="gateway", action="drain", target=gateway.lane, reason=stop.reason)
    await gateway.drain()


async def _connect(settings: Settings, metrics: Metrics, closed: asyncio.Event, password: Secret | None) -> Bus:
    return await nats.connect(settings.nats, name="gateway", password=password, metrics=metrics, on_closed=closed.set)
