"""One term in office for one shard: bus → event → core → effect → bus, from takeover until the term ends.

Only pools of the shard (`shard_watch.py`), their runs and replicas get in here: the service hands over what changes
that way, and what is read at the takeover is filtered. One loop owns the core, so nothing here is locked. A new term
starts with a new core and reads everything again; whatever an earlier term still had under way finds its term over, or
its sequence outdated.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from llorch_scheduler.admissions import Admissions
from llorch_scheduler.answers import Answers
from llorch_scheduler.audit_repair import repair_audit
from llorch_scheduler.core.events import (
    Event,
    Rebuilt,
    ReplicaLost,
    RunChanged,
    TaskArrived,
    TaskCancelled,
    Tick,
)
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_scheduler.inbox import Inbox, Overflow
from llorch_scheduler.lease import Lease, Term
from llorch_scheduler.locate import Locator
from llorch_scheduler.narration import Narration
from llorch_scheduler.performer import WORKERS, Auditor, Performer
from llorch_scheduler.pool_queues import PoolQueues
from llorch_scheduler.rebuild import Floor, read_cancels, read_floor, read_runs
from llorch_scheduler.session_gate import SessionGate
from llorch_scheduler.session_keeper import SessionKeeper
from llorch_scheduler.shard_watch import ShardWatch
from llorch_scheduler.trace_keeper import TraceKeeper
from llorch_scheduler.unaudited_changes import UnauditedChanges
from llorch_shared.artifacts import Artifacts
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.dead_letters import DeadLetters
from llorch_shared.live_table import LiveTable
from llorch_shared.models import Models
from llorch_shared.session_store import SessionStore
from llorch_shared.session_table import SessionTable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.policy import TenantSpec
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
FLOOR_S: Final = 1.0
HAND_OVER_S: Final = 2.0
"""How long what is under way may take when a shard is given back in order. Its taker repairs what is not done then."""
EVENTS_PER_TURN: Final = 256
"""Events decided before other tasks of the process get their turn."""
STUMBLE_S: Final = 5.0
"""How long a broken term may take to set aside what it broke on."""


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
        tenants: Mapping[str, TenantSpec],
        audit: Auditor,
        narration: Narration,
        actor: str,
        limits: Limits,
        stream_replicas: int,
        dead: DeadLetters,
        sessions: SessionTable,
        accounts: SessionStore,
        models: Models,
        artifacts: Artifacts,
    ) -> None:
        self._bus: Final = bus
        self.term: Final = term
        self.shard: Final = term.shard
        self.handed_over = False
        """The term ended in order: nothing is under way, and the lease may be given back."""
        self._lease: Final = lease
        self._registry: Final = registry
        self._narration: Final = narration
        self.core: Final = SchedulerCore(actor=actor, limits=limits)
        self._inbox: Final = Inbox()
        self.watch: Final = ShardWatch(
            bus,
            term.shard,
            registry=registry,
            specs=specs,
            tenants=tenants,
            offer=self._offer,
            follow=self._follow_pool,
        )
        self._admissions: Final = Admissions(
            bus,
            dead,
            put=self._put,
            now_ms=now_ms,
            going=lambda: term.active,
            had_model=self.watch.had_model,
            models=models,
            session_since=sessions.since_ms,
        )
        self._performer: Final = Performer(
            bus, term, self._admissions, audit, narration, actor=actor, emit=self._offer, now_ms=now_ms
        )
        self._pool_queues: Final = PoolQueues(bus, term, self._admissions, stream_replicas=stream_replicas)
        self._audit: Final = audit
        self._gate: Final = SessionGate(sessions, accounts, self._offer)
        self._locator: Final = Locator(bus, term, self.core, self._admissions, self._inbox, waits=self._gate.waits)
        self._keeper: Final = SessionKeeper(bus, term, self.core, self._locator, table=sessions, store=accounts)
        self._traces: Final = TraceKeeper(bus, artifacts, going=lambda: term.active, lives=self._lives)
        self._actor: Final = actor
        self._rebuilt_seq = 0
        self._passed_seq = 0
        """Newest run sequence of another shard."""
        self._newer_seq: int | None = None
        """Lowest run sequence seen that a newer release wrote: the floor must not pass it."""
        self._leaving: Final = asyncio.Event()
        self._answers: Final = Answers(
            bus, term, self.core, self._locator, places_come_free=self._performer.places_come_free
        )
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def decides(self) -> bool:
        """The takeover is complete, and questions are answered."""
        return self._answers.given

    # what the bus tells; these run in its reader

    def _offer(self, event: Event) -> None:
        try:
            self._inbox.offer(event)
        except Overflow as overflow:
            self.term.end(str(overflow))

    async def _put(self, events: Sequence[Event]) -> None:
        await self._inbox.drained()
        assert self._tasks is not None
        for event in await self._gate.through(events, self._tasks):
            self._offer(event)

    def run_changed(self, record: RunRecord, seq: int) -> None:
        self._performer.run_changed(record)
        self._keeper.saw(record)
        self._traces.saw(record)
        self._offer(RunChanged(at_ms=now_ms(), record=record, seq=seq))

    def passed(self, seq: int) -> None:
        """A run of another shard was stored at `seq`: what was stored before it has been told."""
        self._passed_seq = seq

    def passed_newer(self, seq: int) -> None:
        """A run that only a newer release can read was stored at `seq`. Whose shard it is cannot be known."""
        self.passed(seq)
        self._newer_seq = seq if self._newer_seq is None else min(self._newer_seq, seq)

    def cancel_wished(self, wish: TaskCancelled) -> None:
        self._offer(wish)

    def _follow_pool(self, pool_id: str, spec: PoolSpec | None) -> None:
        if self._tasks is not None and self.term.active:
            self._pool_queues.follow(self._tasks, pool_id, spec)

    # the term

    async def run(self) -> None:
        """Until the term ends. Never raises for what the bus does."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._lease.keep(self.term), name="lease")
                tasks.create_task(self._reign(tasks), name="reign")
                try:
                    await self.term.over()
                finally:
                    self.term.end("the process ends")
                tasks.create_task(_stop(), name="stop")
        except* _Over:
            pass
        finally:
            self._narration.term_ended(self.term.epoch, self.term.reason, asked=self.handed_over)
            await self._pool_queues.forget()

    async def hand_over(self, reason: str) -> None:
        """End the term in order: decide nothing more, finish what is under way."""
        self._leaving.set()
        if self._tasks is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HAND_OVER_S):
                    await self._performer.finished()
        self.handed_over = self.term.active
        self.term.end(reason)

    async def _reign(self, tasks: asyncio.TaskGroup) -> None:
        started = time.monotonic()
        try:
            runs = await self._rebuild()
        except BusError as error:
            self.term.end(f"the bus cannot be read: {error}")
            return
        if not self.term.active:
            return
        self._narration.fleet = self.core.fleet
        waited_s = time.monotonic() - started
        self._narration.term_began(self.term.epoch, how=self.term.how, runs=runs, waited_s=waited_s)
        for number in range(WORKERS):
            tasks.create_task(self._performer.work(), name=f"performer {number}")
        tasks.create_task(self._admissions.set_aside(), name="dead letters")
        tasks.create_task(self._tick(), name="tick")
        tasks.create_task(self._write_floor(), name="floor")
        tasks.create_task(self._answers.serve(self._leaving), name="answers")
        tasks.create_task(self._repair_audit(), name="audit repair")
        changes = UnauditedChanges(self._bus, self._audit, actor=self._actor, now_ms=now_ms)
        looking = changes.keep(going=lambda: self.term.active, turn=self.watch.is_first)
        tasks.create_task(looking, name="unaudited changes")
        tasks.create_task(self._keeper.keep(), name="sessions")
        tasks.create_task(self._traces.keep(), name="traces")
        await self._decide()

    async def _rebuild(self) -> int:
        """Runs, then wishes to cancel, then what is alive, then the pools; only then is anything decided."""
        await self.watch.refresh()
        floor = read_floor(self._registry, self.shard)
        read = await read_runs(self._bus, self.shard, floor, now_ms())
        for event in read.events:
            self._apply(event)
        if read.newer_seq is not None:
            self.passed_newer(read.newer_seq)
            self._narration.passed_over(read.newer)
        for wish in await read_cancels(self._bus, floor, now_ms()):
            self._apply(wish)
        await self.watch.tell_all()
        self._rebuilt_seq = read.last_seq
        self._offer(Rebuilt(at_ms=now_ms(), run_seq=read.last_seq))
        return len(self.core.jobs)

    async def _decide(self) -> None:
        turn = 0
        while not self._leaving.is_set():
            event = await self._inbox.take()
            try:
                self._apply(event)
            except Exception as error:
                await self._stumbled(event, error)
                raise
            turn += 1
            if turn % EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _stumbled(self, event: Event, error: Exception) -> None:
        """The core broke on an event and cannot be trusted any more. When an admission was in it, it is set aside
        first: it would come again to the next scheduler, and to the one after that."""
        if isinstance(event, TaskArrived):
            with contextlib.suppress(TimeoutError, BusError):
                async with asyncio.timeout(STUMBLE_S):
                    await self._admissions.give_up(event.ref, error)
                    await self._admissions.all_set_aside()

    def _apply(self, event: Event) -> None:
        if (
            isinstance(event, ReplicaLost)
            and (replica := self.core.fleet.get(event.pool_id, event.replica_id)) is not None
        ):
            self._narration.replica_lost(event, len(replica.held))
        for effect in self.core.handle(event):
            self._performer.submit(effect)

    async def _tick(self) -> None:
        while self.term.active:
            self.watch.take_tenants()
            self._offer(Tick(at_ms=now_ms(), run_seq=self._passed_seq))
            await asyncio.sleep(TICK_S)

    async def _write_floor(self) -> None:
        floor = Floor(self._bus, self._registry, self.shard)
        while self.term.active:
            await asyncio.sleep(FLOOR_S)
            if self.term.active:
                core = self.core.floor()
                await floor.write(core if self._newer_seq is None else min(core, self._newer_seq))

    async def _repair_audit(self) -> None:
        while self.term.active:
            try:
                await repair_audit(
                    self._bus,
                    self.shard,
                    self._audit,
                    before_seq=self._rebuilt_seq,
                    actor=self._actor,
                    now_ms=now_ms,
                    ended=self._traces.saw,
                )
                return
            except BusError as error:
                log.info("looking for what is not audited waits for the bus: %s", error)

    def _lives(self, run: RunRecord) -> bool:
        """Whether the life of the replica that ended this task goes on."""
        replica = self.core.fleet.get(run.pool_id, run.replica_id)
        return replica is not None and replica.record is not None and replica.record.incarnation == run.incarnation


class _Over(Exception):
    """Ends the task group of a term that is over."""


async def _stop() -> None:
    raise _Over
