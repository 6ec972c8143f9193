"""The scheduler's decisions: which task runs where, which ends here, which comes back.

One `handle(event)` at a time, answered with effects; time comes with the event, so equal events give equal effects. A
task is in exactly one `Phase`; a phase with an effect on its way waits for that effect's outcome. What others write is
learned from `RunChanged`, and a stored record always wins over what is remembered here.

    arrivals   tasks join a queue, and wishes to cancel
    placing    free slots get the task whose turn it is
    outcomes   what became of our writes, and what others wrote
    holders    replicas report and vanish; what they cannot finish is taken back
    preempting running tasks that are asked to make way
    endings    tasks that end here
    upkeep     what time does, and specifications that change
    telling    load reports and figures

Not here: ordering (`queue`), choice of a replica (`placement`), slots (`fleet`), the bus (`llorch_scheduler.service`).
"""

from collections.abc import Callable
from typing import Any, Final

from llorch_scheduler.core.appointing import appoint
from llorch_scheduler.core.arrivals import Arrivals
from llorch_scheduler.core.effects import Effect
from llorch_scheduler.core.endings import Endings
from llorch_scheduler.core.events import (
    BacklogRead,
    Event,
    PoolChanged,
    PoolRemoved,
    Rebuilt,
    ReplicaLost,
    ReplicaReported,
    RunChanged,
    TaskArrived,
    TaskCancelled,
    Tick,
    WriteDone,
    WriteFailed,
    WriteRefused,
)
from llorch_scheduler.core.holders import Holders
from llorch_scheduler.core.job import Phase
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.outcomes import Outcomes
from llorch_scheduler.core.placing import Placing
from llorch_scheduler.core.preempting import Preempting
from llorch_scheduler.core.sessions import seen
from llorch_scheduler.core.state import State
from llorch_scheduler.core.upkeep import Upkeep
from llorch_shared.wire.registry import Appointment, AppointmentRequest
from llorch_shared.wire.run import Located, located_of
from llorch_shared.wire.session import SessionQuestion, SessionSeen


class SchedulerCore:
    """All state of one term in office. A new term starts with a new core."""

    def __init__(self, *, actor: str = "scheduler", limits: Limits | None = None) -> None:
        state = State(actor=actor, limits=limits or Limits())
        self._state: Final = state
        self.jobs: Final = state.jobs
        self.pools: Final = state.pools
        self.fleet: Final = state.fleet
        endings = Endings(state)
        preempting = Preempting(state)
        placing = Placing(state, preempting)
        arrivals = Arrivals(state, endings, placing)
        holders = Holders(state, endings, placing)
        outcomes = Outcomes(
            state, arrivals=arrivals, endings=endings, holders=holders, placing=placing, preempting=preempting
        )
        upkeep = Upkeep(
            state, endings=endings, holders=holders, outcomes=outcomes, placing=placing, preempting=preempting
        )
        self._handlers: Final[dict[type[Event], Callable[[Any], None]]] = {
            TaskArrived: arrivals.arrived,
            TaskCancelled: arrivals.cancelled,
            WriteDone: outcomes.done,
            WriteRefused: outcomes.refused,
            WriteFailed: outcomes.failed,
            RunChanged: outcomes.changed,
            Rebuilt: outcomes.rebuilt,
            ReplicaReported: holders.reported,
            ReplicaLost: holders.lost,
            PoolChanged: upkeep.pool_changed,
            PoolRemoved: upkeep.pool_removed,
            BacklogRead: upkeep.backlog_read,
            Tick: upkeep.tick,
        }

    @property
    def limits(self) -> Limits:
        return self._state.limits

    def handle(self, event: Event) -> list[Effect]:
        effects: list[Effect] = []
        state = self._state
        state.effect, state.now_ms = effects.append, event.at_ms
        self._handlers[type(event)](event)
        return effects

    def floor(self) -> int:
        """No unfinished run has a lower sequence. O(held and returned tasks)."""
        return self._state.ledger.floor()

    def appoint(self, request: AppointmentRequest, at_ms: int) -> Appointment:
        """May this task be admitted now, or when is it to come back? O(log promises)."""
        return appoint(self.pools.get(request.pool_id), request, at_ms)

    def session(self, question: SessionQuestion, at_ms: int) -> SessionSeen:
        """Where a session's tasks ran. O(pools)."""
        return seen(self.pools, question, at_ms)

    def locate(self, task_id: str) -> Located:
        """Where a task that has not ended stands, and how long it is expected to wait still."""
        job = self.jobs.get(task_id)
        if job is None:
            return Located(found=False)
        pool, record = self.pools[job.record.pool_id], job.record
        position = predicted_ms = 0
        if job.phase is Phase.QUEUED:
            waiting = pool.waiting(pool.queue.ahead_of(job), record.priority, record.tenant, self._state.now_ms)
            position, predicted_ms = waiting.position, round(waiting.start_ms)
        return located_of(record, queue_position=position, predicted_start_ms=predicted_ms)
