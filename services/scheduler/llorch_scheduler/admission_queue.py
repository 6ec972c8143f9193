"""One admission stream as this term holds it, and how far that is from what the server stores.

It is counted, because a delivery that got lost is missing whatever was pulled after it: in a cluster a delivery, or the
removal after an ack, may get lost between the servers while the connection from here stands.
"""

import asyncio
from typing import Final

from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError, Delivery, NoStream
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

AGAIN_S: Final = 0.05
"""After a look by which something stored was not held: it is on its way, is being acknowledged, or got lost."""


class Queue:
    """`pool` is None where the pool was removed."""

    def __init__(self, pool: PoolSpec | None, pool_id: str, priority: Priority) -> None:
        self.pool_id: Final = pool_id
        self.priority: Final = priority
        self.stream: Final = streams.admission_stream(pool_id, priority)
        self.pool = pool
        self.pulled_seq = 0
        self.backlog_read = False
        self.held: Final[dict[int, Delivery]] = {}
        """What is not acknowledged, by its sequence in the stream."""
        self.leaving: Final[set[int]] = set()
        """What of it is being acknowledged: the server may have removed it already."""
        self.unset: Final[dict[int, bool]] = {}
        """Poison whose letter is not stored yet, by its sequence: true when it is to be acknowledged then."""
        self.missing_seq = 0
        """The oldest message, when it was there at the look before and is not held; 0 when all is well."""
        self._stored_seq = 0
        """The last message at the last look."""
        self._witnesses: Final[list[set[int]]] = []
        """Each is told what arrives."""

    def hold(self, delivery: Delivery) -> None:
        seq = delivery.message.seq
        self.held[seq] = delivery
        for seen in self._witnesses:
            seen.add(seq)

    async def holds_all(self, bus: Bus) -> bool:
        """The end of the backlog may have gone meanwhile; a server that is just slow has more than what is held."""
        return (await bus.stream_state(self.stream)).messages <= len(self.held)

    async def misses_the_oldest(self, bus: Bus) -> bool:
        """Found at two looks in a row. The server would deliver it again after the hour of `ack_wait`."""
        missed, self.missing_seq = self.missing_seq, 0
        try:
            state = await bus.stream_state(self.stream)
        except BusError:
            return False
        if state.messages and state.first_seq <= self._stored_seq and state.first_seq not in self.held:
            self.missing_seq = state.first_seq
        self._stored_seq = state.last_seq
        return bool(self.missing_seq) and self.missing_seq == missed

    async def caught_up(self, bus: Bus) -> None:
        """Wait until everything stored now is held and handed on. What is being acknowledged counts only where the last
        that is stored was pulled: else it would stand for one that is on its way."""
        while True:
            if await self._has_come(bus):
                return
            await asyncio.sleep(AGAIN_S)

    async def _has_come(self, bus: Bus) -> bool:
        seen = set(self.held)
        self._witnesses.append(seen)
        try:
            state = await bus.stream_state(self.stream)
            handed_on = min(state.last_seq, self.pulled_seq)
            certain = seen.intersection(self.held) - self.leaving
            if state.messages <= sum(seq <= handed_on for seq in certain):
                return True
            if self.pulled_seq < state.last_seq:
                await asyncio.sleep(AGAIN_S)
            return self.pulled_seq >= state.last_seq and state.messages <= sum(seq <= state.last_seq for seq in seen)
        except NoStream:
            return True
        finally:
            self._witnesses.remove(seen)
