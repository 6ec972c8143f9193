"""Accounts of sessions in their bucket: read, changed by compare-and-set, and put on the audit record.

A change is a pure function of the record (`session_account`) that does nothing the second time, so whatever is unclear
is simply made again: another writer came first, or an answer got lost. Many gateways at once on one session take turns
by the server's word, a bounded number of times.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from llorch_shared import session_account, streams, subjects
from llorch_shared.bus.port import Bus, Message, NoStream, Unanswered, WrongSequence
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.readable import UNREADABLE
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord, Detail
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import NANO, SESSION_DECODER, SessionRecord

TRIES_MAX: Final = 50
PAUSE_FIRST_S: Final = 0.001
PAUSE_MAX_S: Final = 0.1
STORE_TIMEOUT_S: Final = 2.0

Change = Callable[[SessionRecord | None], SessionRecord | None]
"""Gives the record as it should be; the same one, or None where there is none, when nothing is to be written."""

_encode: Final = msgspec.json.Encoder().encode


class Auditor(Protocol):
    async def record(self, record: AuditRecord) -> None: ...


class Known(msgspec.Struct, frozen=True):
    """A record as it was last seen, and its sequence."""

    record: SessionRecord
    seq: int


class SessionStore:
    """`actor`: service and instance, as in audit records."""

    def __init__(self, bus: Bus, audit: Auditor, *, actor: str) -> None:
        self._bus: Final = bus
        self._audit: Final = audit
        self._actor: Final = actor
        self._locks: Final[dict[str, asyncio.Lock]] = {}
        """One change of a session at a time in this process: only processes compete."""

    async def read(self, tenant: str, session_id: str) -> Known | None:
        """Raises BusError; OrchError for a record that cannot be read."""
        return known(await self._bus.last(streams.SES, subjects.session(tenant, session_id)))

    async def change(self, tenant: str, session_id: str, change: Change, *, seen: Known | None = None) -> Known | None:
        """Returns what stands then. `seen`: what is probably stored now, so that it need not be read. Raises BusError,
        what `change` raises, and OrchError 503 when others always come first."""
        subject = subjects.session(tenant, session_id)
        lock = self._locks.setdefault(subject, asyncio.Lock())
        try:
            async with lock:
                return await self._change(subject, change, seen)
        finally:
            if not lock.locked():
                self._locks.pop(subject, None)

    async def _change(self, subject: str, change: Change, seen: Known | None) -> Known | None:
        now, pause = seen, PAUSE_FIRST_S
        if now is None:
            now = known(await self._bus.last(streams.SES, subject))
        for _ in range(TRIES_MAX):
            before = now.record if now is not None else None
            try:
                after = change(before)
            except OrchError:
                if now is not seen or seen is None:
                    raise
                now, seen = known(await self._bus.last(streams.SES, subject)), None
                continue
            if after is None or after is before:
                return now
            try:
                stored = await self._bus.store(
                    subject,
                    _encode(after),
                    expect_seq=now.seq if now is not None else 0,
                    ttl_s=streams.SESSION_KEPT_S + after.limits.ttl_ms // 1000,
                    timeout_s=STORE_TIMEOUT_S,
                )
                return Known(after, stored.seq)
            except WrongSequence:
                unclear = False
            except (Unanswered, NoStream):
                unclear = True
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311  (not a secret)
            pause = min(PAUSE_MAX_S, 2 * pause)
            now, seen = known(await self._bus.last(streams.SES, subject)), None
            if unclear and now is not None and now.record == after:
                return now
        raise OrchError(ErrorCode.POOL_UNAVAILABLE, "the session's account cannot be written now", retry_after_ms=1_000)

    async def settle(self, run: RunRecord, *, repaired: bool = False, seen: Known | None = None) -> Known | None:
        """What the ended task used is spent, once. Raises BusError, OrchError."""
        terms = run.session
        if terms is None:
            return None
        used = used_of(run)
        settled_now = False

        def change(record: SessionRecord | None) -> SessionRecord | None:
            nonlocal settled_now
            if record is None:
                return None
            after = session_account.settle(record, used, now_ms())
            settled_now = after is not record
            return after

        stands = await self.change(run.tenant, terms.session_id, change, seen=seen)
        if settled_now and stands is not None:
            detail: Detail = {
                "tokens": used.tokens,
                "time_ms": used.time_ms,
                "cost": used.tokens * stands.record.nano_per_token / NANO,
            }
            if repaired:
                detail["repaired"] = True
            await self.tell(AuditEvent.SESSION_SETTLED, stands, run.task_id, detail, correlation_id=run.correlation_id)
        return stands

    async def tell(
        self,
        event: AuditEvent,
        stands: Known,
        about: str,
        detail: Detail,
        *,
        correlation_id: str = "",
        identity: str = "",
        channel: str = "",
    ) -> None:
        """Put a change on the audit record."""
        await self._audit.record(
            AuditRecord(
                event=event,
                task_id=about,
                at_ms=now_ms(),
                actor=self._actor,
                correlation_id=correlation_id,
                tenant=stands.record.tenant,
                identity=identity,
                channel=channel,
                detail={"session_id": stands.record.session_id, "revision": stands.seq, **detail},
            )
        )


def used_of(run: RunRecord) -> session_account.Used:
    return session_account.Used(
        task_id=run.task_id,
        tokens=run.tokens_out,
        time_ms=run.decode_ms,
        context=run.tokens_in + run.tokens_out,
        pool_id=run.pool_id,
        replica_id=run.replica_id,
    )


def known(message: Message | None) -> Known | None:
    """Raises OrchError for what is stored and is no account."""
    if message is None or message.deleted:
        return None
    try:
        return Known(SESSION_DECODER.decode(message.data), message.seq)
    except UNREADABLE as error:
        raise OrchError(ErrorCode.INTERNAL, f"the account at {message.subject} cannot be read") from error
