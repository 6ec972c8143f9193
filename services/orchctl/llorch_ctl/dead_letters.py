"""Dead letters as an operator handles them: look, publish the original again, or drop it. Each action is audited.

Replaying takes the original's own way: same subject, same payload, same headers, under a message id of its own, which
is made of the letter's place: a replay whose answer got lost is repeated without harm. The letter goes when the server
has confirmed the original.
"""

from typing import Final

import msgspec

from llorch_ctl.exits import Problem
from llorch_ctl.pools import ACTOR, user
from llorch_shared import audit_chain, streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message, Stored
from llorch_shared.states import FINAL
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.dead import DeadLetter, Reason, decode_letter
from llorch_shared.wire.run import decode_run
from llorch_shared.wire.version import Unreadable

PAGE: Final = 100
"""Letters read at once; one may be 1 MiB."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A letter and its id: its place in the stream of letters."""

    id: int
    size: int
    """Of the payload that is kept, bytes."""
    letter: DeadLetter


class Hopeless(Exception):
    """Publishing this one again would do nothing."""


async def each(bus: Bus, *, reason: Reason | None = None) -> list[Kept]:
    """All letters, oldest first, without their payloads. Raises BusError."""
    found: list[Kept] = []
    seq = 0
    while True:
        messages = await bus.replay(streams.DEAD, subjects.ALL_DEAD_LETTERS, from_seq=seq + 1, limit=PAGE)
        for message in messages:
            seq = message.seq
            kept = _kept(message)
            if kept is not None and reason in (None, kept.letter.reason):
                light = msgspec.structs.replace(kept.letter, data=b"")
                found.append(msgspec.structs.replace(kept, letter=light))
        if len(messages) < PAGE:
            return found


async def one(bus: Bus, letter_id: int) -> Kept | None:
    """Raises BusError."""
    for message in await bus.replay(streams.DEAD, subjects.ALL_DEAD_LETTERS, from_seq=letter_id, limit=1):
        if message.seq == letter_id:
            return _kept(message)
    return None


async def replay(bus: Bus, kept: Kept) -> Stored:
    """Publish the original again and remove the letter. Raises Hopeless, BusError; Problem when it is done and not on
    the record."""
    letter = kept.letter
    if letter.cut_bytes:
        raise Hopeless(f"only the beginning of its {letter.cut_bytes} bytes is kept")
    if letter.task_id and (state := await _ended(bus, letter.task_id)):
        raise Hopeless(f"its task {letter.task_id} has ended ({state}): submit it again under a new task_id")
    stored = await bus.store(
        letter.subject,
        letter.data,
        msg_id=f"replay:{kept.id}:{letter.at_ms}",
        headers=letter.replay_headers(),
    )
    await bus.remove(streams.DEAD, kept.id)
    await _audit(bus, AuditEvent.LETTER_REPLAYED, kept, stored_seq=stored.seq)
    return stored


async def drop(bus: Bus, kept: Kept) -> None:
    """Raises BusError, and Problem as `replay` does."""
    await bus.remove(streams.DEAD, kept.id)
    await _audit(bus, AuditEvent.LETTER_DROPPED, kept, stored_seq=0)


async def _ended(bus: Bus, task_id: str) -> str:
    """The final state of a task; empty when it has none, or none that can be read."""
    message = await bus.last(streams.RUN, subjects.run(task_id))
    if message is None or message.deleted:
        return ""
    try:
        state = decode_run(message.data, message.headers).state
    except Unreadable:
        return ""
    return str(state) if state in FINAL else ""


def _kept(message: Message) -> Kept | None:
    """None for what is no letter of ours."""
    try:
        letter = decode_letter(message.subject, message.data, message.headers)
    except ValueError:
        return None
    return Kept(id=message.seq, size=len(message.data), letter=letter)


async def _audit(bus: Bus, event: AuditEvent, kept: Kept, *, stored_seq: int) -> None:
    letter = kept.letter
    subject_of = letter.task_id or letter.pool_id
    record = AuditRecord(
        event=event,
        task_id=subject_of,
        at_ms=now_ms(),
        actor=ACTOR,
        identity=user(),
        pool_id=letter.pool_id,
        detail={
            "letter": kept.id,
            "what": letter.what,
            "reason": letter.reason,
            "stream": letter.stream,
            "stream_seq": stored_seq or letter.seq,
        },
    )
    try:
        await bus.store_batch(audit_chain.alone(record))
    except BusError as error:
        raise Problem(
            f"letter {kept.id} is done with, but the record of it is not stored: {error or type(error).__name__}",
            fix="look at the bus: orchctl status",
        ) from error
