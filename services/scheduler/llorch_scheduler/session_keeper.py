"""Settles what nobody else has settled with a session: tasks that a scheduler ended, and those whose node, gateway or
scheduler died before it did so. One per term.

Everything follows from two facts that are stored: what an account holds for a task, and that task's run record. A final
record is settled. A task that is neither waiting nor recorded anywhere was never queued, and what was held for it comes
free; that is looked for only when whoever reserved it must have given up.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_scheduler.lease import Term
from llorch_scheduler.locate import Locator
from llorch_shared import session_account, streams, subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.errors import OrchError
from llorch_shared.session_store import Known, SessionStore
from llorch_shared.session_table import SessionTable
from llorch_shared.states import FINAL
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.run import RunRecord, decode_run
from llorch_shared.wire.session import SessionHold, SessionRecord
from llorch_shared.wire.version import Unreadable

log = logging.getLogger(__name__)

TURN_S: Final = 0.2
NODE_SETTLES_WITHIN_S: Final = 2.0
"""A node settles what it has ended at once; only one that died has not after this."""
LOOK_EVERY_S: Final = 5.0
NEVER_QUEUED_MS: Final = 30_000
"""A gateway tries to queue a task for 12 s. What is held for one that is nowhere after this is free again."""
ENDS_MAX: Final = 10_000
"""Ends that wait to be looked at; beyond it the regular look finds them."""


class SessionKeeper:
    """`saw` never waits. `keep` is the one task that asks the bus."""

    def __init__(
        self,
        bus: Bus,
        term: Term,
        core: SchedulerCore,
        locator: Locator,
        *,
        table: SessionTable,
        store: SessionStore,
        clock: Callable[[], float] = lambda: asyncio.get_running_loop().time(),
    ) -> None:
        self._bus: Final = bus
        self._term: Final = term
        self._core: Final = core
        self._locator: Final = locator
        self._table: Final = table
        self._store: Final = store
        self._clock: Final = clock
        self._ends: Final[deque[tuple[float, RunRecord]]] = deque(maxlen=ENDS_MAX)
        self._later: Final[deque[tuple[float, RunRecord]]] = deque(maxlen=ENDS_MAX)

    def saw(self, run: RunRecord) -> None:
        """A run record was stored. Only ends of tasks with an account matter."""
        if run.session is None or run.state not in FINAL:
            return
        if run.incarnation:
            self._later.append((self._clock() + NODE_SETTLES_WITHIN_S, run))
        else:
            self._ends.append((0.0, run))

    async def keep(self) -> None:
        """Until the term is over."""
        look_at = self._clock() + NODE_SETTLES_WITHIN_S
        while self._term.active:
            try:
                await self._settle(self._ends)
                await self._settle(self._later)
                if self._clock() >= look_at:
                    look_at = self._clock() + LOOK_EVERY_S
                    await self.look()
            except BusError as error:
                log.info("what sessions used is settled a little later: %s", error)
            await asyncio.sleep(TURN_S)

    async def _settle(self, ends: deque[tuple[float, RunRecord]]) -> None:
        while ends and ends[0][0] <= self._clock() and self._term.active:
            run = ends[0][1]
            assert run.session is not None
            known = self._table.get(run.tenant, run.session.session_id)
            if known is None or run.task_id not in known.record.settled:
                try:
                    await self._settled(run, repaired=bool(run.incarnation))
                except OrchError as error:
                    log.warning("task %s is left to the next look at what is held: %s", run.task_id, error)
            ends.popleft()

    async def _settled(self, run: RunRecord, *, repaired: bool) -> None:
        stands = await self._store.settle(run, repaired=repaired)
        if stands is not None:
            self._table.saw(stands)

    async def look(self) -> None:
        """At everything that is held for tasks of this shard."""
        for known in list(self._table.under_way()):
            for task_id, hold in known.record.open.items():
                if subjects.shard_of(hold.pool_id) != self._term.shard or task_id in self._core.jobs:
                    continue
                try:
                    await self._look_at(known, task_id, hold)
                except (BusError, OrchError, Unreadable) as error:
                    log.info(
                        "what session %s holds for %s is looked at later: %s", known.record.session_id, task_id, error
                    )

    async def _look_at(self, known: Known, task_id: str, hold: SessionHold) -> None:
        """Raises BusError, OrchError; Unreadable for a run record of a newer release."""
        run = await self._run(task_id)
        if run is not None and run.state in FINAL:
            await self._settle_held(known, run)
        elif run is None and now_ms() - hold.at_ms > NEVER_QUEUED_MS:
            await self._release_unless_queued(known, task_id, hold)

    async def _settle_held(self, known: Known, run: RunRecord) -> None:
        """What the bus last said may be behind: it is settled once whatever is seen here."""
        if run.session is None:
            record = known.record
            wish = session_account.Wish(run.task_id, run.pool_id, run.tokens_out, 0, "", "")
            terms = session_account.terms(record, wish, self._table.policy(record.tenant))
            run = msgspec.structs.replace(run, session=terms)
        await self._settled(run, repaired=True)

    async def _release_unless_queued(self, known: Known, task_id: str, hold: SessionHold) -> None:
        """Not when it was reserved for anew since: then it is being queued now."""
        if (await self._locator.locate(task_id)).found or await self._run(task_id) is not None:
            return
        record, released = known.record, False

        def change(stored: SessionRecord | None) -> SessionRecord | None:
            nonlocal released
            if stored is None or stored.open.get(task_id) != hold:
                return None
            after = session_account.release(stored, task_id, None)
            released = after is not stored
            return after

        stands = await self._store.change(record.tenant, record.session_id, change)
        if stands is None:
            return
        self._table.saw(stands)
        if released:
            log.warning("task %s was reserved for and never queued; its session has that back", task_id)
            await self._store.tell(AuditEvent.SESSION_RELEASED, stands, task_id, {"repaired": True})

    async def _run(self, task_id: str) -> RunRecord | None:
        """Raises BusError, Unreadable."""
        message = await self._bus.last(streams.RUN, subjects.run(task_id))
        return None if message is None or message.deleted else decode_run(message.data, message.headers)
