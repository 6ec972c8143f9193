"""Tasks that join a queue: new ones, and those that come back from a replica. And wishes to cancel, which may come
before the task they mean."""

from collections import OrderedDict
from typing import Final

from llorch_scheduler.core import job as jobs
from llorch_scheduler.core.effects import Ack, Audit
from llorch_scheduler.core.endings import Endings
from llorch_scheduler.core.events import TaskArrived, TaskCancelled
from llorch_scheduler.core.job import QUEUED, Job
from llorch_scheduler.core.placing import Placing
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.preempting import preemptible
from llorch_scheduler.core.queue import REFUSE
from llorch_scheduler.core.state import State
from llorch_shared.errors import ErrorCode, PolicyLabel
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskState
from llorch_shared.wishes import no_device

_REJECT: Final = FullPolicy.REJECT


class Arrivals:
    __slots__ = ("_endings", "_placing", "_state", "_wishes")

    def __init__(self, state: State, endings: Endings, placing: Placing) -> None:
        self._state: Final = state
        self._endings: Final = endings
        self._placing: Final = placing
        self._wishes: Final[OrderedDict[str, str]] = OrderedDict()

    def arrived(self, event: TaskArrived) -> None:
        state, at_ms, task_id, seq = self._state, event.at_ms, event.task_id, event.ref.seq
        known = state.jobs.get(task_id)
        pool = state.pool(event.pool_id, at_ms)
        queue = pool.queue.classes[event.priority]
        queue.seq = seq if seq > queue.seq else queue.seq
        pool.dirty = True
        if known is not None:
            if known.ref != event.ref:
                self._endings.disown(jobs.arrived(event), known.record, at_ms)
                state.effect(Ack(task_id=task_id, ref=event.ref))
            return
        job = state.jobs[task_id] = jobs.arrived(event)
        if pool.backlog_read:
            job.newcomer = True
            pool.foretell(job, at_ms)
        else:
            # Read after a takeover: what its client was told is not known, and those before it are not all read.
            pool.assess(job)
        pool.appointments[event.priority].arrived(task_id)
        pool.tenant_books.arrived((event.tenant, event.priority), task_id)
        if event.channel == "nats":
            state.effect(Audit(record=jobs.admission_audit(event, job.record, state.actor)))
        job.cancel_reason = self.wish_for(task_id)
        if event.problem is not None or event.request is None:
            self._endings.end(job, TaskState.FAILED, at_ms, error=event.problem, reason="invalid")
        elif (
            job.cancel_reason
            or pool.spec is None
            or (self._is_welcome(pool, pool.spec, job, at_ms) and self._finds_a_place(pool, pool.spec, job, at_ms))
        ):
            self.enqueue(job, at_ms)

    def cancelled(self, event: TaskCancelled) -> None:
        job = self._state.jobs.get(event.task_id)
        if job is None:
            self._wishes[event.task_id] = event.reason
            if len(self._wishes) > self._state.limits.wishes_max:
                self._wishes.popitem(last=False)
            return
        job.cancel_reason = job.cancel_reason or event.reason
        if job.phase is QUEUED:
            self._endings.cancel(job, event.at_ms)

    def wish_for(self, task_id: str) -> str:
        """Why this task was cancelled before it was known here; empty when it was not."""
        return self._wishes.pop(task_id, "") if self._wishes else ""

    def enqueue(self, job: Job, at_ms: int) -> None:
        """Let it wait, unless it is already over."""
        job.enter(QUEUED, at_ms)
        if job.cancel_reason:
            self._endings.cancel(job, at_ms)
        elif job.record.request is None:
            message = "the record of this task has lost its request"
            self._endings.fail(job, ErrorCode.INTERNAL, message, at_ms, reason="no_request")
        elif job.due_ms <= at_ms:
            self._endings.expire(job, at_ms)
        else:
            state = self._state
            pool = state.pool(job.record.pool_id, at_ms)
            pool.dirty = True
            if self._placing.at_once(pool, job, at_ms):
                return
            pool.queue.push(job, at_ms)
            self._placing.fill(pool, at_ms)
            if job.phase is QUEUED:
                latest_ms = job.latest_start_ms
                state.expiries.watch(job, latest_ms if latest_ms > at_ms else min(job.due_ms, at_ms + 1))

    def come_back(self, job: Job, at_ms: int) -> None:
        """To the front of its queue, behind those that came back earlier."""
        job.order = self._state.ledger.next_order()
        self._state.pool(job.record.pool_id, at_ms).assess(job)
        self.enqueue(job, at_ms)

    def _is_welcome(self, pool: Pool, spec: PoolSpec, job: Job, at_ms: int) -> bool:
        """What gateways refuse before they admit, for tasks that came past them. Not after a takeover: what is read
        then was admitted by what was known at its time."""
        record = job.record
        if record.channel != "nats" or not pool.backlog_read:
            return True
        if record.request is not None and not pool.fleet.has_device(record.request):
            error = no_device(record.request).body
            self._endings.end(job, TaskState.FAILED, at_ms, error=error, reason="invalid")
            return False
        shed = pool.breaker.shed(record.priority, at_ms, spec.breaker)
        if shed.reason:
            self._endings.refuse(job, shed.reason, PolicyLabel.CIRCUIT_BREAKER, at_ms, retry_after_ms=shed.for_ms)
            return False
        least = spec.deadlines.min_on_time_probability
        if least > 0 and pool.forecast.service.mean_ms > 0:
            chance = pool.chance(job, at_ms, wait_ms=record.predicted_start_ms)
            if chance < least and record.priority is not CLASSES[-1] and preemptible(self._state, pool, at_ms):
                chance = max(chance, pool.chance_by_preemption(job, at_ms))
            if chance < least:
                self._endings.infeasible(job, chance, at_ms)
                return False
        return True

    def _finds_a_place(self, pool: Pool, spec: PoolSpec, job: Job, at_ms: int) -> bool:
        """By the policies that the scheduler applies; the server has applied its own already."""
        policy = spec.queue.full_policy
        if job.est_kv_mb and pool.queue.never_fits(job):
            message = "the task's KV cache alone is over what its tenant may have"
            self._endings.refuse(job, message, PolicyLabel.KV_QUOTA, at_ms, retry_after_ms=pool.retry_after_ms())
            return False
        if policy is _REJECT and spec.queue.tenant_capacity is None:
            return True
        loser = pool.queue.victim(job, spec)
        if loser is REFUSE:
            sheds = policy is FullPolicy.SHED_LOW_PRIORITY
            label = PolicyLabel.SHED_LOW_PRIORITY if sheds else PolicyLabel.TENANT_CAPACITY
            message = f"no place in the queue ({label})"
            self._endings.refuse(job, message, label, at_ms, retry_after_ms=pool.retry_after_ms())
            return False
        if isinstance(loser, Job):
            label, wait_ms = PolicyLabel(policy), pool.retry_after_ms()
            self._endings.drop(loser, label, at_ms, newcomer=job.task_id, retry_after_ms=wait_ms)
        return True
