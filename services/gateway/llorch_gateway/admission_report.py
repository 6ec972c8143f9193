"""What is told of a task that was admitted or refused: metrics, narration, and the audit record."""

import logging
from typing import Final

from llorch_gateway.call import Call
from llorch_gateway.core.prospect import Prospect
from llorch_gateway.snapshot import Snapshot
from llorch_shared.errors import OrchError, PolicyLabel
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord, admission_detail
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest

log = logging.getLogger(__name__)

BACKPRESSURE: Final = {
    PolicyLabel.TENANT_CAPACITY: FullPolicy.REJECT,
    **{PolicyLabel(policy): policy for policy in FullPolicy},
}
"""Policies of a full queue by the label of the refusal."""


class AdmissionReport:
    def __init__(self, snapshot: Snapshot, metrics: Metrics, *, actor: str) -> None:
        self._snapshot: Final = snapshot
        self._actor: Final = actor
        self._enqueued: Final = metrics.counter("tasks_enqueued_total")
        self._rejected: Final = metrics.counter("tasks_rejected_total")
        self._backpressure: Final = metrics.counter("admission_backpressure_events_total")

    def admitted(
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

    def record(
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

    def refused(self, error: OrchError, engine: str) -> None:
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
