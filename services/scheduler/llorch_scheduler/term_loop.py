"""One term in office: bus → event → core → effect → bus, from takeover until the term ends.

One loop owns the core, so nothing here is locked. A new term starts with a new core and reads everything again;
whatever an earlier term still had under way finds its term over, or its sequence outdated.
"""

import asyncio
import logging
import time
from typing import Final

import msgspec

from llorch_scheduler.admissions import Admissions, Queue
from llorch_scheduler.audit_repair import repair_audit
from llorch_scheduler.core.events import (
    Event,
    PoolChanged,
    PoolRemoved,
    Rebuilt,
    ReplicaLost,
    ReplicaReported,
    RunChanged,
    Tick,
)
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_scheduler.inbox import Inbox, Overflow
from llorch_scheduler.lease import Lease, Term
from llorch_scheduler.locate import Locator
from llorch_scheduler.narration import Narration
from llorch_scheduler.performer import WORKERS, Auditor, Performer
from llorch_scheduler.rebuild import Floor, cancelled, read_cancels, read_floor, read_runs
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.live_table import LiveTable
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.registry import REPLICA_DECODER
from llorch_shared.wire.run import RUN_DECODER
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
FLOOR_S: Final = 1.0
EVENTS_PER_TURN: Final = 256
"""Events decided before other tasks of the process get their turn."""
ENSURE_RETRY_S: Final = 0.5


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class TermLoop:
    """Everything that lives as long as one term."""

    def __init__(
        self,
        bus: Bus,
        term: Term,
        lease: Lease,
        *,
        registry: LiveTable,
        specs: LiveTable,
        audit: Auditor,
        narration: Narration,
        actor: str,
        limits: Limits,
        stream_replicas: int,
        ensured: dict[str, streams.Topology],
    ) -> None:
        """`ensured` are the queues this process has made, kept from term to term."""
        self._bus: Final = bus
        self._term: Final = term
        self._lease: Final = lease
        self._registry: Final = registry
        self._specs: Final = specs
        self._narration: Final = narration
        self._stream_replicas: Final = stream_replicas
        self.core: Final = SchedulerCore(actor=actor, limits=limits)
        self._inbox: Final = Inbox()
        self._admissions: Final = Admissions(bus, put=self._inbox.put, now_ms=now_ms, going=lambda: term.active)
        self._performer: Final = Performer(
            bus, term, self._admissions, audit, narration, actor=actor, emit=self._offer, now_ms=now_ms
        )
        self._ensured: Final = ensured
        self._audit: Final = audit
        self._actor: Final = actor
        self._rebuilt_seq = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._replica_ids: Final[dict[str, tuple[str, str]]] = {}
        """Registry key → pool and replica, for keys that expire."""

    # what the bus tells; these run in its reader

    def _offer(self, event: Event) -> None:
        try:
            self._inbox.offer(event)
        except Overflow as overflow:
            self._term.end(str(overflow))

    def run_changed(self, message: Message) -> None:
        try:
            record = RUN_DECODER.decode(message.data)
        except msgspec.DecodeError:
            log.exception("the run record at %s #%d cannot be read", message.subject, message.seq)
            return
        self._offer(RunChanged(at_ms=now_ms(), record=record, seq=message.seq))

    def cancel_wished(self, message: Message) -> None:
        self._offer(cancelled(message.subject, message.data, now_ms()))

    def registry_changed(self, key: str, value: bytes | None) -> None:
        if not key.startswith("replica."):
            return
        if value is None:
            if (lost := self._replica_ids.pop(key, None)) is not None:
                self._offer(ReplicaLost(at_ms=now_ms(), pool_id=lost[0], replica_id=lost[1]))
            return
        try:
            record = REPLICA_DECODER.decode(value)
        except msgspec.DecodeError:
            log.exception("the registry key %s cannot be read", key)
            return
        self._replica_ids[key] = (record.pool_id, record.replica_id)
        self._offer(ReplicaReported(at_ms=now_ms(), record=record))

    def spec_changed(self, key: str, value: bytes | None) -> None:
        kind, _, pool_id = key.partition(".")
        if kind != "pool":
            return
        if value is None:
            self._offer(PoolRemoved(at_ms=now_ms(), pool_id=pool_id))
            self._follow_pool(pool_id, None)
            return
        try:
            spec = POOL_DECODER.decode(value)
        except msgspec.DecodeError:
            log.exception("the pool specification %s cannot be read", key)
            return
        self._offer(PoolChanged(at_ms=now_ms(), spec=spec))
        self._follow_pool(spec.id, spec)

    # the term

    async def run(self) -> None:
        """Until the term ends. Never raises for what the bus does."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._lease.keep(self._term), name="lease")
                tasks.create_task(self._reign(tasks), name="reign")
                try:
                    await self._term.over()
                finally:
                    self._term.end("the process ends")
                tasks.create_task(_stop(), name="stop")
        except* _Over:
            pass

    async def _reign(self, tasks: asyncio.TaskGroup) -> None:
        started = time.monotonic()
        try:
            runs = await self._rebuild()
        except BusError as error:
            self._term.end(f"the bus cannot be read: {error}")
            return
        if not self._term.active:
            return
        self._narration.fleet = self.core.fleet
        self._narration.term_began(self._term.epoch, runs=runs, waited_s=time.monotonic() - started)
        for number in range(WORKERS):
            tasks.create_task(self._performer.work(), name=f"performer {number}")
        tasks.create_task(self._tick(), name="tick")
        tasks.create_task(self._write_floor(), name="floor")
        tasks.create_task(self._serve(), name="locate")
        tasks.create_task(self._repair_audit(), name="audit repair")
        await self._decide()

    async def _rebuild(self) -> int:
        """Runs, then wishes to cancel, then what is alive, then the pools; only then is anything decided."""
        await self._registry.refresh()
        await self._specs.refresh()
        floor = read_floor(self._registry)
        events, last_seq = await read_runs(self._bus, floor, now_ms())
        for event in events:
            self._apply(event)
        for wish in await read_cancels(self._bus, floor, now_ms()):
            self._apply(wish)
        for key, value in list(self._registry.values.items()):
            self.registry_changed(key, value)
        for key, value in list(self._specs.values.items()):
            self.spec_changed(key, value)
        for pool_id in await self._removed_pools():
            self._follow_pool(pool_id, None)
        self._rebuilt_seq = last_seq
        self._offer(Rebuilt(at_ms=now_ms(), run_seq=last_seq))
        return len(self.core.jobs)

    async def _removed_pools(self) -> list[str]:
        """Pools that were deleted while tasks may still wait in their queues."""
        messages = await self._bus.snapshot(streams.SPEC, subjects.spec("pool.*"))
        return [subjects.last_token(message.subject) for message in messages if message.deleted]

    async def _decide(self) -> None:
        turn = 0
        while True:
            self._apply(await self._inbox.take())
            turn += 1
            if turn % EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _apply(self, event: Event) -> None:
        if isinstance(event, ReplicaLost) and (replica := self.core.fleet.get(event.replica_id)) is not None:
            self._narration.replica_lost(event.replica_id, len(replica.held))
        for effect in self.core.handle(event):
            self._performer.submit(effect)

    async def _tick(self) -> None:
        while self._term.active:
            self._offer(Tick(at_ms=now_ms()))
            await asyncio.sleep(TICK_S)

    async def _write_floor(self) -> None:
        floor = Floor(self._bus, self._registry)
        while self._term.active:
            await asyncio.sleep(FLOOR_S)
            if self._term.active:
                await floor.write(self.core.floor())

    async def _repair_audit(self) -> None:
        while self._term.active:
            try:
                await repair_audit(
                    self._bus, self._audit, before_seq=self._rebuilt_seq, actor=self._actor, now_ms=now_ms
                )
                return
            except BusError as error:
                log.info("looking for unaudited ends waits for the bus: %s", error)

    async def _serve(self) -> None:
        locator = Locator(self._bus, self._term, self.core, self._admissions, self._inbox)
        try:
            subscription = await self._bus.serve(subjects.LOCATE, locator.answer)
        except BusError as error:
            self._term.end(f"lookups cannot be served: {error}")
            return
        try:
            await self._term.over()
        finally:
            await subscription.close()

    # queues

    def _follow_pool(self, pool_id: str, spec: PoolSpec | None) -> None:
        """Pull the queues of a pool from now on; a changed specification changes the guards and the capacity."""
        if self._tasks is None or not self._term.active:
            return
        added: list[Queue] = []
        for priority in CLASSES:
            stream = streams.admission_stream(pool_id, priority)
            queue = self._admissions.queues.get(stream)
            if queue is None:
                queue = self._admissions.queues[stream] = Queue(spec, pool_id, priority)
                added.append(queue)
            queue.pool = spec
        self._tasks.create_task(self._pull(self._tasks, pool_id, spec, added), name=f"queues of {pool_id}")

    async def _pull(self, tasks: asyncio.TaskGroup, pool_id: str, spec: PoolSpec | None, added: list[Queue]) -> None:
        await self._ensure(pool_id, spec)
        for queue in added if self._term.active else ():
            tasks.create_task(self._admissions.pull(queue), name=f"pull {queue.stream}")

    async def _ensure(self, pool_id: str, spec: PoolSpec | None) -> None:
        """The streams and durables of a wanted pool; a removed one's are left as they are."""
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


class _Over(Exception):
    """Ends the task group of a term that is over."""


async def _stop() -> None:
    raise _Over
