"""Tasks whose session has an account, on their way from the queue into the core: nothing is placed that was not
reserved for. A gateway has done that already; a bus client that put its task into the queue itself has not, and is
refused here as it would have been there: its task ends with the error. What a gateway has accepted before there
was the account is not refused any more: the session pays for it.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from llorch_scheduler.core.events import Event, TaskArrived
from llorch_shared import session_account
from llorch_shared.bus.port import Unanswered
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


class SessionGate:
    def __init__(self, table: SessionTable, store: SessionStore) -> None:
        self._table: Final = table
        self._store: Final = store
        self._room: Final = asyncio.Semaphore(AT_ONCE)

    async def through(self, events: Sequence[Event]) -> Sequence[Event]:
        """The events with the terms of their sessions. Costs nothing where no session has an account. Raises
        BusError."""
        concerned = {
            number: event
            for number, event in enumerate(events)
            if isinstance(event, TaskArrived)
            and event.request is not None
            and event.problem is None
            and self._table.concerns(event.tenant, event.request.session_id.lower())
        }
        if not concerned:
            return events
        passed = list(events)
        told = await asyncio.gather(*(self._reserved(event) for event in concerned.values()))
        for number, event in zip(concerned, told, strict=True):
            passed[number] = event
        return passed

    async def _reserved(self, event: TaskArrived) -> TaskArrived:
        request = event.request
        assert request is not None
        wish = session_account.wish_of(request, event.pool_id, OWNER)
        tenant, session_id = event.tenant, request.session_id.lower()
        known = self._table.get(tenant, session_id)
        try:
            if known is None or wish.task_id not in known.record.open:
                async with self._room:
                    known = await self._reserve(event, request, known)
        except OrchError as error:
            if error.code is ErrorCode.POOL_UNAVAILABLE:
                raise Unanswered(str(error)) from error
            if event.channel == "http" and error.code is ErrorCode.INTERNAL:
                log.warning("task %s runs without an account: %s", event.task_id, error)
                return event
            return msgspec.structs.replace(event, problem=error.body)
        if known is None:
            return event
        terms = session_account.terms(known.record, wish, self._table.policy(tenant))
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
