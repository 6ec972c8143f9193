"""What clients may ask of sessions, and wish: accounts that they open, change and close, and what is known of a session
that has none.
"""

import asyncio
import logging
from typing import Final

import msgspec

from llorch_gateway.call import Call
from llorch_gateway.core.sessions import told, told_of_seen
from llorch_gateway.snapshot import Snapshot
from llorch_shared import session_account, streams, subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.errors import not_found
from llorch_shared.session_store import Known, SessionStore, known
from llorch_shared.session_table import SessionTable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.frames import Kind, peek
from llorch_shared.wire.session import (
    SESSION_SEEN_DECODER,
    SessionEnded,
    SessionInfo,
    SessionQuestion,
    SessionRecord,
    SessionRequest,
    SessionSeen,
)

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 1.0

_encode: Final = msgspec.json.Encoder().encode


class Sessions:
    def __init__(self, bus: Bus, snapshot: Snapshot, table: SessionTable, store: SessionStore) -> None:
        self._bus: Final = bus
        self._snapshot: Final = snapshot
        self._table: Final = table
        self._store: Final = store

    async def put(self, session_id: str, wanted: SessionRequest, call: Call) -> SessionInfo:
        """Give a session an account, or hold it to something else. Raises OrchError, BusError."""
        policy, event = self._table.policy(call.tenant), AuditEvent.SESSION_OPENED

        def change(record: SessionRecord | None) -> SessionRecord:
            nonlocal event
            if record is None:
                self._table.check_room(call.tenant, now_ms())
                return session_account.opened(session_id, call.tenant, policy, wanted, now_ms())
            event = AuditEvent.SESSION_CHANGED
            return session_account.rewritten(record, policy, wanted, now_ms())

        stands = await self._store.change(call.tenant, session_id, change)
        assert stands is not None
        self._table.saw(stands)
        given = {name: value for name in wanted.__struct_fields__ if (value := getattr(wanted, name)) is not None}
        await self._store.tell(event, stands, session_id, given, **call.origin)
        return self._told(stands)

    async def get(self, session_id: str, call: Call) -> SessionInfo:
        """Raises OrchError 404 for a session that is not, or not this caller's; BusError."""
        stands = await self._find(session_id, call)
        if stands is not None:
            if session_account.is_over(stands.record, self._table.policy(stands.record.tenant), now_ms()):
                raise not_found(f"session {session_id}")
            return self._told(stands)
        seen = await self._seen(session_id, call)
        if seen is None:
            raise not_found(f"session {session_id}")
        warm = seen.warm or await self._has_token(seen.task_id)
        return told_of_seen(session_id, seen, warm=warm)

    async def close(self, session_id: str, call: Call) -> None:
        """It takes no more tasks, its next place is not chosen for its cache, and engines erase what they hold of it.
        Raises as `get`, but for one that has ended before."""
        stands = await self._find(session_id, call)
        seen = await self._seen(session_id, call, forget=True)
        if stands is None:
            await self._deleted(session_id, seen, call)
            if seen is None:
                raise not_found(f"session {session_id}")
            return
        was_open = not stands.record.closed_ms

        def change(record: SessionRecord | None) -> SessionRecord | None:
            return None if record is None else session_account.closed(record, now_ms())

        after = await self._store.change(stands.record.tenant, session_id, change)
        self._tell_engines(session_id, stands.record.tenant)
        if after is not None:
            self._table.saw(after)
            if was_open:
                await self._store.tell(AuditEvent.SESSION_CLOSED, after, session_id, {}, **call.origin)

    async def _deleted(self, session_id: str, seen: SessionSeen | None, call: Call) -> None:
        """A session without an account was deleted. It is stored for nodes that do not hear it. One that no scheduler
        remembers may still be held by an engine. Raises BusError."""
        self._tell_engines(session_id, call.tenant if call.bound else "")
        if seen is None:
            return
        for tenant in seen.tenants or (call.tenant,):
            ended = SessionEnded(session_id=session_id, tenant=tenant, at_ms=now_ms())
            kept_s = streams.SESSION_DELETED_S + seen.left_ms // 1000
            await self._bus.store(subjects.session_deleted(tenant, session_id), _encode(ended), ttl_s=kept_s)

    def _tell_engines(self, session_id: str, tenant: str) -> None:
        ended = SessionEnded(session_id=session_id, tenant=tenant, at_ms=now_ms())
        self._bus.publish(subjects.SESSION_ENDED, _encode(ended))

    async def _find(self, session_id: str, call: Call) -> Known | None:
        """From the bucket, since it is asked for seldom. A bound caller has only its own tenant's sessions."""
        if (own := await self._store.read(call.tenant, session_id)) is not None or call.bound:
            return own
        for message in await self._bus.snapshot(streams.SES, subjects.session_of_any(session_id)):
            if (found := known(message)) is not None:
                return found
        return None

    async def _seen(self, session_id: str, call: Call, *, forget: bool = False) -> SessionSeen | None:
        """By the schedulers' memory; one that does not answer knows nothing."""
        question = SessionQuestion(session_id=session_id, tenant=call.tenant if call.bound else "", forget=forget)
        shards = sorted(self._snapshot.shards())
        answers = await asyncio.gather(*(self._ask(shard, question) for shard in shards))
        found = [answer for answer in answers if answer is not None and answer.found]
        if not found:
            return None
        latest = max(found, key=lambda answer: answer.left_ms)
        tenants = dict.fromkeys(tenant for answer in found for tenant in answer.tenants)
        return msgspec.structs.replace(latest, turns=sum(answer.turns for answer in found), tenants=tuple(tenants))

    async def _ask(self, shard: int, question: SessionQuestion) -> SessionSeen | None:
        try:
            answer = await self._bus.request(subjects.session_seen(shard), _encode(question), timeout_s=ASK_TIMEOUT_S)
            return SESSION_SEEN_DECODER.decode(answer.data)
        except (BusError, msgspec.MsgspecError) as error:
            log.info("shard %d says nothing of a session: %s", shard, error)
            return None

    async def _has_token(self, task: str) -> bool:
        """Whether a task under way has generated."""
        if not task:
            return False
        message = await self._bus.last(streams.TOK, subjects.tokens_of_task(task))
        return message is not None and peek(message.data).kind is Kind.TOKENS

    def _told(self, stands: Known) -> SessionInfo:
        record = stands.record
        replicas = self._snapshot.replicas.get(record.pool_id, ())
        per_token = next((each.kv_bytes_per_token for each in replicas if each.replica_id == record.replica_id), 0)
        return told(record, self._table.policy(record.tenant), now_ms=now_ms(), kv_bytes_per_token=per_token)
