"""What a task is reserved for in its session's account before it is queued, and what the session has left then.

Whether a session has an account is known from a table that follows the bucket, so a task of one that has none costs
nothing. An account that another gateway made a moment ago may not be in the table yet: then the scheduler reserves for
the task before it places it.
"""

import logging
from collections import OrderedDict
from typing import Final

from llorch_gateway.call import Call
from llorch_shared import session_account, session_budget
from llorch_shared.bus.port import BusError
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.session_store import SessionStore
from llorch_shared.session_table import Key, SessionTable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, Detail
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import SessionRecord, SessionRemaining, SessionRequest
from llorch_shared.wire.task import TaskRequest

log = logging.getLogger(__name__)

TASKS_MAX: Final = 16_384
UNSURE: Final = frozenset({ErrorCode.POOL_UNAVAILABLE, ErrorCode.INTERNAL})
"""After these nobody knows whether the task is queued: what was reserved is kept until the scheduler has looked."""


class SessionReservations:
    """`owner` names this process among those that may reserve for one task."""

    def __init__(self, table: SessionTable, store: SessionStore, *, owner: str) -> None:
        self._table: Final = table
        self._store: Final = store
        self._owner: Final = owner
        self._of_task: Final[OrderedDict[str, Key]] = OrderedDict()

    def since_ms(self, request: TaskRequest, call: Call) -> int | None:
        """When the account of its session was opened, as far as is known here."""
        return self._table.since_ms(call.tenant, request.session_id.lower())

    async def reserve(self, request: TaskRequest, pool_id: str, call: Call) -> SessionRemaining | None:
        """What the session has left when this task is reserved for; None for a session without an account. Raises
        OrchError when the session takes no such task, BusError."""
        tenant, session_id = call.tenant, request.session_id.lower()
        if not self._table.concerns(tenant, session_id):
            return None
        policy = self._table.policy(tenant)
        wish = session_account.wish_of(request, pool_id, self._owner)
        reserved = False

        def change(record: SessionRecord | None) -> SessionRecord | None:
            nonlocal reserved
            if record is None:
                if not policy.keeps:
                    return None
                self._table.check_room(tenant, now_ms())
                record = session_account.opened(session_id, tenant, policy, SessionRequest(), now_ms())
            after = session_account.reserve(record, wish, policy, now_ms())
            reserved = wish.task_id in after.open and wish.task_id not in record.open
            return after

        seen = self._table.get(tenant, session_id)
        stands = await self._store.change(tenant, session_id, change, seen=seen)
        if stands is None:
            return None
        self._table.saw(stands)
        self._remember(request.task_id, (tenant, session_id))
        if reserved:
            held = stands.record.open[wish.task_id].amounts
            detail: Detail = {"tokens": held.tokens, "time_ms": held.time_ms}
            await self._store.tell(AuditEvent.SESSION_RESERVED, stands, wish.task_id, detail, **call.origin)
        return session_budget.remaining(stands.record, policy)

    async def give_back(self, request: TaskRequest, call: Call, error: BaseException) -> None:
        """The task was not queued. Where that is not certain, or cannot be written now, the scheduler finds out."""
        tenant, session_id = call.tenant, request.session_id.lower()
        seen = self._table.get(tenant, session_id)
        if seen is None or not isinstance(error, OrchError) or error.code in UNSURE:
            return
        released = False

        def change(record: SessionRecord | None) -> SessionRecord | None:
            nonlocal released
            if record is None:
                return None
            after = session_account.release(record, request.task_id, self._owner)
            released = request.task_id in record.open and request.task_id not in after.open
            return after

        try:
            stands = await self._store.change(tenant, session_id, change)
        except (BusError, OrchError) as problem:
            log.info("what was reserved for %s is given back by the scheduler: %s", request.task_id, problem)
            return
        self._of_task.pop(request.task_id, None)
        if stands is not None:
            self._table.saw(stands)
            if released:
                reason: Detail = {"reason": error.code}
                await self._store.tell(AuditEvent.SESSION_RELEASED, stands, request.task_id, reason, **call.origin)

    def remaining(self, task: str, run: RunRecord | None) -> SessionRemaining | None:
        """What the session of a task has left now; None without an account. Asks nobody."""
        key = self._of_task.get(task)
        if key is None and run is not None and run.session is not None:
            key = run.tenant, run.session.session_id
        stands = self._table.get(*key) if key is not None else None
        if stands is None:
            return None
        return session_budget.remaining(stands.record, self._table.policy(stands.record.tenant))

    def _remember(self, task: str, key: Key) -> None:
        self._of_task[task] = key
        if len(self._of_task) > TASKS_MAX:
            self._of_task.popitem(last=False)
