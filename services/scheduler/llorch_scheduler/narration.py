"""What the scheduler tells people and Prometheus about what it did: one line per placement, ending and comeback."""

import logging
from typing import Final

from llorch_scheduler.core.effects import Disown, End, Place, Preempt, Preempted, Requeue, TellLoad
from llorch_scheduler.core.events import ReplicaLost
from llorch_scheduler.core.fleet import Fleet
from llorch_scheduler.gauges import PoolGauges
from llorch_shared import subjects
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState

log = logging.getLogger("llorch_scheduler")


class Narration:
    """`fleet` is that of the present term; it knows the engine versions of the labels."""

    def __init__(self, metrics: Metrics, gauges: PoolGauges, actor: str, *, shard: int) -> None:
        self._metrics: Final = metrics
        self._shard: Final = shard
        self._actor: Final = actor
        self._gauges: Final = gauges
        self._pools: Final[set[str]] = set()
        self.fleet = Fleet()

    def placed(self, effect: Place, run_seq: int) -> None:
        record, why = effect.record, effect.log
        self._metrics.counter("placement_decisions_total").labels(
            "assigned", str(why.pinned).lower(), str(why.fallback_used).lower()
        ).inc()
        self._metrics.gauge("placement_candidates_considered").set(why.candidates_considered)
        self._metrics.gauge("predicted_end_ms").set(why.predicted_end_ms)
        if effect.passed_over is not None:
            self._metrics.counter("preemptions_total").labels("soft", self._engine(record)[0]).inc()
        if effect.resumed:
            self._metrics.counter("resumptions_total").labels(self._engine(record)[0]).inc()
        self._say(
            f"Task goes to {record.replica_id} after {_waited_s(record):.1f} s in the queue",
            "place",
            record,
            selected_pool_id=record.pool_id,
            selected_replica_id=why.selected,
            candidates_considered=why.candidates_considered,
            filters_applied=list(why.filters_applied),
            tie_breakers_applied=list(why.tie_breakers_applied),
            pinned=why.pinned,
            fallback_used=why.fallback_used,
            decision_reason=why.decision_reason,
            run_seq=run_seq,
            queue_time_ms=record.placed_ms - record.admitted_ms,
        )

    def requeued(self, effect: Requeue) -> None:
        record = effect.record
        self._say(
            f"Task comes back to the front of its queue for attempt {record.attempt}: {effect.reason}",
            "requeue",
            record,
            level=logging.WARNING,
            reason=effect.reason,
        )

    def ended(self, effect: End) -> None:
        record = effect.record
        if record.state is TaskState.CANCELLED:
            engine, version = self._engine(record)
            self._metrics.counter("tasks_canceled_total").labels(
                engine, version, record.pool_id, record.replica_id, effect.reason
            ).inc()
            if record.cancel_ms is not None:
                self._metrics.histogram("cancel_latency_ms").observe(record.cancel_ms)
        self._say(
            f"Task ends as {record.state} before an engine had it: {effect.reason}"
            if not record.started_ms
            else f"Task ends as {record.state}: {effect.reason}",
            str(record.state),
            record,
            reason=effect.reason,
            error_kind=str(record.error.code) if record.error else "",
        )

    def disowned(self, effect: Disown) -> None:
        self._say("Task is refused: its id is another tenant's task", "refuse", effect.record, level=logging.WARNING)

    def preempted(self, effect: Preempted) -> None:
        record = effect.record
        self._metrics.counter("preemptions_total").labels("hard", self._engine(record)[0]).inc()
        self._say(
            f"Task has made way for {effect.urgent_task_id or 'more urgent work'} and resumes later",
            "preempt",
            record,
            urgent_task_id=effect.urgent_task_id,
            preemptions=record.preemptions,
        )

    def stop_asked(self, effect: Preempt) -> None:
        record = effect.record
        self._say(
            f"Task is asked to make way for {effect.request.urgent_task_id}",
            "ask_to_stop",
            record,
            urgent_task_id=effect.request.urgent_task_id,
            node_id=effect.node_id,
        )

    def refused(self, effect: Place | Requeue | End, record: RunRecord) -> None:
        if isinstance(effect, Place):
            self._metrics.counter("placement_decisions_total").labels("refused", "false", "false").inc()
        self._say(
            f"Task is already {record.state}; what was decided here is dropped",
            "yield",
            record,
            level=logging.DEBUG,
            wish=type(effect).__name__.lower(),
        )

    def failed(self, effect: Place | Requeue | End, error: Exception) -> None:
        if isinstance(effect, Place):
            self._metrics.counter("placement_decisions_total").labels("failed", "false", "false").inc()
        wish = type(effect).__name__.lower()
        self._say(
            f"The bus did not take a {wish}, it is tried again: {error}",
            wish,
            effect.record,
            level=logging.WARNING,
        )

    def load(self, effect: TellLoad) -> None:
        load = effect.load
        replicas = [replica.record for replica in self.fleet.of_pool(load.pool_id) if replica.record is not None]
        engine = str(replicas[0].engine) if replicas else ""
        version = replicas[0].engine_version if replicas else ""
        for priority, depth in load.queued.items():
            self._metrics.gauge("queue_depth").labels(engine, version, load.pool_id, priority).set(depth)
        self._pools.add(load.pool_id)
        self._gauges.told(load.pool_id, load.slots_total, effect.figures)
        self._metrics.gauge("active_leases").labels(load.pool_id).set(load.running)
        self._metrics.gauge("pool_ready").labels(load.pool_id).set(1 if load.replicas_ready else 0)

    def term_began(self, epoch: int, *, how: str, runs: int, waited_s: float) -> None:
        """`how` as in `Lease.acquire`."""
        self._metrics.counter("shards_taken_total").labels(how).inc()
        narrate(
            log,
            f"This scheduler decides for shard {self._shard} (epoch {epoch}, lease {how}); "
            f"{runs} runs read in {waited_s:.2f} s",
            actor=self._actor,
            action="take_over",
            target=subjects.lease_key(self._shard),
            epoch=epoch,
            lease=how,
            runs=runs,
            duration_ms=round(waited_s * 1000),
        )

    def passed_over(self, runs: int) -> None:
        self._metrics.counter("messages_ignored_total").labels("run").inc(runs)
        narrate(
            log,
            f"{runs} run records are passed over: a newer release wrote them",
            actor=self._actor,
            action="pass_over",
            target=subjects.lease_key(self._shard),
            level=logging.WARNING,
            runs=runs,
        )

    def term_ended(self, epoch: int, reason: str, *, asked: bool) -> None:
        self._gauges.forget(self._pools)
        narrate(
            log,
            f"This scheduler gives up shard {self._shard} (epoch {epoch}): {reason}",
            actor=self._actor,
            action="step_down",
            target=subjects.lease_key(self._shard),
            level=logging.INFO if asked else logging.WARNING,
            epoch=epoch,
        )

    def replica_lost(self, event: ReplicaLost, held: int) -> None:
        how, why = ("gone", "its node is gone") if event.node_gone else ("expired", "its registry key expired")
        self._metrics.counter("replicas_lost_total").labels(event.pool_id, how).inc()
        narrate(
            log,
            f"Replica {event.replica_id} is lost while it held {held} tasks: {why}",
            actor=self._actor,
            action="lose_replica",
            target=event.replica_id,
            level=logging.WARNING,
            replica_id=event.replica_id,
            pool_id=event.pool_id,
            held=held,
            how=how,
        )

    def _engine(self, record: RunRecord) -> tuple[str, str]:
        replicas = [replica.record for replica in self.fleet.of_pool(record.pool_id) if replica.record is not None]
        return (str(replicas[0].engine), replicas[0].engine_version) if replicas else ("", "")

    def _say(self, human: str, action: str, record: RunRecord, *, level: int = logging.INFO, **fields: object) -> None:
        if not log.isEnabledFor(level):
            return
        narrate(
            log,
            human,
            actor=self._actor,
            action=action,
            target=record.task_id,
            level=level,
            task_id=record.task_id,
            job_id=record.task_id,
            correlation_id=record.correlation_id,
            pool_id=record.pool_id,
            replica_id=record.replica_id,
            tenant_id=record.tenant,
            priority=str(record.priority),
            attempt=record.attempt,
            **fields,
        )


def _waited_s(record: RunRecord) -> float:
    return max(0, record.placed_ms - record.admitted_ms) / 1000
