"""What sessions may use, in the spec bucket: written from the config at start, by compare-and-set, and audited."""

from typing import Final

import msgspec

from llorch_shared import audit_chain, change_note, streams, subjects
from llorch_shared.bus.conflicts import retry_on_conflict
from llorch_shared.bus.port import Bus
from llorch_shared.readable import UNREADABLE
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.session import SESSIONS_SPEC_DECODER, SessionsSpec
from llorch_shared.wire.version import Kind, version_headers

ACTOR: Final = "orchctl"


async def apply(bus: Bus, wanted: SessionsSpec) -> bool:
    """Make the bucket hold exactly this; whether that changed anything. Raises BusError."""
    subject = subjects.spec(subjects.SESSION_POLICY_KEY)

    async def attempt() -> AuditRecord | None:
        message = await bus.last(streams.SPEC, subject)
        if _stored(message.data if message is not None and not message.deleted else None) == wanted:
            return None
        note = _note(wanted)
        stored = await bus.store(
            subject,
            msgspec.json.encode(wanted),
            headers=change_note.with_note(version_headers(Kind.SPEC), note),
            expect_seq=message.seq if message is not None else 0,
        )
        return change_note.stored(note, streams.SPEC, stored.seq)

    changed = await retry_on_conflict(attempt)
    if changed is None:
        return False
    await bus.store_batch(audit_chain.alone(changed))
    return True


def _stored(data: bytes | None) -> SessionsSpec | None:
    """None for what cannot be read. Nobody has written it: the defaults are in effect."""
    if data is None:
        return SessionsSpec()
    try:
        return SESSIONS_SPEC_DECODER.decode(data)
    except UNREADABLE:
        return None


def _note(wanted: SessionsSpec) -> AuditRecord:
    return AuditRecord(
        event=AuditEvent.SESSION_POLICY_CHANGED,
        task_id=subjects.SESSION_POLICY_KEY,
        at_ms=now_ms(),
        actor=ACTOR,
        detail={"policy": msgspec.json.encode(wanted).decode()},
    )
