"""After a crash: audit the ends that an earlier life of this node stored and did not live to audit.

The run record is the truth and the audit subject names event and task, so what is missing is exactly what has a final
run record of this node and no message at its audit subject. An end without an incarnation is the scheduler's.
Looks back over a bounded number of records. What a newer release wrote is its own to audit.
"""

import logging
from typing import Final

from llorch_poold.core.audit import EVENTS, audit_of
from llorch_shared import states, streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus.port import Bus
from llorch_shared.wire.run import decode_run
from llorch_shared.wire.version import Unreadable

log = logging.getLogger(__name__)

LOOK_BACK_RECORDS: Final = 5_000
LOOK_BACK_MS: Final = 600_000


async def repair_audit(bus: Bus, audit: Audit, *, node_id: str, now_ms: int) -> int:
    """Returns how many ends were missing. Raises BusError."""
    newest = (await bus.stream_state(streams.RUN)).last_seq
    from_seq = max(1, newest - LOOK_BACK_RECORDS)
    missing = 0
    for message in await bus.replay(streams.RUN, subjects.ALL_RUNS, from_seq=from_seq, limit=LOOK_BACK_RECORDS):
        try:
            run = decode_run(message.data, message.headers)
        except Unreadable as error:
            log.warning("the run record at %d cannot be read: %s", message.seq, error)
            continue
        if run.node_id != node_id or not run.incarnation or run.state not in states.FINAL or run.state not in EVENTS:
            continue
        if now_ms - run.ended_ms > LOOK_BACK_MS:
            continue
        if await bus.last(streams.AUD, subjects.audit(EVENTS[run.state], run.task_id)) is None:
            await audit.record(audit_of(run, message.seq, node_id))
            missing += 1
    return missing
