"""Changes of what is wanted (pools, drains, reloads, tenants, sessions' policy, the catalog) that are not on the audit
record.

A change carries the record of its maker (`llorch_shared.change_note`). Where that is missing a while later, whoever was
to write it did not live to, and it is written here. Where it is a change of a model's state, its pools may not have
followed it either (`llorch_shared.desired.model_pools`): that is made up for, too. One of a pool that carries none (a
bus client put it there, a node at a reload, or an earlier release) is told here alone, as what differs from the version
before.

One scheduler looks: who is in office for the first shard that has pools, at its takeover and then every
`LOOK_EVERY_S`, at what was stored since. The buckets keep so many versions of a key: of one that is changed more often
than that between two looks, the oldest are not told. Nor is the oldest that is kept of a pool when others may have
gone: what was before it is not known.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from llorch_shared import change_note, streams, subjects
from llorch_shared.bus.port import Bus, BusError, Denied, Message
from llorch_shared.catalog import Catalog
from llorch_shared.desired import model_pools
from llorch_shared.desired.entries import Author
from llorch_shared.desired.pools import POOLS
from llorch_shared.pool_keys import changes
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord
from llorch_shared.wire.catalog import ENTRY_DECODER
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec
from llorch_shared.wire.version import Unreadable

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
GRACE_S: Final = 60.0
"""Of a maker. Who lives writes within a tenth of a second. One that is cut off meanwhile may write later: then both
stand, with the same mark."""
LOOK_BACK_MS: Final = 24 * 3_600_000
"""Audit records are kept for 30 days: what is older than a day is not missing, it may have gone."""
_BUCKETS: Final = {streams.SPEC: subjects.spec(">"), streams.CATALOG: subjects.catalog(">")}
_POOLS: Final = subjects.spec("pool.")


class Auditor(Protocol):
    async def record(self, record: AuditRecord) -> None: ...


class UnauditedChanges:
    """`look` may be called at any time; nothing is looked at twice but what was too young."""

    def __init__(
        self, bus: Bus, audit: Auditor, *, actor: str, now_ms: Callable[[], int], grace_s: float = GRACE_S
    ) -> None:
        self._bus: Final = bus
        self._audit: Final = audit
        self._actor: Final = actor
        self._now_ms: Final = now_ms
        self._grace_ms: Final = int(1000 * grace_s)
        self._looked: Final = dict.fromkeys(_BUCKETS, 0)
        self._pools: Final[dict[str, PoolSpec | msgspec.UnsetType | None]] = {}
        """By subject: the newest version that was looked at; None where it was removed, UNSET where it is not known."""

    async def keep(self, *, going: Callable[[], bool], turn: Callable[[], bool]) -> None:
        while going():
            try:
                if turn():
                    await self.look()
            except BusError as error:
                log.info("looking for changes that are not audited waits for the bus: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> int:
        """Returns how many were not on the record, and are now. Raises BusError."""
        return sum([await self._look_at(stream, pattern) for stream, pattern in _BUCKETS.items()])

    async def _look_at(self, stream: str, pattern: str) -> int:
        looked, told = self._looked[stream], 0
        if (await self._bus.stream_state(stream)).last_seq <= looked:
            return 0
        found = await self._bus.replay(stream, pattern, from_seq=looked + 1)
        if not looked:
            kept = Counter(message.subject for message in found)
            self._pools.update((subject, msgspec.UNSET) for subject, count in kept.items() if count >= streams.VERSIONS)
        for message in found:
            note = change_note.read(message, stream)
            record = note or self._difference(message)
            age_ms = self._now_ms() - (message.stored_ms or record.at_ms) if record is not None else 0
            if record is not None and age_ms <= LOOK_BACK_MS and not await self._stands(record):
                if note is None:
                    await self._audit.record(record)
                elif age_ms < self._grace_ms:
                    break
                else:
                    await self._make_up_for(message, note, stream)
                told += 1
            self._passed(message)
            self._looked[stream] = message.seq
        return told

    async def _make_up_for(self, message: Message, record: AuditRecord, stream: str) -> None:
        """Its maker did not live to tell it."""
        log.warning("the change of %s at #%d was not audited by who made it; it is now", message.subject, message.seq)
        if stream == streams.CATALOG and record.detail.get("change") == "state":
            await self._follow(message, record)
        await self._audit.record(repaired(record))

    def _difference(self, message: Message) -> AuditRecord | None:
        """What a version of a pool changes of the one before; None where nothing, or where that is not known."""
        before, after = self._pools.get(message.subject), _pool(message)
        if before is msgspec.UNSET or after is msgspec.UNSET or before == after:
            return None
        pool_id = subjects.last_token(message.subject)
        record = AuditRecord(
            event=AuditEvent.POOL_CHANGED,
            task_id=pool_id,
            at_ms=message.stored_ms or self._now_ms(),
            actor=self._actor,
            pool_id=pool_id,
            detail={"changes": [str(each) for each in changes(before, after)] if after is not None else ["removed"]},
        )
        return change_note.stored(record, streams.SPEC, message.seq)

    def _passed(self, message: Message) -> None:
        pool = _pool(message)
        if pool is not msgspec.UNSET:
            self._pools[message.subject] = pool

    async def _follow(self, message: Message, record: AuditRecord) -> None:
        """The pools of a model as its change of state wants them, where it is in that state still."""
        by = Author(self._actor, self._actor, self._audit.record, correlation_id=record.correlation_id)
        try:
            told = ENTRY_DECODER.decode(message.data)
            kept = await Catalog(self._bus).get(told.id)
            if kept is None or (kept.entry.state, kept.entry.changed_ms) != (told.state, told.changed_ms):
                return
            pools = await self._now_with(told.source_url)
            deadline_ms = max(0, (told.drain_deadline_ms or 0) - self._now_ms())
            await model_pools.follow(
                self._bus, told, pools, by, deadline_ms=deadline_ms, unless_since_ms=message.stored_ms
            )
        except (*UNREADABLE, Unreadable) as error:
            log.warning("what became of a model at %s #%d cannot be read: %s", message.subject, message.seq, error)
        except Denied as error:
            log.warning("the pools of model %s cannot follow its state %s: %s", told.id, told.state, error)

    async def _now_with(self, model: str) -> list[PoolSpec]:
        """Pools of the model. What is too young to be looked at counts, too: a pool may have another one by now."""
        known = [pool.id for pool in self._pools.values() if isinstance(pool, PoolSpec) and pool.model == model]
        return [pool for pool_id in known if (pool := (await POOLS.read(self._bus, pool_id)).value) is not None]

    async def _stands(self, record: AuditRecord) -> bool:
        subject = subjects.audit(str(record.event), record.task_id)
        return any(_tells(message, record) for message in await self._bus.replay(streams.AUD, subject))


def repaired(record: AuditRecord) -> AuditRecord:
    """As it would have been written, and marked. The link of its chain says who writes it."""
    return msgspec.structs.replace(record, detail={**record.detail, "repaired": True})


def _tells(message: Message, record: AuditRecord) -> bool:
    try:
        known = AUDIT_DECODER.decode(message.data)
    except UNREADABLE as error:
        log.warning("the audit record at %s #%d cannot be read: %s", message.subject, message.seq, error)
        return False
    return known.detail.get(change_note.STORED) == record.detail[change_note.STORED]


def _pool(message: Message) -> PoolSpec | msgspec.UnsetType | None:
    """None when it was removed; UNSET when it is no pool, or one that cannot be read: no scheduler has followed it."""
    if not message.subject.startswith(_POOLS):
        return msgspec.UNSET
    if message.deleted:
        return None
    try:
        return POOL_DECODER.decode(message.data)
    except UNREADABLE:
        return msgspec.UNSET
