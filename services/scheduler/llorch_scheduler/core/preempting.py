"""Hard preemption (ORCH-3086): a running task of a lower class is stopped for one that would miss its deadline.

Asked for at the last moment at which it helps, so that a slot that becomes free by itself is taken first. The victim is
of the lowest class, on a replica that has shown it can be stopped, exactly resumable, and started last: the least work
is repeated. One victim per waiting task, and no more per minute than the pool allows. A victim that does not answer
runs on and is not asked again.
"""

from itertools import islice
from typing import Final

from llorch_scheduler.core.effects import Preempt, Preempted
from llorch_scheduler.core.job import Job, Phase
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.state import State
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.policy import HardRequirements
from llorch_shared.wire.run import PreemptRequest, RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Determinism, Failover, Workload

LOOKED_AT_MAX: Final = 64
"""Running tasks that are looked at for one urgent task, the last started first."""
_MINUTE_MS: Final = 60_000


class Preempting:
    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state: Final = state

    def make_way(self, pool: Pool, spec: PoolSpec, at_ms: int) -> None:
        """Every slot is taken: ask for one if the most urgent task cannot wait for one to become free."""
        needs = spec.preemption.hard_requirements
        if _left(pool, needs, at_ms) <= 0:
            return
        urgent = pool.queue.urgent(pool.fleet.can_serve, at_ms, self._state.limits.preempt_lead_ms)
        if urgent is None or urgent.task_id in pool.victims:
            return
        victim = self._victim(pool, urgent, needs)
        if victim is None:
            return
        victim.preempt_ms, victim.preempted_for = at_ms, urgent.task_id
        pool.victims[urgent.task_id] = victim
        pool.preempted_ms.append(at_ms)
        self._state.effect(
            Preempt(
                node_id=victim.record.node_id,
                request=PreemptRequest(task_id=victim.task_id, run_seq=victim.run_seq, urgent_task_id=urgent.task_id),
                record=victim.record,
            )
        )

    def stopped(self, job: Job, record: RunRecord, *, urgent_task_id: str) -> None:
        """A node has stopped this task, whoever asked for it."""
        job.stopped = True
        self._state.effect(Preempted(record=record, urgent_task_id=urgent_task_id))

    def upkeep(self, pool: Pool, at_ms: int) -> None:
        """Forget victims that do not answer, and those whose urgent task waits no longer. O(victims)."""
        for urgent_id, victim in list(pool.victims.items()):
            urgent = self._state.jobs.get(urgent_id)
            silent = at_ms - victim.preempt_ms >= self._state.limits.preempt_ms
            if silent or urgent is None or urgent.phase is not Phase.QUEUED:
                del pool.victims[urgent_id]

    def _victim(self, pool: Pool, urgent: Job, needs: HardRequirements) -> Job | None:
        for priority in reversed(CLASSES):
            if priority is urgent.record.priority:
                return None
            if priority in needs.protect_priorities:
                continue
            for job in islice(reversed(pool.running[priority].values()), LOOKED_AT_MAX):
                if self._may_stop(pool, job, urgent, needs):
                    return job
        return None

    def _may_stop(self, pool: Pool, job: Job, urgent: Job, needs: HardRequirements) -> bool:
        replica = self._state.fleet.get(pool.pool_id, job.record.replica_id)
        return (
            replica is not None and _is_stoppable(job, replica, needs) and pool.fleet.could_take(urgent.shape, replica)
        )


def preemptible(state: State, pool: Pool, at_ms: int) -> int:
    """Running tasks of the lowest class that could be stopped now for an urgent one of a higher class. At most
    LOOKED_AT_MAX are looked at."""
    spec = pool.spec
    if spec is None or spec.preemption.mode != "hard":
        return 0
    lowest, needs = CLASSES[-1], spec.preemption.hard_requirements
    left = _left(pool, needs, at_ms)
    if left <= 0 or lowest in needs.protect_priorities:
        return 0
    looked_at = islice(reversed(pool.running[lowest].values()), LOOKED_AT_MAX)
    replicas = ((job, state.fleet.get(pool.pool_id, job.record.replica_id)) for job in looked_at)
    return min(left, sum(replica is not None and _is_stoppable(job, replica, needs) for job, replica in replicas))


def _left(pool: Pool, needs: HardRequirements, at_ms: int) -> int:
    """Tasks that may still be asked to stop within this minute."""
    while pool.preempted_ms and pool.preempted_ms[0] <= at_ms - _MINUTE_MS:
        pool.preempted_ms.popleft()
    return needs.max_preemptions_per_min - len(pool.preempted_ms)


def _is_stoppable(job: Job, replica: Replica, needs: HardRequirements) -> bool:
    request = job.record.request
    if job.preempt_ms or job.cancel_reason or request is None:
        return False
    if request.determinism is not Determinism.STRICT or request.failover is Failover.FAIL:
        return False
    if request.workload is not Workload.COMPLETION:
        return False
    return replica.record is not None and needs.engine_capability in replica.record.features


def was_stopped(before: RunRecord, after: RunRecord) -> bool:
    """The node has put it back for more urgent work; its slot was free before it wrote so."""
    return not after.replica_id and after.preemptions > before.preemptions
