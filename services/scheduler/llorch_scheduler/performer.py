"""Carries effects out on the bus. Each ends as an event; none decides anything.

A fixed number of workers take effects in the order they were decided. Before every write the term is checked, so a
scheduler that stepped down stops at once; what slips through is refused by the run record's sequence.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import msgspec

from llorch_scheduler.admissions import Admissions
from llorch_scheduler.core.effects import (
    Ack,
    Audit,
    Disown,
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
from llorch_scheduler.places import Places
from llorch_scheduler.run_store import Conflict, RunStore
from llorch_scheduler.terminal_frames import counted, publish_terminal, sent_before
from llorch_scheduler.trail import audit_of
from llorch_scheduler.unclaimed import Unclaimed
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, BusError, TooLarge
from llorch_shared.errors import ErrorBody, invalid
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState
from llorch_shared.wire.version import NewerVersion, Unreadable

log = logging.getLogger(__name__)

WORKERS: Final = 64
"""Effects under way at once. Each is a few round trips; the bus answers hundreds of stores concurrently."""
_encode: Final = msgspec.json.Encoder().encode


class _Late(NamedTuple):
    """Nobody has claimed it: store its record."""

    place: Place


class _PlacesDue:
    """Give back the places that are gathered."""


_PLACES_DUE: Final = _PlacesDue()


class Narrator(Protocol):
    """Is told what was done, for logs and metrics."""

    def placed(self, effect: Place, run_seq: int) -> None: ...

    def requeued(self, effect: Requeue) -> None: ...

    def ended(self, effect: End) -> None: ...

    def refused(self, effect: Place | Requeue | End, record: RunRecord) -> None: ...

    def failed(self, effect: Place | Requeue | End, error: Exception) -> None: ...

    def disowned(self, effect: Disown) -> None: ...

    def stop_asked(self, effect: Preempt) -> None: ...

    def preempted(self, effect: Preempted) -> None: ...

    def load(self, effect: TellLoad) -> None: ...


class Auditor(Protocol):
    async def record(self, record: AuditRecord) -> None: ...


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
        self._runs: Final = RunStore(bus, term)
        self._admissions: Final = admissions
        self._audit: Final = audit
        self._narrator: Final = narrator
        self._actor: Final = actor
        self._emit: Final = emit
        self._now_ms: Final = now_ms
        self._effects: Final[asyncio.Queue[Effect | _Late | _PlacesDue]] = asyncio.Queue()
        self._unclaimed: Final = Unclaimed(
            late=lambda place: self._effects.put_nowait(_Late(place)), recorded=self._is_recorded
        )
        self._claimed: list[Place] = []
        """To be told, with the places that are given back."""
        self._places: Final = Places(self._ack, lambda: self._effects.put_nowait(_PLACES_DUE))

    def submit(self, effect: Effect) -> None:
        """The queue is bounded by the tasks: the core has one write per task under way and one ack per message."""
        if isinstance(effect, TellLoad):
            self._tell(effect)
        elif isinstance(effect, Place) and effect.ahead:
            self._send_ahead(effect)
        else:
            self._effects.put_nowait(effect)

    def run_changed(self, record: RunRecord) -> None:
        """It was stored, by whomever."""
        self._unclaimed.run_changed(record)

    def _is_recorded(self, place: Place, record: RunRecord) -> None:
        if _is_its_claim(record, place.record):
            self._claimed.append(place)
        if place.ref is not None:
            self._places.add(place.ref)

    async def places_come_free(self, stream: str) -> bool:
        """Whether this queue had places of tasks that have a record; they are free on return. Raises SteppedDown."""
        return await self._places.come_free(stream)

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
                effect = effect.place if isinstance(effect, _Late) else effect
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
        self._unclaimed.hand_over()
        self._effects.put_nowait(_PLACES_DUE)
        await self._effects.join()

    async def _perform(self, effect: Effect | _Late | _PlacesDue) -> None:
        match effect:
            case Place() | Requeue() | End():
                await self._write(effect)
            case _Late():
                await self._write(effect.place)
            case _PlacesDue():
                await self._tell_claimed()
                await self._places.give_back()
            case PlaceAgain():
                await self._place_again(effect)
            case Ack():
                await self._admissions.ack(effect.ref)
            case Disown():
                publish_terminal(self._bus, effect.record)
                await self._audit.record(audit_of(effect, 0, self._now_ms(), self._actor))
                self._narrator.disowned(effect)
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
            if isinstance(effect, End) and effect.record.state is TaskState.CANCELLED:
                effect = await self._timed(effect)
            seq = await self._runs.record(effect.record, effect.expect_seq)
            match effect:
                case Place():
                    await self._runs.placement(effect.record, seq)
                case Requeue():
                    self._narrator.requeued(effect)
                case End():
                    publish_terminal(self._bus, effect.record)
                    await self._audit.record(audit_of(effect, seq, self._now_ms(), self._actor))
                    self._narrator.ended(effect)
            await self._ack(ref)
        except Conflict as conflict:
            if isinstance(effect, Place) and _is_its_claim(conflict.record, effect.record):
                await self._tell_placed(effect, 0)
            else:
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
        except Unreadable as unreadable:
            await self._leave(effect, unreadable)
            return
        except BusError as error:
            if isinstance(effect, Place) and effect.ahead and not seq and not isinstance(error, TooLarge):
                log.info("the record of %s, which may be claimed, waits for the bus: %s", task_id, error)
                self._unclaimed.not_recorded(effect)
            else:
                self._not_done(effect, error, seq)
                if seq and isinstance(effect, Place):
                    await self._tell_placed(effect, seq)
            return
        self._emit(WriteDone(at_ms=self._now_ms(), ticket=effect.ticket, task_id=task_id, run_seq=seq))
        if isinstance(effect, Place):
            await self._tell_placed(effect, seq)
        elif isinstance(effect, Requeue):
            await self._audit.record(audit_of(effect, seq, self._now_ms(), self._actor))

    def _send_ahead(self, effect: Place) -> None:
        """At once, for its task waits for nothing else. What the bus or the node misses of it is sent again later."""
        if not self._term.active:
            return
        try:
            self._runs.placement_ahead(effect.record, effect.ahead)
        except BusError as error:
            self._not_done(effect, error)
            return
        self._unclaimed.sent(effect)

    async def _tell_claimed(self) -> None:
        """That they were placed: of a task that had ended before, it would be untrue."""
        claimed, self._claimed = self._claimed, []
        for place in claimed:
            await self._tell_placed(place, 0)

    async def _tell_placed(self, place: Place, seq: int) -> None:
        """`seq`: of its record, 0 where the claim is the first."""
        self._narrator.placed(place, seq)
        await self._audit.record(audit_of(place, seq, place.record.placed_ms, self._actor))

    def _not_done(self, effect: Place | Requeue | End, error: BusError, seq: int = 0) -> None:
        """`seq`: where its record stands, if it does."""
        self._narrator.failed(effect, error)
        self._emit(
            WriteFailed(
                at_ms=self._now_ms(),
                ticket=effect.ticket,
                task_id=effect.record.task_id,
                run_seq=seq,
                ref=_ref(effect),
                problem=_too_large(effect.record) if isinstance(error, TooLarge) else None,
            )
        )

    async def _ack(self, ref: AdmissionRef | None) -> None:
        if ref is not None:
            self._term.check()
            await self._admissions.ack(ref)

    async def _yield_to(self, conflict: Conflict, ref: AdmissionRef | None) -> None:
        """The record exists, so the admission is done with. Its writer may have died before the placement."""
        if conflict.record.state is TaskState.PLACED and conflict.record.replica_id:
            try:
                await self._runs.placement(conflict.record, conflict.seq)
            except BusError as error:
                log.warning("the placement of %s was not repeated: %s", conflict.record.task_id, error)
        await self._ack(ref)

    async def _leave(self, effect: Place | Requeue | End, unreadable: Unreadable) -> None:
        """The task's record cannot be read here. A newer release's: the task is its, and the admission done with.
        Garbage: the task can have no other, so its admission is set aside. Either way it is none of ours any more, as
        if it had ended: trying again would hold up its queue for ever."""
        record, ref = effect.record, _ref(effect)
        log.warning("the run record of %s cannot be read, the task is left alone: %s", record.task_id, unreadable)
        if ref is not None and isinstance(unreadable, NewerVersion):
            await self._ack(ref)
        elif ref is not None:
            await self._admissions.give_up(ref, unreadable)
        left = msgspec.structs.replace(record, state=TaskState.FAILED)
        self._emit(
            WriteRefused(
                at_ms=self._now_ms(),
                ticket=effect.ticket,
                task_id=record.task_id,
                record=left,
                run_seq=effect.expect_seq,
            )
        )

    async def _place_again(self, effect: PlaceAgain) -> None:
        """Unclaimed placements are taken back after a while, so failing here only costs time."""
        try:
            await self._runs.placement(effect.record, effect.run_seq)
        except BusError as error:
            log.warning("the placement of %s was not repeated: %s", effect.record.task_id, error)

    async def _counted(self, effect: End) -> End:
        """The end of a task that ran before tells how many tokens its readers have, in the record as on the stream, and
        to its session what the attempts decoded that died."""
        record = counted(effect.record, await sent_before(self._bus, effect.record))
        return msgspec.structs.replace(effect, record=record)

    async def _timed(self, effect: End) -> End:
        """A cancel tells how long it took, from its stored wish to the decision that ended the task."""
        try:
            stored_ms = await self._runs.wish_stored_ms(effect.record.task_id)
        except BusError as error:
            log.info("the wish to cancel %s cannot be read: %s", effect.record.task_id, error)
            return effect
        if not stored_ms:
            return effect
        took_ms = max(0, effect.record.ended_ms - stored_ms)
        return msgspec.structs.replace(effect, record=msgspec.structs.replace(effect.record, cancel_ms=took_ms))


def _is_its_claim(stored: RunRecord, placed: RunRecord) -> bool:
    """Whether a node has taken this very placement; it may have ended the task since."""
    return stored.started_ms > 0 and (
        (stored.replica_id, stored.attempt, stored.placed_ms) == (placed.replica_id, placed.attempt, placed.placed_ms)
    )


def _ref(effect: Place | Requeue | End) -> AdmissionRef | None:
    return None if isinstance(effect, Requeue) else effect.ref


def _too_large(record: RunRecord) -> ErrorBody:
    engine = record.request.engine if record.request else None
    return invalid("the request is too large to be placed", engine=engine).body
