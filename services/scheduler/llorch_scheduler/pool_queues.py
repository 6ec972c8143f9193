"""The queues of the pools that a term decides for: made as the specifications say, and pulled from then on.

What is pulled is handed on by `admissions`. A removed pool's queues are pulled, too, and left as they are: their tasks
wait for its return, their deadline or a cancel.
"""

import asyncio
import logging
from typing import Final

from llorch_scheduler.admission_queue import Queue
from llorch_scheduler.admissions import Admissions
from llorch_scheduler.lease import Term
from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.bus.topology import Topology
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.spec import PoolSpec

log = logging.getLogger(__name__)

ENSURE_RETRY_S: Final = 0.5


class PoolQueues:
    """Of one term."""

    def __init__(self, bus: Bus, term: Term, admissions: Admissions, *, stream_replicas: int) -> None:
        self._bus: Final = bus
        self._term: Final = term
        self._admissions: Final = admissions
        self._stream_replicas: Final = stream_replicas
        self._ensured: Final[dict[str, Topology]] = {}
        """What this term has made, by pool."""

    def follow(self, tasks: asyncio.TaskGroup, pool_id: str, spec: PoolSpec | None) -> None:
        """Pull the queues of a pool from now on, None for a removed one; a changed specification changes the guards and
        the capacity."""
        added: list[Queue] = []
        for priority in CLASSES:
            stream = streams.admission_stream(pool_id, priority)
            queue = self._admissions.queues.get(stream)
            if queue is None:
                queue = self._admissions.queues[stream] = Queue(spec, pool_id, priority)
                added.append(queue)
            queue.pool = spec
        tasks.create_task(self._pull(tasks, pool_id, spec, added), name=f"queues of {pool_id}")

    async def forget(self) -> None:
        """The term is over: what it made is no longer made again after a reconnect."""
        for topology in self._ensured.values():
            await self._bus.forget(topology)

    async def _pull(self, tasks: asyncio.TaskGroup, pool_id: str, spec: PoolSpec | None, added: list[Queue]) -> None:
        await self._ensure(pool_id, spec)
        for queue in added if self._term.active else ():
            tasks.create_task(self._admissions.pull(queue), name=f"pull {queue.stream}")

    async def _ensure(self, pool_id: str, spec: PoolSpec | None) -> None:
        before = self._ensured.get(pool_id)
        wanted = streams.admission(spec, replicas=self._stream_replicas) if spec is not None else None
        if before == wanted:
            return
        if before is not None:
            await self._bus.forget(before)
            self._ensured.pop(pool_id, None)
        if wanted is None:
            return
        while self._term.active:
            try:
                await self._bus.ensure(wanted)
                self._ensured[pool_id] = wanted
                return
            except BusError as error:
                log.warning("the queues of pool %s cannot be made, trying again: %s", pool_id, error)
            await asyncio.sleep(ENSURE_RETRY_S)
