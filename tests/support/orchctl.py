"""Commands of orchctl as a shell runs them, and a bus to look at what they did."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llorch_shared import streams
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus
from llorch_shared.settings import NatsSettings
from support.nats_server import NatsServer

T = TypeVar("T")
Orchctl = Callable[..., tuple[int, str, str]]
"""Runs a command; returns exit code, standard output and standard error."""


def on_bus(server: NatsServer, use: Callable[[Bus], Awaitable[T]]) -> T:
    """The commands bring their own event loop, so a test of them has none while they run."""

    async def main() -> T:
        bus: Bus = await connect(NatsSettings(url=server.url), name="test")
        await bus.ensure(streams.base())
        try:
            return await use(bus)
        finally:
            await bus.close()

    return asyncio.run(main())
