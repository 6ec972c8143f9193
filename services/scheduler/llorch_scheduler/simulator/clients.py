"""Clients and the gateway in front of them: tasks arrive, are admitted or refused, and the refused come back as told.

The gateway's part is what it does live: an admission queue that is full, or a pool that nobody serves, refuses with a
time to come back after; an admission is answered with position and expected start from the scheduler's last load
report. A client waits as it was told and tries again, unless that would outlast its patience.
"""

from random import Random
from typing import Final, Protocol

from llorch_scheduler.simulator.arrivals import Bursts, ClosedLoop, Poisson, Trace, TraceRow
from llorch_scheduler.simulator.bus import AdmissionQueue
from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.scenario import Flow, Scenario
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.waiting import RETRY_MIN_MS, predict, queue_position, retry_after_ms
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.task import CTX_MAX, MAX_TOKENS_MAX, Priority


class Outside(Protocol):
    """Where admitted tasks go, and who keeps count."""

    def arrived(self, task: SimTask) -> None: ...

    def refused(self, task: SimTask, reason: str) -> None: ...

    def gave_up(self, task: SimTask, reason: str) -> None: ...

    def admitted(self, task: SimTask, queue: AdmissionQueue, seq: int) -> None: ...

    def load(self, pool_id: str) -> PoolLoad | None: ...

    def served(self, pool_id: str) -> bool: ...


class _Source:
    """One flow with its own chance, so that a change of one flow leaves the others' draws alone."""

    def __init__(self, index: int, flow: Flow, seed: int) -> None:
        self.index: Final = index
        self.flow: Final = flow
        self.dice: Final = Random(f"{seed}/{index}/{flow.tenant}")  # noqa: S311  (chance that can be repeated)
        self.rows: Final = iter(flow.arrivals.rows) if isinstance(flow.arrivals, Trace) else None
        self.times: Final = flow.arrivals.times_ms(self.dice) if isinstance(flow.arrivals, Poisson | Bursts) else None


class Clients:
    """`queues` is by pool and class. Arrivals stop after the scenario's number of tasks."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        clock: Clock,
        queues: dict[tuple[str, Priority], AdmissionQueue],
        outside: Outside,
    ) -> None:
        self._sources: Final = [_Source(index, flow, seed) for index, flow in enumerate(scenario.flows)]
        self._ctx: Final = {pool.spec.id: pool.spec.ctx for pool in scenario.pools}
        self._clock: Final = clock
        self._queues: Final = queues
        self._outside: Final = outside
        self._tasks: Final = scenario.tasks
        self._made = 0
        self._open = len(self._sources)
        """Sources that may still bring a task."""

    @property
    def exhausted(self) -> bool:
        """No new task arrives any more."""
        return self._made >= self._tasks or self._open == 0

    def begin(self) -> None:
        for source in self._sources:
            arrivals = source.flow.arrivals
            if isinstance(arrivals, ClosedLoop):
                for _ in range(arrivals.users):
                    self._clock.after(arrivals.think_ms(source.dice), self._ask, source)
            else:
                self._plan(source)

    def ended(self, task: SimTask) -> None:
        """The task is over, however it went: the user of a closed loop thinks about the next."""
        arrivals = task.flow.arrivals
        if isinstance(arrivals, ClosedLoop) and not self.exhausted:
            source = self._sources[task.source]
            self._clock.after(arrivals.think_ms(source.dice), self._ask, source)

    # arrivals

    def _plan(self, source: _Source) -> None:
        """The next task of an open process or a trace."""
        if source.times is not None:
            self._clock.at(next(source.times), self._arrive, source)
        elif source.rows is not None and (row := next(source.rows, None)) is not None:
            self._clock.at(row.at_ms, self._replay, (source, row))
        else:
            self._open -= 1

    def _arrive(self, source: _Source) -> None:
        if not self.exhausted:
            self._ask(source)
            self._plan(source)

    def _replay(self, read: tuple[_Source, TraceRow]) -> None:
        source, row = read
        if not self.exhausted:
            self._new(source, row.prompt, row.output, row.tenant, row.priority)
            self._plan(source)

    def _ask(self, source: _Source) -> None:
        if not self.exhausted:
            flow = source.flow
            prompt, output = flow.prompt.draw(source.dice), flow.output.draw(source.dice)
            self._new(source, prompt, output, flow.tenant, flow.priority)

    def _new(self, source: _Source, prompt: int, output: int, tenant: str, priority: Priority) -> None:
        self._made += 1
        task = SimTask(
            self._made,
            source.flow,
            source.index,
            at_ms=self._clock.now_ms,
            prompt=prompt,
            output=output,
            tenant=tenant,
            priority=priority,
        )
        self._outside.arrived(task)
        if prompt + output > min(CTX_MAX, self._ctx[task.flow.pool_id]) or output > MAX_TOKENS_MAX:
            self._outside.gave_up(task, "too_long")
        else:
            self._submit(task)

    # admission

    def _submit(self, task: SimTask) -> None:
        pool_id = task.flow.pool_id
        load = self._outside.load(pool_id)
        if not self._outside.served(pool_id):
            self._refuse(task, "pool_unready", RETRY_MIN_MS)
            return
        queue = self._queues[pool_id, task.priority]
        seq = queue.publish()
        if not seq:
            self._refuse(task, "queue_full", retry_after_ms(load))
            return
        task.position = queue_position(load, task.priority, seq)
        task.told_ms = predict(load, task.position)
        task.admitted_ms = self._clock.now_ms
        self._outside.admitted(task, queue, seq)

    def _refuse(self, task: SimTask, reason: str, wait_ms: int) -> None:
        task.refusals += 1
        self._outside.refused(task, reason)
        if self._clock.now_ms + wait_ms > task.arrived_ms + 1000 * task.flow.patience_s:
            self._outside.gave_up(task, reason)
        else:
            self._clock.after(wait_ms, self._submit, task)
