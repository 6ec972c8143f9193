"""Durables of the in-memory bus, as a consumer sees them."""

import asyncio
from collections.abc import Sequence
from typing import Final

from llorch_shared.bus.memory_connection import MemoryConnection
from llorch_shared.bus.memory_streams import MemoryDurable
from llorch_shared.bus.port import Delivery, Message, Unanswered

UNCONFIRMED_ACK_S: Final = 0.05
"""How long an ack that the server will not confirm takes here."""


class MemoryDelivery:
    __slots__ = ("_bus", "_durable", "message")

    def __init__(self, bus: MemoryConnection, durable: MemoryDurable, message: Message) -> None:
        self._bus: Final = bus
        self._durable: Final = durable
        self.message = message

    def drop_payload(self) -> None:
        self.message = Message(subject=self.message.subject, data=b"", seq=self.message.seq)

    async def ack(self) -> None:
        await self._bus.wait_connected(UNCONFIRMED_ACK_S)
        if not self._durable.ack(self.message.seq):
            await asyncio.sleep(UNCONFIRMED_ACK_S)
            raise Unanswered("the ack was not confirmed")
        self._bus.server.wake()


class MemoryConsumer:
    def __init__(self, bus: MemoryConnection, stream: str, durable: str) -> None:
        self._bus: Final = bus
        self._stream: Final = stream
        self._durable: Final = durable

    async def fetch(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        server = self._bus.server
        await asyncio.sleep(0)
        while True:
            if self._bus.connected:
                durable = server.durable(self._stream, self._durable)
                if taken := durable.take(limit, server.now()):
                    server.wake()
                    return [MemoryDelivery(self._bus, durable, message) for message in taken]
            left = deadline - loop.time()
            if left <= 0:
                return []
            try:
                async with asyncio.timeout(left):
                    await server.changed().wait()
            except TimeoutError:
                return []

    async def reset(self) -> None:
        await self._bus.wait_connected(UNCONFIRMED_ACK_S)
        self._bus.server.durable(self._stream, self._durable).reset()
        self._bus.server.wake()

    async def close(self) -> None:
        return
