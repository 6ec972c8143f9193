"""Tasks on their way into a durable queue: decide, enqueue, answer. The publish ack is the admission; nothing else is.

What is told of an admission, and of a refusal, is in `admission_report.py`.
"""

import time
from typing import Final, NamedTuple

import msgspec

from llorch_gateway.admission_report import AdmissionReport
from llorch_gateway.call import Call
from llorch_gateway.core.admission import admit, check_priority, check_turn
from llorch_gateway.core.prospect import prospect_of
from llorch_gateway.core.sessions import with_budget
from llorch_gateway.enqueue import Enqueue
from llorch_gateway.failures import unavailable
from llorch_gateway.ownership import Ownership
from llorch_gateway.recent_admissions import RecentAdmissions
from llorch_gateway.relay.router import Router
from llorch_gateway.resubmissions import Resubmissions
from llorch_gateway.session_reservations import SessionReservations
from llorch_gateway.snapshot import Snapshot
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus.port import Bus, Stored
from llorch_shared.errors import ErrorCode, OrchError, invalid
from llorch_shared.guards import check_bound
from llorch_shared.metrics import Metrics
from llorch_shared.readable import UNREADABLE
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import Located
from llorch_shared.wire.session import SessionRemaining
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import REQUEST_DECODER, TaskAccepted, TaskRequest

TURNED_AWAY: Final = frozenset({ErrorCode.ADMISSION_REJECT, ErrorCode.DEADLINE_UNMET})
"""Refusals that depend on the moment: a task that was accepted in another one stays accepted."""


class _EngineOnly(msgspec.Struct):
    engine: str = ""


_ENGINE_ONLY: Final = msgspec.json.Decoder(_EngineOnly)


class _Taken(NamedTuple):
    stored: Stored
    tries: int
    """More than one may have stored it before its ack got lost."""
    on_time: float | None
    """Chance that it ends before its deadline, as seen before it was stored."""


class Admissions:
    """POST /v1/tasks, its twin on the bus, and the completions of OpenAI's clients."""

    def __init__(
        self,
        *,
        bus: Bus,
        router: Router,
        snapshot: Snapshot,
        audit: Audit,
        resubmissions: Resubmissions,
        reservations: SessionReservations,
        recent: RecentAdmissions,
        metrics: Metrics,
        actor: str,
        share_bytes: int,
    ) -> None:
        self._bus: Final = bus
        self._router: Final = router
        self._snapshot: Final = snapshot
        self._audit: Final = audit
        self._resubmissions: Final = resubmissions
        self._reservations: Final = reservations
        self._enqueue: Final = Enqueue(bus=bus, snapshot=snapshot, lane=router.lane, share_bytes=share_bytes)
        self.ownership: Final = Ownership()
        self._recent: Final = recent
        self._report: Final = AdmissionReport(snapshot, metrics, actor=actor)
        self._latency: Final = metrics.histogram("admission_latency_ms")

    async def submit(self, body: bytes, call: Call) -> TaskAccepted:
        """A task as JSON. Raises OrchError, BusError."""
        try:
            request = _decode(body)
        except OrchError as error:
            self._report.refused(error, error.body.engine or "")
            raise
        return await self.submit_request(request, call)

    async def submit_request(self, request: TaskRequest, call: Call) -> TaskAccepted:
        """Raises OrchError, BusError."""
        began = time.perf_counter()
        try:
            accepted = await self._admit(request, call)
        except OrchError as error:
            self._report.refused(error, request.engine)
            raise
        self._latency.observe((time.perf_counter() - began) * 1000)
        return accepted

    async def _admit(self, request: TaskRequest, call: Call) -> TaskAccepted:
        snapshot = self._snapshot
        if not snapshot.held:
            raise unavailable("this gateway has not read the registry yet")
        check_priority(request, call.priorities)
        if call.bound:
            check_bound(request)
        request, pool = admit(
            request,
            call.tenant,
            snapshot.pools,
            snapshot.replicas,
            snapshot.loads,
            drained=snapshot.drains,
            models=snapshot.models,
            session_since_ms=self._reservations.since_ms(request, call),
        )
        certain = await self.ownership.check_before(request, self._recent.tenant_of(request.task_id), call)
        left = await self._reserve(request, pool, call)
        try:
            taken = await self._take(request, pool, call)
            if taken.stored.duplicate:
                await self.ownership.check_stored(request, call)
        except BaseException as error:
            if left is not None:
                await self._reservations.give_back(request, call, error)
            raise
        stored = taken.stored
        prospect = prospect_of(
            snapshot.loads.get(pool.id),
            request.priority,
            call.tenant,
            seq=stored.seq,
            due_in_ms=request.deadline_ms,
        )
        accepted = TaskAccepted(
            task_id=request.task_id,
            queue_position=prospect.position,
            predicted_start_ms=prospect.start_ms,
            correlation_id=call.correlation_id,
        )
        if certain and not stored.duplicate:
            self._remember(request, pool, call, stored.seq, accepted)
        record = self._report.record(request, pool, call, prospect, taken.on_time)
        if not stored.duplicate or taken.tries > 1:
            self._report.admitted(request, pool, call, prospect, taken.on_time)
            await self._audit.record(record)
        else:
            self._resubmissions.saw(record)
        return with_budget(accepted, left)

    async def _reserve(self, request: TaskRequest, pool: PoolSpec, call: Call) -> SessionRemaining | None:
        """Raises OrchError when the session takes no such task, unless it was accepted before."""
        try:
            return await self._reservations.reserve(request, pool.id, call)
        except OrchError as error:
            if error.status >= 500 or await self._known(request.task_id) is None:
                raise
            return None

    async def _take(self, request: TaskRequest, pool: PoolSpec, call: Call) -> _Taken:
        """Put the task into its queue, or find that it was accepted before. Its tokens are expected before there can
        be any. Raises OrchError when it has no place."""
        task = request.task_id
        expected = call.reads_on_bus or task in self._recent
        if not expected:
            self._router.expect(task)
        try:
            foreseen = check_turn(request, call.tenant, pool, self._snapshot.loads.get(pool.id))
            stored, tries = await self._enqueue.store(request, pool, call)
        except BaseException as error:
            if not expected:
                self._router.unexpect(task)
            before = await self._known(task) if _is_turned_away(error) else None
            if before is None:
                raise
            return _Taken(before, 1, None)
        if stored.duplicate and not expected:
            self._router.unexpect(task)
        return _Taken(stored, tries, foreseen.on_time)

    async def _known(self, task: str) -> Stored | None:
        """Strangers are turned away; a task that was accepted before stays accepted."""
        if (seq := self._recent.seq_of(task)) is not None:
            return Stored(stream="", seq=seq, duplicate=True)
        record = await self._bus.last(streams.RUN, subjects.run(task))
        return None if record is None or record.deleted else Stored(stream="", seq=0, duplicate=True)

    def _remember(self, request: TaskRequest, pool: PoolSpec, call: Call, seq: int, accepted: TaskAccepted) -> None:
        at_ms = now_ms()
        located = Located(
            found=True,
            pool_id=pool.id,
            lane=self._enqueue.lane_of(call),
            correlation_id=call.correlation_id,
            tenant=call.tenant,
            priority=request.priority,
            queue_position=accepted.queue_position,
            predicted_start_ms=accepted.predicted_start_ms,
            admitted_ms=at_ms,
        )
        self._recent.remember(request.task_id, located, seq=seq, due_ms=at_ms + request.deadline_ms)


def _is_turned_away(error: BaseException) -> bool:
    return isinstance(error, OrchError) and error.code in TURNED_AWAY


def _decode(body: bytes) -> TaskRequest:
    try:
        request = REQUEST_DECODER.decode(body)
    except UNREADABLE as error:
        raise invalid(str(error), engine=_engine_of(body)) from error
    if request.task_id != request.task_id.lower():
        request = msgspec.structs.replace(request, task_id=request.task_id.lower())
    return request


def _engine_of(body: bytes) -> str | None:
    """The engine an unacceptable request names, for its error envelope."""
    try:
        return _ENGINE_ONLY.decode(body).engine[:64] or None
    except UNREADABLE:
        return None
