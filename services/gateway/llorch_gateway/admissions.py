"""Tasks on their way into a durable queue: decide, publish, answer. The publish ack is the admission; nothing else is.

What was admitted here lately is remembered, so that its stream and its lookup need no question to anybody.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from typing import Final

import msgspec

from llorch_gateway.call import Call
from llorch_gateway.core.admission import admit
from llorch_gateway.failures import unavailable
from llorch_gateway.relay.router import Router
from llorch_gateway.snapshot import Snapshot
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus.port import Bus, Full, NoStream, Stored, Unanswered
from llorch_shared.errors import OrchError, Refused, invalid
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.waiting import predict, queue_position, retry_after_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord, admission_detail
from llorch_shared.wire.run import Located
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import REQUEST_DECODER, TaskAccepted, TaskRequest

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S: Final = 2.0
"""One try; a server under load acks within milliseconds."""
PUBLISH_WITHIN_S: Final = 6.0
"""All tries with one msg_id: longer than a leader election, shorter than a client's patience."""
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 0.5
RECENT_MAX: Final = 16_384

_encode: Final = msgspec.json.Encoder().encode


class _EngineOnly(msgspec.Struct):
    engine: str = ""


_ENGINE_ONLY: Final = msgspec.json.Decoder(_EngineOnly)


class Admissions:
    """POST /v1/tasks and its twin on the bus."""

    def __init__(
        self, *, bus: Bus, router: Router, snapshot: Snapshot, audit: Audit, metrics: Metrics, actor: str
    ) -> None:
        self._bus: Final = bus
        self._router: Final = router
        self._snapshot: Final = snapshot
        self._audit: Final = audit
        self._actor: Final = actor
        self._recent: OrderedDict[str, Located] = OrderedDict()
        self._seqs: dict[str, int] = {}
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
        position = queue_position(load, located.priority, self._seqs[task])
        return msgspec.structs.replace(located, queue_position=position, predicted_start_ms=predict(load, position))

    def is_local(self, task: str) -> bool:
        return task in self._recent

    async def submit(self, body: bytes, call: Call) -> TaskAccepted:
        """Raises OrchError, BusError."""
        began = time.perf_counter()
        engine = ""
        try:
            request = _decode(body)
            engine = request.engine
            accepted = await self._admit(request, call)
        except OrchError as error:
            self._count_refusal(error, engine or error.body.engine or "")
            raise
        self._latency.observe((time.perf_counter() - began) * 1000)
        return accepted

    async def _admit(self, request: TaskRequest, call: Call) -> TaskAccepted:
        snapshot = self._snapshot
        if not snapshot.held:
            raise unavailable("this gateway has not read the registry yet")
        pool = admit(request, snapshot.pools, snapshot.replicas, snapshot.loads)
        task = request.task_id
        known = task in self._recent
        if not known:
            self._router.expect(task)
        try:
            stored, tries = await self._publish(request, pool, call)
        except BaseException:
            if not known:
                self._router.unexpect(task)
            raise
        if stored.duplicate and not known:
            self._router.unexpect(task)
        load = snapshot.loads.get(pool.id)
        position = queue_position(load, request.priority, stored.seq)
        accepted = TaskAccepted(
            task_id=task,
            queue_position=position,
            predicted_start_ms=predict(load, position),
            correlation_id=call.correlation_id,
        )
        if not stored.duplicate:
            self._remember(request, pool, call, stored.seq, accepted)
        if not stored.duplicate or tries > 1:
            await self._tell(request, pool, call, accepted)
        return accepted

    async def _publish(self, request: TaskRequest, pool: PoolSpec, call: Call) -> tuple[Stored, int]:
        """Store the task, however often it takes within the bound: the msg_id makes repeats one task. Returns what was
        stored and the number of tries. A duplicate after several tries may be ours or another gateway's: its lane is
        looked up when somebody asks for its stream. Raises Refused when the server says that the queue is full."""
        subject = subjects.admission(pool.id, request.priority, call.tenant)
        headers = {subjects.CORRELATION_HEADER: call.correlation_id, subjects.LANE_HEADER: self._router.lane}
        payload = _encode(request)
        deadline = asyncio.get_running_loop().time() + PUBLISH_WITHIN_S
        pause, tries = PAUSE_FIRST_S, 0
        while True:
            tries += 1
            try:
                stored = await self._bus.store(
                    subject, payload, msg_id=request.task_id, headers=headers, timeout_s=PUBLISH_TIMEOUT_S
                )
                return stored, tries
            except Full:
                known = await self._known(request.task_id)
                if known is not None:
                    return known, 1
                raise self._full(request, pool) from None
            except (NoStream, Unanswered) as error:
                if asyncio.get_running_loop().time() + pause > deadline:
                    raise unavailable(
                        f"the queue of pool {pool.id} cannot be reached: {error}", pool_id=pool.id
                    ) from error
            await asyncio.sleep(pause)
            pause = min(PAUSE_MAX_S, 2 * pause)

    async def _known(self, task: str) -> Stored | None:
        """A full queue refuses strangers; a task that was accepted before stays accepted."""
        if task in self._seqs:
            return Stored(stream="", seq=self._seqs[task], duplicate=True)
        record = await self._bus.last(streams.RUN, subjects.run(task))
        return None if record is None or record.deleted else Stored(stream="", seq=0, duplicate=True)

    def _full(self, request: TaskRequest, pool: PoolSpec) -> Refused:
        self._backpressure.labels(request.engine, pool.queue.full_policy).inc()
        return Refused(
            f"the {request.priority} queue of pool {pool.id} is full",
            policy_label=pool.queue.full_policy,
            retry_after_ms=retry_after_ms(self._snapshot.loads.get(pool.id)),
            engine=request.engine,
            pool_id=pool.id,
        )

    def _remember(self, request: TaskRequest, pool: PoolSpec, call: Call, seq: int, accepted: TaskAccepted) -> None:
        task = request.task_id
        if len(self._recent) >= RECENT_MAX:
            oldest, _ = self._recent.popitem(last=False)
            del self._seqs[oldest]
        self._recent[task] = Located(
            found=True,
            pool_id=pool.id,
            lane=self._router.lane,
            correlation_id=call.correlation_id,
            tenant=call.tenant,
            priority=request.priority,
            queue_position=accepted.queue_position,
            predicted_start_ms=accepted.predicted_start_ms,
            admitted_ms=_now_ms(),
        )
        self._seqs[task] = seq

    async def _tell(self, request: TaskRequest, pool: PoolSpec, call: Call, accepted: TaskAccepted) -> None:
        self._enqueued.labels(request.engine, "", pool.id, "", request.priority).inc()
        narrate(
            log,
            f"admits a task to pool {pool.id} at position {accepted.queue_position}",
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
            queue_position=accepted.queue_position,
            predicted_start_ms=accepted.predicted_start_ms,
        )
        await self._audit.record(
            AuditRecord(
                event=AuditEvent.ADMITTED,
                task_id=request.task_id,
                at_ms=_now_ms(),
                actor=self._actor,
                correlation_id=call.correlation_id,
                tenant=call.tenant,
                identity=call.identity,
                channel=call.channel,
                pool_id=pool.id,
                detail=admission_detail(
                    request,
                    queue_position=accepted.queue_position,
                    predicted_start_ms=accepted.predicted_start_ms,
                ),
            )
        )

    def _count_refusal(self, error: OrchError, engine: str) -> None:
        self._rejected.labels(engine, error.code).inc()
        log.info("refuses a task: %s", error, extra={"action": "refuse", "actor": "gateway", "error_kind": error.code})


def _decode(body: bytes) -> TaskRequest:
    try:
        request = REQUEST_DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise invalid(str(error), engine=_engine_of(body)) from error
    if request.task_id != request.task_id.lower():
        request = msgspec.structs.replace(request, task_id=request.task_id.lower())
    return request


def _engine_of(body: bytes) -> str | None:
    """The engine an unacceptable request names, for its error envelope."""
    try:
        return _ENGINE_ONLY.decode(body).engine[:64] or None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
