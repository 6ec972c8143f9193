"""Clients: they make tasks when their kind of arrival says so and hand them to the gateway."""

from collections.abc import Callable
from random import Random
from typing import Final

from llorch_scheduler.simulator.arrivals import Bursts, ClosedLoop, Poisson, Trace, TraceRow
from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.scenario import Flow, Scenario
from llorch_scheduler.simulator.tasks import SimTask, task_of
from llorch_shared.wire.task import CTX_MAX, MAX_TOKENS_MAX, Priority

_Tell = Callable[[SimTask], None]


class _Source:
    """One flow with its own chance, so that a change of one flow leaves the others' draws alone."""

    def __init__(self, index: int, flow: Flow, seed: int) -> None:
        self.index: Final = index
        self.flow: Final = flow
        self.dice: Final = Random(f"{seed}/{index}/{flow.tenant}")  # noqa: S311  (chance that can be repeated)
        self.rows: Final = iter(flow.arrivals.rows) if isinstance(flow.arrivals, Trace) else None
        self.turn = 0
        self.times: Final = flow.arrivals.times_ms(self.dice) if isinstance(flow.arrivals, Poisson | Bursts) else None


class Clients:
    """`arrived` is told of each task once, `too_long` of those no context can hold, `submit` of the others. Arrivals
    stop after the scenario's number of tasks."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        clock: Clock,
        arrived: _Tell,
        too_long: _Tell,
        submit: _Tell,
    ) -> None:
        self._sources: Final = [_Source(index, flow, seed) for index, flow in enumerate(scenario.flows)]
        self._ctx: Final = {pool.spec.id: min(CTX_MAX, pool.spec.ctx) for pool in scenario.pools}
        self._clock: Final = clock
        self._arrived: Final = arrived
        self._too_long: Final = too_long
        self._submit: Final = submit
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
            task = self._make(source, row.prompt, row.output, row.tenant, row.priority)
            if row.recorded is not None:
                task.follow(row.recorded)
                self._arrived(task)
                self._submit(task)
            else:
                self._hand_over(task)
            self._plan(source)

    def _ask(self, source: _Source) -> None:
        if not self.exhausted:
            flow = source.flow
            prompt, output = flow.prompt.draw(source.dice), flow.output.draw(source.dice)
            self._hand_over(self._make(source, prompt, output, flow.tenant, flow.priority))

    def _make(self, source: _Source, prompt: int, output: int, tenant: str, priority: Priority) -> SimTask:
        self._made += 1
        source.turn += 1
        return task_of(
            self._made,
            source.flow,
            source.index,
            at_ms=self._clock.now_ms,
            prompt=prompt,
            output=output,
            tenant=tenant,
            priority=priority,
            turn=source.turn,
        )

    def _hand_over(self, task: SimTask) -> None:
        self._arrived(task)
        if task.prompt + task.max_tokens > self._ctx[task.flow.pool_id] or task.max_tokens > MAX_TOKENS_MAX:
            self._too_long(task)
        else:
            self._submit(task)
