"""Three servers that run for a test, the token log among them, and who leads it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.bus.topology import Topology
from support.nats_server import NatsCluster

WITHIN_S: Final = 60.0
TOKEN_LOG: Final = Topology(streams=tuple(it for it in streams.base(replicas=3).streams if it.name == streams.TOK))


@contextlib.asynccontextmanager
async def running(cluster: NatsCluster) -> AsyncIterator[NatsCluster]:
    try:
        for link in cluster.links.values():
            await link.start()
        await asyncio.to_thread(cluster.start)
        yield cluster
    finally:
        cluster.stop()
        for link in cluster.links.values():
            await link.close()


async def lead(bus: Bus, server: str) -> None:
    """Have this server lead the token log."""
    wish = msgspec.json.encode({"placement": {"preferred": server}})

    async def leads() -> bool:
        if (await bus.stream_state(streams.TOK)).leader == server:
            return True
        await bus.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{streams.TOK}", wish)
        return False

    await until(leads)


async def done(work: Awaitable[None]) -> bool:
    await work
    return True


async def until(question: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            with contextlib.suppress(BusError):
                if await question():
                    return
            await asyncio.sleep(0.05)
