"""Changes of what is wanted (pools, drains, reloads, tenants, sessions' policy, the catalog) whose maker did not live
to audit them: each carries its record (`llorch_shared.change_note`), which is written here where it is missing.

One scheduler looks: who is in office for the first shard, at its takeover and then every `LOOK_EVERY_S`, at what was
stored since. It looks at nothing younger than `GRACE_S`, which its maker is still about to audit. The buckets keep 16
versions of a key: of one that is changed more often than that between two looks, the oldest are not told.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from llorch_shared import change_note, streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.audit import AUDIT_DECODER, AuditRecord

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 15.0
GRACE_S: Final = 60.0
"""A maker that lives writes within a tenth of a second. One that is cut off meanwhile may write later: then both stand,
with the same `stored`."""
LOOK_BACK_MS: Final = 24 * 3_600_000
"""Audit records are kept for 30 days: what is older than a day is not missing, it may have gone."""
_BUCKETS: Final = {streams.SPEC: subjects.spec(">"), streams.CATALOG: subjects.catalog(">")}


class Auditor(Protocol):
    async def record(self, record: AuditRecord) -> None: ...


class UnauditedChanges:
    """`look` may be called at any time; nothing is looked at twice but what was too young."""

    def __init__(self, bus: Bus, audit: Auditor, *, now_ms: Callable[[], int], grace_s: float = GRACE_S) -> None:
        self._bus: Final = bus
        self._audit: Final = audit
        self._now_ms: Final = now_ms
        self._grace_ms: Final = int(1000 * grace_s)
        self._looked: Final = dict.fromkeys(_BUCKETS, 0)

    async def keep(self, going: Callable[[], bool]) -> None:
        while going():
            try:
                await self.look()
            except BusError as error:
                log.info("looking for changes that are not audited waits for the bus: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> int:
        """Returns how many were missing, and are on the record now. Raises BusError."""
        missing = 0
        for stream, pattern in _BUCKETS.items():
            looked = self._looked[stream]
            if (await self._bus.stream_state(stream)).last_seq <= looked:
                continue
            for message in await self._bus.replay(stream, pattern, from_seq=looked + 1):
                record = change_note.read(message, stream)
                age_ms = self._now_ms() - (message.stored_ms or record.at_ms) if record is not None else 0
                if record is not None and age_ms < self._grace_ms:
                    break
                if record is not None and age_ms <= LOOK_BACK_MS and not await self._stands(record):
                    await self._audit.record(repaired(record))
                    missing += 1
                self._looked[stream] = message.seq
        if missing:
            log.warning("%d changes were not audited by who made them; they are now", missing)
        return missing

    async def _stands(self, record: AuditRecord) -> bool:
        subject = subjects.audit(str(record.event), record.task_id)
        return any(_tells(message, record) for message in await self._bus.replay(streams.AUD, subject))


def repaired(record: AuditRecord) -> AuditRecord:
    """As its maker would have written it, and marked. The link of its chain says who writes it."""
    return msgspec.structs.replace(record, detail={**record.detail, "repaired": True})


def _tells(message: Message, record: AuditRecord) -> bool:
    try:
        known = AUDIT_DECODER.decode(message.data)
    except UNREADABLE as error:
        log.warning("the audit record at %s #%d cannot be read: %s", message.subject, message.seq, error)
        return False
    return known.detail.get(change_note.STORED) == record.detail[change_note.STORED]
