"""Tasks whose session has an account, on their way from the queue into the core: nothing is placed that was not
reserved for. A gateway has done that already; a bus client that put its task into the queue itself has not, and is
refused here as it would have been there: its task ends with the error. What a gateway has accepted before there
was the account is not refused any more: the session pays for it.

While accounts cannot be written, the tasks that need one wait aside, and all others pass.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from llorch_scheduler.core.events import AdmissionRef, Event, TaskArrived
from llorch_shared import session_account
from llorch_shared.bus.port import BusError, Unanswered
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.session_store import Known, SessionStore
from llorch_shared.session_table import SessionTable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.session import SessionRecord, SessionRequest
from llorch_shared.wire.task import TaskRequest

log = logging.getLogger(__name__)

OWNER: Final = "scheduler"
AT_ONCE: Final = 32
WAIT_S: Final = 1.0
"""How long the first tasks that wait aside hold up those that came with them: usually accounts are written sooner, and
the tasks get in together."""
RETRY_S: Final = 0.5


class SessionGate:
    """`offer` takes a task that waited aside, sooner or later."""

    def __init__(self, table: SessionTable, store: SessionStore, offer: Callable[[Event], None]) -> None:
        self._table: Final = table
        self._store: Final = store
        self._offer: Final = offer
        self._room: Final = asyncio.Semaphore(AT_ONCE)
        self._aside: Final[dict[AdmissionRef, TaskArrived]] = {}
        """Bounded as what the queues hold."""

    def waits(self, task_id: str) -> bool:
        """Whether this task waits aside."""
        return any(event.task_id == task_id for event in self._aside.values())

    async def through(self, events: Sequence[Event], tasks: asyncio.TaskGroup) -> Sequence[Event]:
        """The events that may go on, with the terms of their sessions; the others are offered when they may. Costs
        nothing where no session has an account."""
        passed: list[Event] = []
        begun: list[asyncio.Task[None]] = []
        crowded = bool(self._aside)
        for event in events:
            if not isinstance(event, TaskArrived) or not self._concerns(event):
                passed.append(event)
            elif (known := self._holds(event)) is not None:
                passed.append(self._with_terms(event, known))
            elif event.ref not in self._aside:
                self._aside[event.ref] = event
                begun.append(tasks.create_task(self._see_to(event), name=f"account for {event.task_id}"))
        if begun and not crowded:
            await asyncio.wait(begun, timeout=WAIT_S)
        return passed

    def _concerns(self, event: TaskArrived) -> bool:
        request = event.request
        if request is None or event.problem is not None:
            return False
        return self._table.concerns(event.tenant, request.session_id.lower())

    def _holds(self, event: TaskArrived) -> Known | None:
        """The account that holds something for this task already, as far as it is known here."""
        assert event.request is not None
        known = self._table.get(event.tenant, event.request.session_id.lower())
        return known if known is not None and event.task_id in known.record.open else None

    async def _see_to(self, event: TaskArrived) -> None:
        level = logging.WARNING
        async with self._room:
            while True:
                try:
                    told = await self._reserved(event)
                    break
                except BusError as error:
                    log.log(level, "task %s waits for the account of its session: %s", event.task_id, error)
                    level = logging.DEBUG
                await asyncio.sleep(RETRY_S)
        del self._aside[event.ref]
        self._offer(told)

    async def _reserved(self, event: TaskArrived) -> TaskArrived:
        """Raises BusError."""
        request = event.request
        assert request is not None
        known = self._table.get(event.tenant, request.session_id.lower())
        try:
            known = await self._reserve(event, request, known)
        except OrchError as error:
            if error.code is ErrorCode.POOL_UNAVAILABLE:
                raise Unanswered(str(error)) from error
            if event.channel == "http" and error.code is ErrorCode.INTERNAL:
                log.warning("task %s runs without an account: %s", event.task_id, error)
                return event
            return msgspec.structs.replace(event, problem=error.body)
        return event if known is None else self._with_terms(event, known)

    def _with_terms(self, event: TaskArrived, known: Known) -> TaskArrived:
        assert event.request is not None
        wish = session_account.wish_of(event.request, event.pool_id, OWNER)
        terms = session_account.terms(known.record, wish, self._table.policy(event.tenant))
        return msgspec.structs.replace(event, session=terms)

    async def _reserve(self, event: TaskArrived, request: TaskRequest, known: Known | None) -> Known | None:
        tenant, session_id, policy = event.tenant, request.session_id.lower(), self._table.policy(event.tenant)
        wish = session_account.wish_of(request, event.pool_id, OWNER)
        reserved = False

        def change(record: SessionRecord | None) -> SessionRecord | None:
            nonlocal reserved
            if record is None:
                if not policy.keeps:
                    return None
                if event.channel != "http":
                    self._table.check_room(tenant, now_ms())
                record = session_account.opened(session_id, tenant, policy, SessionRequest(), now_ms())
            if wish.task_id in record.open:
                return record
            try:
                after = session_account.reserve(record, wish, policy, now_ms())
            except OrchError:
                if event.channel != "http" or record.created_ms <= event.admitted_ms:
                    raise
                after = session_account.charge(record, wish, now_ms())
            reserved = after is not record
            return after

        stands = await self._store.change(tenant, session_id, change, seen=known)
        if stands is None:
            return None
        self._table.saw(stands)
        if reserved:
            held = stands.record.open[wish.task_id].amounts
            await self._store.tell(
                AuditEvent.SESSION_RESERVED,
                stands,
                wish.task_id,
                {"tokens": held.tokens, "time_ms": held.time_ms},
                correlation_id=event.correlation_id,
                channel=event.channel,
            )
        return stands
