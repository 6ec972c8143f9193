"""Takes placements that are stored for one replica, never more than it has free slots (ARCHITECTURE, invariant 6).

A placement that cannot be read is set aside as a dead letter, beside the taking: the replica serves on even while no
letter can be stored. Its task is not lost by it: the scheduler takes back what nobody claims.
"""

import asyncio
import logging
from typing import Final, Protocol

from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError, Consumer, Delivery
from llorch_shared.dead_letters import DeadLetters
from llorch_shared.metrics import Metrics
from llorch_shared.wire.dead import What
from llorch_shared.wire.run import PLACEMENT_DECODER, Placement
from llorch_shared.wire.version import Kind, Unreadable, decode

log = logging.getLogger(__name__)

FETCH_S: Final = 5.0
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 2.0


class Taker(Protocol):
    def free_slots(self) -> int: ...

    async def wait_free_slot(self) -> None: ...

    def holds(self, placement: Placement) -> bool: ...

    def begin(self, placement: Placement, delivery: Delivery) -> None: ...


class Intake:
    """`run` ends only by being cancelled; what it had fetched and not begun is read again by whoever serves next."""

    def __init__(
        self, bus: Bus, pool_id: str, replica_id: str, taker: Taker, *, metrics: Metrics | None = None
    ) -> None:
        self._bus: Final = bus
        self._pool_id: Final = pool_id
        self._dead: Final = DeadLetters(bus, actor=f"poold/{replica_id}", metrics=metrics)
        self._poison: Final[asyncio.Queue[tuple[Delivery, Unreadable]]] = asyncio.Queue()
        """Bounded as the placements of one replica are."""
        self._topology: Final = streams.placements(pool_id, replica_id)
        self._durable: Final = streams.placement_durable(pool_id, replica_id)
        self._taker: Final = taker

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._set_aside(), name=f"dead letters of {self._durable}")
            await self._take_always()

    async def _take_always(self) -> None:
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
                message = delivery.message
                try:
                    placement = decode(Kind.PLACEMENT, PLACEMENT_DECODER, message.data, message.headers)
                except Unreadable as error:
                    self._poison.put_nowait((delivery, error))
                    continue
                await self._begin(placement, delivery)
            await asyncio.sleep(0)  # what has begun goes before the question for more

    async def _begin(self, placement: Placement, delivery: Delivery) -> None:
        """What was signalled since it was asked for may be the same, or have taken the slot. Raises BusError."""
        while not self._taker.holds(placement):
            if self._taker.free_slots() > 0:
                self._taker.begin(placement, delivery)
                return
            await self._taker.wait_free_slot()
        await delivery.ack()

    async def _set_aside(self) -> None:
        """Letter first, then the acknowledgement; one after the other, until cancelled."""
        while True:
            delivery, problem = await self._poison.get()
            letter = self._dead.letter(What.PLACEMENT, self._pool_id, streams.PLC, delivery.message, problem)
            await self._dead.store(letter, delivery.message.stored_ms)
            try:
                await delivery.ack()
            except BusError as error:
                log.info("placement %d is set aside and comes again: %s", delivery.message.seq, error)
