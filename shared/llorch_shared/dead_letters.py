"""Sets aside what a queue holds and nobody can work on, so that the queue goes on and nothing is lost.

The letter is stored before its original is acknowledged, under a message id made of the original's place: whoever dies
in between, the next one stores it again and the server keeps one. The record in the audit stream has an id, too; it is
a chain of its own, because another process may have stored it before.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from llorch_shared import audit_chain, subjects
from llorch_shared.bus.port import Bus, BusError, Duplicate, Message, Stored, TooLarge
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.dead import DeadLetter, Reason, What, cut, encode_letter
from llorch_shared.wire.version import NewerVersion, Unreadable

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")


class DeadLetters:
    """`actor` is who gives up, as in audit records. Without `metrics` nothing is counted."""

    def __init__(self, bus: Bus, *, actor: str, metrics: Metrics | None = None) -> None:
        self._bus: Final = bus
        self._actor: Final = actor
        self._counted: Final = metrics.counter("dead_letters_total") if metrics is not None else None

    def letter(
        self, what: What, pool_id: str, stream: str, message: Message, problem: Exception, *, task_id: str = ""
    ) -> DeadLetter:
        return DeadLetter(
            what=what,
            pool_id=pool_id,
            reason=reason_of(problem),
            problem=str(problem) or type(problem).__name__,
            subject=message.subject,
            stream=stream,
            seq=message.seq,
            at_ms=now_ms(),
            actor=self._actor,
            task_id=task_id,
            headers=dict(message.headers),
            data=message.data,
        )

    async def store(self, letter: DeadLetter, stored_ms: int) -> None:
        """Returns when the letter stands and is audited, however long the bus is away: until then the original keeps
        its place. `stored_ms`: when the original was stored; a stream that was made anew counts from 1 again."""
        msg_id = f"dead:{letter.stream}:{letter.seq}:{stored_ms}"
        subject = subjects.dead_letter(letter.what, letter.pool_id)
        kept = letter
        try:
            stored = await self._kept(letter, subject, msg_id)
        except TooLarge:
            kept = cut(letter)
            stored = await self._kept(kept, subject, msg_id)
        record = self._audit(kept, stored.seq)
        await self._audited(record, f"{msg_id}:audit")
        if stored.duplicate:
            return
        if self._counted is not None:
            self._counted.labels(kept.what, kept.reason).inc()
        narrate(
            log,
            f"A message of {kept.stream} cannot be worked on and is set aside as dead letter {stored.seq}: "
            f"{kept.problem}",
            actor=self._actor,
            action="set_aside",
            target=kept.stream,
            level=logging.WARNING,
            pool_id=kept.pool_id,
            task_id=kept.task_id,
            reason=kept.reason,
            stream_seq=kept.seq,
            letter=stored.seq,
        )

    async def _kept(self, letter: DeadLetter, subject: str, msg_id: str) -> Stored:
        """Raises TooLarge."""
        headers = encode_letter(letter)
        return await _patiently(subject, lambda: self._bus.store(subject, letter.data, msg_id=msg_id, headers=headers))

    async def _audited(self, record: AuditRecord, msg_id: str) -> None:
        """Raises TooLarge."""
        life = audit_chain.alone(record)

        async def store() -> None:
            try:
                await self._bus.store_batch(life, msg_id=msg_id)
            except Duplicate:
                log.info("is on the record already: %s", msg_id)

        await _patiently(record.event, store)

    def _audit(self, letter: DeadLetter, seq: int) -> AuditRecord:
        return AuditRecord(
            event=AuditEvent.DEAD_LETTERED,
            task_id=letter.task_id or letter.pool_id,
            at_ms=letter.at_ms,
            actor=self._actor,
            pool_id=letter.pool_id,
            detail={
                "letter": seq,
                "what": letter.what,
                "reason": letter.reason,
                "problem": letter.problem,
                "stream": letter.stream,
                "stream_seq": letter.seq,
            },
        )


async def _patiently(what: str, store: Callable[[], Awaitable[T]]) -> T:
    """Raises TooLarge; anything else is tried again."""
    delay = RETRY_FIRST_S
    while True:
        try:
            return await store()
        except TooLarge:
            raise
        except BusError as error:
            log.warning("%s cannot be stored, again in %.1f s: %s", what, delay, error)
        await asyncio.sleep(delay)
        delay = min(RETRY_MAX_S, delay * 2)


def reason_of(problem: Exception) -> Reason:
    match problem:
        case NewerVersion():
            return Reason.UNKNOWN_VERSION
        case Unreadable():
            return Reason.UNDECODABLE
        case TooLarge():
            return Reason.TOO_LARGE
        case _:
            return Reason.UNPROCESSABLE
