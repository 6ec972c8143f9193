"""After a takeover: audit the ends that an earlier scheduler stored and did not live to audit.

The run record is the truth. What is missing is exactly what a scheduler ended (its final record names no incarnation)
and has no message at its audit subject. Looks back over a bounded number of records, and only after a while: a deposed
scheduler that still lives may have its last batch under way.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from llorch_scheduler.core.events import RunChanged
from llorch_scheduler.rebuild import read_runs
from llorch_shared import states, streams, subjects
from llorch_shared.bus.port import Bus
from llorch_shared.wire.audit import AuditEvent, AuditRecord, audit_of_run
from llorch_shared.wire.run import RunRecord

log = logging.getLogger(__name__)

REPAIR_AFTER_S: Final = 5.0
LOOK_BACK_RECORDS: Final = 5_000
LOOK_BACK_MS: Final = 600_000


class Auditor(Protocol):
    async def record(self, record: AuditRecord) -> None: ...


async def unaudited_ends(
    bus: Bus, shard: int, *, before_seq: int, now_ms: int, ended: Callable[[RunRecord], None]
) -> list[tuple[RunRecord, int]]:
    """Ends of the shard by a scheduler up to `before_seq` that nobody audited. `ended` is told every end that is looked
    at. Raises BusError."""
    runs = await read_runs(bus, shard, max(1, before_seq - LOOK_BACK_RECORDS), now_ms)
    unaudited: list[tuple[RunRecord, int]] = []
    for event in runs.events:
        if event.seq > before_seq or not _ended_lately(event, now_ms):
            continue
        ended(event.record)
        if not event.record.incarnation and not await _is_audited(bus, event.record):
            unaudited.append((event.record, event.seq))
    return unaudited


def _ended_lately(event: RunChanged, now_ms: int) -> bool:
    return event.record.state in states.FINAL and now_ms - event.record.ended_ms <= LOOK_BACK_MS


async def _is_audited(bus: Bus, record: RunRecord) -> bool:
    subject = subjects.audit(AuditEvent(str(record.state)), record.task_id)
    return await bus.last(streams.AUD, subject) is not None


def repaired(record: RunRecord, seq: int, *, actor: str) -> AuditRecord:
    """What its own scheduler would have said, but for the reason, which died with it."""
    return audit_of_run(
        AuditEvent(str(record.state)),
        record,
        run_seq=seq,
        at_ms=record.ended_ms,
        actor=actor,
        detail={
            "reason": record.error.code if record.error is not None else "unknown",
            "tokens_in": record.tokens_in,
            "tokens_out": record.tokens_out,
            **({} if record.cancel_ms is None else {"cancel_ms": record.cancel_ms}),
            "repaired": True,
        },
    )


async def repair_audit(
    bus: Bus,
    shard: int,
    audit: Auditor,
    *,
    before_seq: int,
    actor: str,
    now_ms: Callable[[], int],
    ended: Callable[[RunRecord], None],
    after_s: float = REPAIR_AFTER_S,
) -> int:
    """Returns how many ends were missing; `ended` is told all that were looked at. Raises BusError."""
    await asyncio.sleep(after_s)
    missing = await unaudited_ends(bus, shard, before_seq=before_seq, now_ms=now_ms(), ended=ended)
    for record, seq in missing:
        await audit.record(repaired(record, seq, actor=actor))
    if missing:
        log.warning("%d ends of an earlier scheduler were not audited; they are now", len(missing))
    return len(missing)
