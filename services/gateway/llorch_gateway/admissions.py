"""Tasks on their way into a durable queue: decide, enqueue, answer. The publish ack is the admission; nothing else is.

What was admitted here lately is remembered, so that its stream and its lookup need no question to anybody.
"""

import logging
import time
from collections import OrderedDict
from typing import Final, NamedTuple

import msgspec

from llorch_gateway.call import Call
from llorch_gateway.core.admission import admit, check_priority, check_turn
from llorch_gateway.core.prospect import Prospect, prospect_of
from llorch_gateway.core.sessions import with_budget
from llorch_gateway.enqueue import Enqueue
from llorch_gateway.failures import unavailable
from llorch_gateway.ownership import Ownership
from llorch_gateway.relay.router import Router
from llorch_gateway.resubmissions import Resubmissions
from llorch_gateway.sessions import Sessions
from llorch_gateway.snapshot import Snapshot
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus.port import Bus, Stored
from llorch_shared.errors import ErrorCode, OrchError, PolicyLabel, invalid
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.readable import UNREADABLE
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord, admission_detail
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.run import Located
from llorch_shared.wire.session import SessionRemaining
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import REQUEST_DECODER, TaskAccepted, TaskRequest

log = logging.getLogger(__name__)

RECENT_MAX: Final = 16_384
TURNED_AWAY: Final = frozenset({ErrorCode.ADMISSION_REJECT, ErrorCode.DEADLINE_UNMET})
"""Refusals that depend on the moment: a task that was accepted in another one stays accepted."""
BACKPRESSURE: Final = {
    PolicyLabel.TENANT_CAPACITY: FullPolicy.REJECT,
    **{PolicyLabel(policy): policy for policy in FullPolicy},
}
"""Policies of a full queue by the label of the refusal."""

_encode: Final = msgspec.json.Encoder().encode


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
        sessions: Sessions,
        metrics: Metrics,
        actor: str,
        share_bytes: int,
    ) -> None:
        self._bus: Final = bus
        self._router: Final = router
        self._snapshot: Final = snapshot
        self._audit: Final = audit
        self._resubmissions: Final = resubmissions
        self._sessions: Final = sessions
        self._actor: Final = actor
        self._enqueue: Final = Enqueue(bus=bus, snapshot=snapshot, lane=router.lane, share_bytes=share_bytes)
        self.ownership: Final = Ownership()
        self._recent: OrderedDict[str, Located] = OrderedDict()
        self._seqs: dict[str, int] = {}
        self._dues_ms: dict[str, int] = {}
        self._enqueued: Final = metrics.counter("tasks_enqueued_total")
        self._rejected: Final = metrics.counter("tasks_rejected_total")
        self._backpressure: Final = metrics.counter("admission_backpressure_events_total")
        self._latency: Final = metrics.histogram("admission_latency_ms")

    def recent(self, task: str) -> Located | None:
        """A task that this process put into a queue lately; its position is told anew from the latest load."""
        located = self._recent.get(task)
        if located is None or located.priority is None:
            return None
        load = self._snapshot.loads.get(located.pool_id)
        due_in_ms = self._dues_ms[task] - now_ms()
        prospect = prospect_of(load, located.priority, located.tenant, seq=self._seqs[task], due_in_ms=due_in_ms)
        return msgspec.structs.replace(located, queue_position=prospect.position, predicted_start_ms=prospect.start_ms)

    def tenant_of(self, task: str) -> str | None:
        """Of a task that this process put into a queue lately."""
        located = self._recent.get(task)
        return None if located is None else located.tenant

    async def submit(self, body: bytes, call: Call) -> TaskAccepted:
        """A task as JSON. Raises OrchError, BusError."""
        try:
            request = _decode(body)
        except OrchError as error:
            self._count_refusal(error, error.body.engine or "")
            raise
        return await self.submit_request(request, call)

    async def submit_request(self, request: TaskRequest, call: Call) -> TaskAccepted:
        """Raises OrchError, BusError."""
        began = time.perf_counter()
        try:
            accepted = await self._admit(request, call)
        except OrchError as error:
            self._count_refusal(error, request.engine)
            raise
        self._latency.observe((time.perf_counter() - began) * 1000)
        return accepted

    async def _admit(self, request: TaskRequest, call: Call) -> TaskAccepted:
        snapshot = self._snapshot
        if not snapshot.held:
            raise unavailable("this gateway has not read the registry yet")
        check_priority(request, call.priorities)
        if request.override:
            call.check_operator()
        request, pool = admit(
            request,
            call.tenant,
            snapshot.pools,
            snapshot.replicas,
            snapshot.loads,
            drained=snapshot.drains,
            models=snapshot.models,
            session_since_ms=self._sessions.since_ms(request, call),
        )
        certain = await self.ownership.check_before(request, self.tenant_of(request.task_id), call)
        left = await self._reserve(request, pool, call)
        try:
            taken = await self._take(request, pool, call)
            if taken.stored.duplicate:
                await self.ownership.check_stored(request, call)
        except BaseException as error:
            if left is not None:
                await self._sessions.give_back(request, call, error)
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
        record = self._record(request, pool, call, prospect, taken.on_time)
        if not stored.duplicate or taken.tries > 1:
            self._tell(request, pool, call, prospect, taken.on_time)
            await self._audit.record(record)
        else:
            self._resubmissions.saw(record)
        return with_budget(accepted, left)

    async def _reserve(self, request: TaskRequest, pool: PoolSpec, call: Call) -> SessionRemaining | None:
        """Raises OrchError when the session takes no such task, unless it was accepted before."""
        try:
            return await self._sessions.reserve(request, pool.id, call)
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
        if task in self._seqs:
            return Stored(stream="", seq=self._seqs[task], duplicate=True)
        record = await self._bus.last(streams.RUN, subjects.run(task))
        return None if record is None or record.deleted else Stored(stream="", seq=0, duplicate=True)

    def _remember(self, request: TaskRequest, pool: PoolSpec, call: Call, seq: int, accepted: TaskAccepted) -> None:
        task, at_ms = request.task_id, now_ms()
        if len(self._recent) >= RECENT_MAX:
            oldest, _ = self._recent.popitem(last=False)
            del self._seqs[oldest], self._dues_ms[oldest]
        self._recent[task] = Located(
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
        self._seqs[task], self._dues_ms[task] = seq, at_ms + request.deadline_ms

    def _tell(
        self, request: TaskRequest, pool: PoolSpec, call: Call, prospect: Prospect, on_time: float | None
    ) -> None:
        """Telemetry of one admission (ORCH-3094)."""
        self._enqueued.labels(request.engine, "", pool.id, "", request.priority).inc()
        weight = self._snapshot.tenant_weight(pool, call.tenant)
        loading = ", its model is loading" if prospect.loading else ""
        narrate(
            log,
            f"admits a task to pool {pool.id} at position {prospect.position}{loading}",
            actor="gateway",
            action="admit",
            target=request.task_id,
            task_id=request.task_id,
            session_id=request.session_id,
            correlation_id=call.correlation_id,
            identity=call.identity,
            channel=call.channel,
            tenant_id=call.tenant,
            engine=request.engine,
            pool_id=pool.id,
            priority=request.priority,
            weight=weight,
            deadline_ms=request.deadline_ms,
            on_time_probability=on_time,
            queue_position=prospect.position,
            predicted_start_ms=prospect.start_ms,
        )

    def _record(
        self, request: TaskRequest, pool: PoolSpec, call: Call, prospect: Prospect, on_time: float | None
    ) -> AuditRecord:
        told = admission_detail(request, queue_position=prospect.position, predicted_start_ms=prospect.start_ms)
        told["weight"] = self._snapshot.tenant_weight(pool, call.tenant)
        if on_time is not None:
            told["on_time_probability"] = round(on_time, 4)
        return AuditRecord(
            event=AuditEvent.ADMITTED,
            task_id=request.task_id,
            at_ms=now_ms(),
            actor=self._actor,
            correlation_id=call.correlation_id,
            tenant=call.tenant,
            identity=call.identity,
            channel=call.channel,
            pool_id=pool.id,
            detail=told,
        )

    def _count_refusal(self, error: OrchError, engine: str) -> None:
        self._rejected.labels(engine, error.code).inc()
        if error.body.policy_label in BACKPRESSURE:
            self._backpressure.labels(engine, BACKPRESSURE[error.body.policy_label]).inc()
        log.info(
            "refuses a task: %s",
            error,
            extra={
                "action": "refuse",
                "actor": "gateway",
                "error_kind": error.code,
                "policy_label": error.body.policy_label,
            },
        )


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
