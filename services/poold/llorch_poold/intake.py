"""Takes placements of one replica off the bus, never more than it has free slots (ARCHITECTURE, invariant 6)."""

import asyncio
import logging
from typing import Final, Protocol

import msgspec

from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError, Consumer, Delivery
from llorch_shared.wire.run import PLACEMENT_DECODER, Placement

log = logging.getLogger(__name__)

FETCH_S: Final = 5.0
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 2.0


class Taker(Protocol):
    def free_slots(self) -> int: ...

    async def wait_free_slot(self) -> None: ...

    def begin(self, placement: Placement, delivery: Delivery) -> None: ...


class Intake:
    """`run` ends only by being cancelled; what it had fetched and not begun goes back to the server."""

    def __init__(self, bus: Bus, pool_id: str, replica_id: str, taker: Taker) -> None:
        self._bus: Final = bus
        self._topology: Final = streams.placements(pool_id, replica_id)
        self._durable: Final = streams.placement_durable(pool_id, replica_id)
        self._taker: Final = taker

    async def run(self) -> None:
        delay = RETRY_FIRST_S
        while True:
            try:
                await self._bus.ensure(self._topology)
                consumer = await self._bus.consumer(streams.PLC, self._durable)
            except BusError as error:
                log.warning("placements of %s cannot be read, again in %.1f s: %s", self._durable, delay, error)
                await asyncio.sleep(delay)
                delay = min(RETRY_MAX_S, delay * 2)
                continue
            delay = RETRY_FIRST_S
            try:
                await consumer.reset()
                await self._take(consumer)
            except BusError as error:
                log.warning("placements of %s: %s", self._durable, error)
                await asyncio.sleep(RETRY_FIRST_S)
            finally:
                await self._bus.forget(self._topology)
                await consumer.close()

    async def _take(self, consumer: Consumer) -> None:
        while True:
            await self._taker.wait_free_slot()
            for delivery in await consumer.fetch(self._taker.free_slots(), FETCH_S):
                try:
                    placement = PLACEMENT_DECODER.decode(delivery.message.data)
                except msgspec.DecodeError as error:
                    log.warning("a placement of %s cannot be read and is dropped: %s", self._durable, error)
                    await delivery.ack()
                    continue
                self._taker.begin(placement, delivery)
