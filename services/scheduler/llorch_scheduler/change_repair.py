"""After a takeover: audit the changes of pools that nobody audited, because nobody was in office when they were stored,
or because the scheduler that saw them did not live to say so.

The spec bucket keeps the last versions of every pool. What is missing is exactly a version that differs from the one
before it and whose revision no audit record names. The oldest version that is kept has none before it, and is not told.
"""

import logging
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Final, Protocol

import msgspec

from llorch_scheduler.core import spec_change
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

log = logging.getLogger(__name__)

LOOK_BACK_MS: Final = 24 * 3_600_000
"""Audit records are kept for 30 days: what is older than a day is not missing, it may have gone."""


class Auditor(Protocol):
    async def record(self, record: AuditRecord) -> None: ...


async def repair_changes(
    bus: Bus, pool_ids: Iterable[str], audit: Auditor, *, before_seq: int, actor: str, now_ms: Callable[[], int]
) -> int:
    """Audit what is missing up to `before_seq`, the last version that was read at the takeover. Returns how many
    changes that were. Raises BusError."""
    missing = 0
    for pool_id in pool_ids:
        for record in await _unaudited(bus, pool_id, before_seq=before_seq, actor=actor, now_ms=now_ms()):
            await audit.record(record)
            missing += 1
    if missing:
        log.warning("%d changes of pools were not audited; they are now", missing)
    return missing


async def _unaudited(bus: Bus, pool_id: str, *, before_seq: int, actor: str, now_ms: int) -> list[AuditRecord]:
    messages = await bus.replay(streams.SPEC, subjects.spec(subjects.pool_key(pool_id)))
    versions = [(message, spec) for message in messages if (spec := _spec(message)) is not msgspec.UNSET]
    due = [
        (before, after, message.seq, message.stored_ms or now_ms)
        for (_, before), (message, after) in pairwise(versions)
        if message.seq <= before_seq and before != after
    ]
    due = [each for each in due if now_ms - each[3] <= LOOK_BACK_MS]
    known = await _audited_revisions(bus, pool_id) if due else frozenset()
    return [
        spec_change.audit(before, after, pool_id, at_ms, actor, revision=seq, repaired=True)
        for before, after, seq, at_ms in due
        if seq not in known
    ]


async def _audited_revisions(bus: Bus, pool_id: str) -> frozenset[int]:
    messages = await bus.replay(streams.AUD, subjects.audit(AuditEvent.POOL_CHANGED, pool_id))
    found = set()
    for message in messages:
        try:
            revision = AUDIT_DECODER.decode(message.data).detail.get("revision")
        except msgspec.DecodeError as error:
            log.warning("the audit record at %s #%d cannot be read: %s", message.subject, message.seq, error)
            continue
        if isinstance(revision, int):
            found.add(revision)
    return frozenset(found)


def _spec(message: Message) -> PoolSpec | msgspec.UnsetType | None:
    """None when it was removed; UNSET when it cannot be read: no scheduler has followed it."""
    if message.deleted:
        return None
    try:
        return POOL_DECODER.decode(message.data)
    except UNREADABLE:
        return msgspec.UNSET
