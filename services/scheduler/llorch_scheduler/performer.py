"""Carries effects out on the bus. Each ends as an event; none decides anything.

A fixed number of workers take effects in the order they were decided. Before every write the term is checked, so a
scheduler that stepped down stops at once; what slips through is refused by the run record's sequence.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from llorch_scheduler.admissions import Admissions
from llorch_scheduler.core.effects import (
    Ack,
    Audit,
    Effect,
    End,
    Place,
    PlaceAgain,
    Preempt,
    Preempted,
    Requeue,
    TellLoad,
)
from llorch_scheduler.core.events import AdmissionRef, Event, WriteDone, WriteFailed, WriteRefused
from llorch_scheduler.lease import SteppedDown, Term
from llorch_scheduler.trail import audit_of
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, NoStream, Stored, TooLarge, Unanswered, WrongSequence
from llorch_shared.errors import ErrorBody, invalid
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.frames import BadFrame, Kind, announced_attempt, encode_end, encode_error, peek
from llorch_shared.wire.frames import End as EndFrame
from llorch_shared.wire.run import RUN_DECODER, Placement, RunRecord
from llorch_shared.wire.task import TaskState

log = logging.getLogger(__name__)

WORKERS: Final = 64
"""Effects under way at once. Each is a few round trips; the bus answers hundreds of stores concurrently."""
STORE_TRIES: Final = 3
STORE_TIMEOUT_S: Final = 2.0
_RETRY_S: Final = 0.05

_encode: Final = msgspec.json.Encoder().encode


class Narrator(Protocol):
    """Is told what was done, for logs and metrics."""

    def placed(self, effect: Place, run_seq: int) -> None: ...

    def requeued(self, effect: Requeue) -> None: ...

    def ended(self, effect: End) -> None: ...

    def refused(self, effect: Place | Requeue | End, record: RunRecord) -> None: ...

    def failed(self, effect: Place | Requeue | End, error: Exception) -> None: ...

    def stop_asked(self, effect: Preempt) -> None: ...

    def preempted(self, effect: Preempted) -> None: ...

    def load(self, effect: TellLoad) -> None: ...


class Auditor(Protocol):
    async def record(self, record: AuditRecord) -> None: ...


class Conflict(Exception):
    """Somebody wrote the run record first."""

    def __init__(self, record: RunRecord, seq: int) -> None:
        super().__init__(f"the record of {record.task_id} stands at #{seq} as {record.state}")
        self.record: Final = record
        self.seq: Final = seq


class Performer:
    """`emit` hands events to the inbox. Run `work` as often as effects may be under way at once."""

    def __init__(
        self,
        bus: Bus,
        term: Term,
        admissions: Admissions,
        audit: Auditor,
        narrator: Narrator,
        *,
        actor: str,
        emit: Callable[[Event], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._bus: Final = bus
        self._term: Final = term
        self._admissions: Final = admissions
        self._audit: Final = audit
        self._narrator: Final = narrator
        self._actor: Final = actor
        self._emit: Final = emit
        self._now_ms: Final = now_ms
        self._effects: Final[asyncio.Queue[Effect]] = asyncio.Queue()

    def submit(self, effect: Effect) -> None:
        """The queue is bounded by the tasks: the core has one write per task under way and one ack per message."""
        if isinstance(effect, TellLoad):
            self._tell(effect)
        else:
            self._effects.put_nowait(effect)

    async def work(self) -> None:
        """Until the term is over. The condition matters: a wait deep in a client may swallow a cancellation."""
        while self._term.active:
            effect = await self._effects.get()
            try:
                await self._perform(effect)
            except SteppedDown:
                log.debug("not done, the term is over: %s", type(effect).__name__)
            except Exception:
                log.exception("%s failed in a way nobody foresaw", type(effect).__name__)
                if isinstance(effect, Place | Requeue | End):
                    self._emit(
                        WriteFailed(
                            at_ms=self._now_ms(),
                            ticket=effect.ticket,
                            task_id=effect.record.task_id,
                            ref=_ref(effect),
                        )
                    )
            finally:
                self._effects.task_done()

    async def finished(self) -> None:
        """Everything submitted so far has been performed."""
        await self._effects.join()

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Place() | Requeue() | End():
                await self._write(effect)
            case PlaceAgain():
                await self._place_again(effect)
            case Ack():
                await self._admissions.ack(effect.ref)
            case Audit():
                await self._audit.record(effect.record)
            case Preempt():
                self._preempt(effect)
            case Preempted():
                self._narrator.preempted(effect)
            case TellLoad():
                self._tell(effect)

    def _tell(self, effect: TellLoad) -> None:
        if self._term.active:
            self._bus.publish(subjects.load(effect.load.pool_id), _encode(effect.load))
            self._narrator.load(effect)

    def _preempt(self, effect: Preempt) -> None:
        if self._term.active:
            self._bus.publish(subjects.preempt(effect.node_id), _encode(effect.request))
            self._narrator.stop_asked(effect)

    async def _write(self, effect: Place | Requeue | End) -> None:
        """Run record first; what it entails; the event; the audit record."""
        task_id, ref = effect.record.task_id, _ref(effect)
        seq = 0
        try:
            if isinstance(effect, End) and effect.expect_seq:
                effect = await self._counted(effect)
            seq = await self._store_run(effect.record, effect.expect_seq)
            match effect:
                case Place():
                    await self._store_placement(effect.record, seq)
                    self._narrator.placed(effect, seq)
                case Requeue():
                    self._narrator.requeued(effect)
                case End():
                    self._publish_terminal(effect.record)
                    await self._audit.record(audit_of(effect, seq, self._now_ms(), self._actor))
                    self._narrator.ended(effect)
            await self._ack(ref)
        except Conflict as conflict:
            self._narrator.refused(effect, conflict.record)
            await self._yield_to(conflict, ref)
            self._emit(
                WriteRefused(
                    at_ms=self._now_ms(),
                    ticket=effect.ticket,
                    task_id=task_id,
                    record=conflict.record,
                    run_seq=conflict.seq,
                )
            )
            return
        except BusError as error:
            self._narrator.failed(effect, error)
            problem = _too_large(effect.record) if isinstance(error, TooLarge) else None
            self._emit(
                WriteFailed(
                    at_ms=self._now_ms(), ticket=effect.ticket, task_id=task_id, run_seq=seq, ref=ref, problem=problem
                )
            )
            return
        self._emit(WriteDone(at_ms=self._now_ms(), ticket=effect.ticket, task_id=task_id, run_seq=seq))
        if not isinstance(effect, End):
            await self._audit.record(audit_of(effect, seq, self._now_ms(), self._actor))

    async def _ack(self, ref: AdmissionRef | None) -> None:
        if ref is not None:
            self._term.check()
            await self._admissions.ack(ref)

    async def _yield_to(self, conflict: Conflict, ref: AdmissionRef | None) -> None:
        """The record exists, so the admission is done with. Its writer may have died before the placement."""
        if conflict.record.state is TaskState.PLACED and conflict.record.replica_id:
            try:
                await self._store_placement(conflict.record, conflict.seq)
            except BusError as error:
                log.warning("the placement of %s was not repeated: %s", conflict.record.task_id, error)
        await self._ack(ref)

    async def _place_again(self, effect: PlaceAgain) -> None:
        """Unclaimed placements are taken back after a while, so failing here only costs time."""
        try:
            await self._store_placement(effect.record, effect.run_seq)
        except BusError as error:
            log.warning("the placement of %s was not repeated: %s", effect.record.task_id, error)

    async def _store_run(self, record: RunRecord, expect_seq: int) -> int:
        """Compare-and-set. Raises Conflict, BusError. A write of ours whose ack got lost is recognised as ours."""
        subject = subjects.run(record.task_id)
        try:
            return (await self._store(subject, _encode(record), expect_seq=expect_seq)).seq
        except WrongSequence:
            stored, seq = await self._read_run(subject, after=expect_seq)
            if msgspec.structs.replace(stored, tokens_out=record.tokens_out) == record:
                return seq
            raise Conflict(stored, seq) from None

    async def _read_run(self, subject: str, *, after: int) -> tuple[RunRecord, int]:
        """The record that won. A replica of the stream may lag behind its leader: read again."""
        for _ in range(STORE_TRIES):
            message = await self._bus.last(streams.RUN, subject)
            if message is not None and message.seq > after:
                try:
                    return RUN_DECODER.decode(message.data), message.seq
                except msgspec.DecodeError as error:
                    raise BusError(f"the run record at {subject} #{message.seq} cannot be read: {error}") from error
            await asyncio.sleep(_RETRY_S)
        raise Unanswered(f"{subject} changed, and its new record cannot be read yet")

    async def _store_placement(self, record: RunRecord, run_seq: int) -> None:
        await self._store(
            subjects.placement(record.pool_id, record.replica_id),
            _encode(Placement(run=record, run_seq=run_seq)),
            msg_id=f"{record.task_id}:{run_seq}",
        )

    async def _store(self, subject: str, data: bytes, *, msg_id: str = "", expect_seq: int | None = None) -> Stored:
        """Store, and again when it is unclear whether it was stored: sequence or message id make that safe."""
        for attempt in range(1, STORE_TRIES + 1):
            self._term.check()
            try:
                return await self._bus.store(
                    subject, data, msg_id=msg_id, expect_seq=expect_seq, timeout_s=STORE_TIMEOUT_S
                )
            except (Unanswered, NoStream):
                if attempt == STORE_TRIES:
                    raise
                await asyncio.sleep(_RETRY_S * attempt)
        raise AssertionError("unreachable")

    async def _counted(self, effect: End) -> End:
        """The end of a task that ran before tells how many tokens its readers have, in the record as on the stream."""
        tokens = await self._tokens_sent(effect.record)
        return msgspec.structs.replace(effect, record=msgspec.structs.replace(effect.record, tokens_out=tokens))

    def _publish_terminal(self, record: RunRecord) -> None:
        """The record is final: say so on the token stream. A reader that misses this makes it from the record."""
        if record.error is not None:
            frame = encode_error(record.attempt, record.tokens_out, record.error)
        else:
            end = EndFrame(
                tokens_out=record.tokens_out,
                decode_ms=record.decode_ms,
                decode_time_ms=record.decode_ms,
                finish_reason=record.finish_reason,
            )
            frame = encode_end(record.attempt, end)
        self._bus.publish(subjects.tokens(record.lane, record.task_id), frame)

    async def _tokens_sent(self, record: RunRecord) -> int:
        """Tokens that an earlier attempt streamed; 0 when the token stream cannot be read."""
        try:
            messages = await self._bus.replay(streams.TOK, subjects.tokens(record.lane, record.task_id))
        except BusError as error:
            log.info("the tokens of %s cannot be counted: %s", record.task_id, error)
            return 0
        last, attempt = -1, 0
        for message in messages:
            try:
                header = peek(message.data)
            except BadFrame:
                log.warning("a message of %s is not a frame", message.subject)
                continue
            if header.kind is Kind.METRICS:
                attempt = max(attempt, announced_attempt(message.data))
            elif header.kind is Kind.TOKENS and header.attempt >= attempt:
                last = max(last, header.last)
        return last + 1


def _ref(effect: Place | Requeue | End) -> AdmissionRef | None:
    return None if isinstance(effect, Requeue) else effect.ref


def _too_large(record: RunRecord) -> ErrorBody:
    engine = record.request.engine if record.request else None
    return invalid("the request is too large to be placed", engine=engine).body
