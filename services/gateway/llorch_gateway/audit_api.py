"""What happened, by whom, when: pages of the audit stream, oldest first. A request reads a bounded part of it."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llorch_gateway.call import Call
from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.tasks import Tasks
from llorch_shared import streams, subjects
from llorch_shared.audit_times import first_since
from llorch_shared.bus.port import Bus, Message
from llorch_shared.errors import not_found
from llorch_shared.identifiers import is_uuid
from llorch_shared.wire.audit import AUDIT_DECODER, AuditList, AuditRecord

LIMIT_DEFAULT: Final = 100
READ_BYTES: Final = 256 * 1024
READS_MAX: Final = 8
NEVER: Final = 2**53
STORED_WITHIN_MS: Final = 600_000
"""Records are stored in batches of a moment, and after the bus was away as soon as it is back."""


def handlers(bus: Bus, tasks: Tasks) -> Handlers:
    async def listed(ask: Ask) -> Answer:
        given = ask.given
        task = given.get("task", "").lower()
        if task and ask.call.bound:
            if not is_uuid(task):
                raise not_found(f"task {task}")
            await tasks.find(task, ask.call)
        if cursor := given.get("cursor"):
            start = int(cursor)
        elif from_ms := given.get("from_ms"):
            start = await first_since(bus, from_ms)
        else:
            start = 1
        return Answer(await _page(bus, ask.call, given, task, start))

    return {"listAudit": listed}


async def _page(bus: Bus, call: Call, given: Mapping[str, Any], task: str, start: int) -> AuditList:
    subject = subjects.audits(given.get("event", ""), task)
    limit, from_ms, until_ms = given.get("limit", LIMIT_DEFAULT), given.get("from_ms", 0), given.get("until_ms", NEVER)
    found: list[AuditRecord] = []
    for _read in range(READS_MAX):
        page = await bus.page(streams.AUD, subject, from_seq=start, bytes_max=READ_BYTES)
        for message in page.messages:
            if message.stored_ms > until_ms + STORED_WITHIN_MS:
                return AuditList(records=tuple(found))
            if len(found) >= limit:
                return AuditList(records=tuple(found), cursor=str(message.seq))
            start = message.seq + 1
            record = _record(message)
            if record is None or not from_ms <= record.at_ms <= until_ms:
                continue
            if call.may_see(record.tenant) or (task and not record.tenant):
                found.append(record)
        if not page.more:
            return AuditList(records=tuple(found))
    return AuditList(records=tuple(found), cursor=str(start))


def _record(message: Message) -> AuditRecord | None:
    """None for what cannot be read: `orchctl audit verify` tells of it."""
    try:
        return AUDIT_DECODER.decode(message.data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
