"""A bus server of either kind and connections to it, behind one handle."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from llorch_shared.bus.memory import MemoryBus, MemoryServer
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus, Consumer, Delivery
from llorch_shared.settings import NatsSettings
from support.nats_server import NatsServer


class World(Protocol):
    buses: list[Bus]

    async def connect(self, name: str = "test") -> Bus: ...

    def kill(self) -> None: ...

    def start(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.server = MemoryServer()
        self.buses: list[Bus] = []

    async def connect(self, name: str = "test") -> Bus:
        bus = MemoryBus(self.server, name=name)
        self.buses.append(bus)
        return bus

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()


class NatsWorld:
    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self.buses: list[Bus] = []

    async def connect(self, name: str = "test") -> Bus:
        bus = await connect(NatsSettings(url=self.server.url), name=name)
        self.buses.append(bus)
        return bus

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()


async def eventually(check: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(timeout_s):
        while not check():
            await asyncio.sleep(0.005)


async def becomes_true(check: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.01)


async def take(queue: Consumer, count: int, *, at_once: int) -> list[Delivery]:
    """`count` deliveries: one fetch returns what has arrived, which may be a part of what is stored."""
    taken: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(taken) < count:
            found = await queue.fetch(at_once, 60)
            assert len(found) <= at_once
            taken += found
    return taken
