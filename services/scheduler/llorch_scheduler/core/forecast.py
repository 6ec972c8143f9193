"""What a pool's tasks may expect, learned from what its slots do: waits, chances, the rate at which places come back.

Everything counts only while tasks wait: from a start that left others waiting to the next one.

    turn = time passed · slots / starts                             slot time between two starts of the pool
    pace = turn / slots · (starts of the pool between two of the flow)

Starts are counted, not the work that was expected of them: expectations change while tasks wait, above all in the first
minute. And fair queueing is regular where time is not: a flow's pace is known after a few of its starts. What a task
waited is not fed back into what the next is told: that says how the pool was one queue ago, and in simulations made the
error larger.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from llorch_scheduler.core.drain import Drain, DrainMeter
from llorch_scheduler.core.estimate import ServiceModel
from llorch_scheduler.core.job import Job
from llorch_shared.on_time import Spread, on_time_probability
from llorch_shared.queueing import NO_WAIT, NOBODY, Ahead, Pace, Waiting, foresee
from llorch_shared.wire.registry import ClassLoad, PoolLoad
from llorch_shared.wire.task import Priority

FLOWS_MAX: Final = 4_096
KEEP: Final = 0.99
"""Of the pool's pace: the last 100 starts carry 63 %."""
FLOW_KEEP: Final = 0.95
"""Of a flow: its last 20."""
_Flow = tuple[str, Priority]
_PRIOR: Final = 4.0
"""Samples that the expectation counts for, against what is measured."""
_KNOWN: Final = 10.0
"""Starts from which on it counts how far a forecast was off: before, nobody could know better."""
OVERTAKEN_KEEP: Final = 0.98
"""Of the starts of a class by which it is measured how much is overtaken: the last 50."""
_FLOW_KNOWN: Final = 3.0
"""Weight of samples from which on a flow's own share is believed."""


@dataclass(slots=True, eq=False)
class Behind:
    """Tasks that still wait when one has left the queue."""

    in_pool: int
    in_class: int
    in_flow: int
    """Of its tenant, in its class."""


class _Turns:
    """One flow's starts."""

    __slots__ = ("between", "count", "mark", "started")

    def __init__(self) -> None:
        self.count = self.between = 0.0
        self.started = 0
        """How many of its tasks."""
        self.mark = -1
        """How many the pool had started at its last start; negative when no other task of it waited then."""


class _Overtaking:
    """What flows of one class start while a task of them waits, and how much of it was admitted after that task."""

    __slots__ = ("later", "served")

    def __init__(self) -> None:
        self.later = self.served = 0.0

    def add(self, *, ahead: int, served: int) -> None:
        self.later = OVERTAKEN_KEEP * self.later + (served - ahead if served > ahead else 0)
        self.served = OVERTAKEN_KEEP * self.served + served

    @property
    def part(self) -> float:
        return self.later / (self.served + _PRIOR)


class Forecast:
    """Of one pool. Every call is O(1), but `told`, which is O(flows told)."""

    __slots__ = (
        "_drains",
        "_flow_drains",
        "_flows",
        "_last_ms",
        "_n",
        "_overtaking",
        "_slot_time_ms",
        "_started",
        "loading_ms",
        "loading_slots",
        "service",
        "slots_free",
        "slots_total",
        "waits",
    )

    def __init__(self) -> None:
        self.service: Final = ServiceModel()
        self.waits: Final = Spread()
        """Real over told waits."""
        self.slots_total = self.slots_free = 0
        """Of the ready replicas: set by whoever calls, before anything is asked, the total by `has_slots`."""
        self.loading_ms = self.loading_slots = 0
        """With no ready replica: until one is, and what it brings; else 0."""
        self._drains: Final = {priority: DrainMeter() for priority in Priority}
        self._flow_drains: Final[dict[_Flow, DrainMeter]] = {}
        """Of the flows that are asked about (`flow_drain`) until they are forgotten."""
        self._flows: Final[OrderedDict[_Flow, _Turns]] = OrderedDict()
        self._overtaking: Final = {priority: _Overtaking() for priority in Priority}
        self._n = self._slot_time_ms = 0.0
        self._started = 0
        """How many tasks."""
        self._last_ms = -1

    # what happens

    def has_slots(self, slots: int) -> None:
        """The time since the last start was not passed with as many: it does not count."""
        if slots != self.slots_total:
            self.slots_total, self._last_ms = slots, -1
            for drain in (*self._drains.values(), *self._flow_drains.values()):
                drain.interrupted()

    def started(self, job: Job, at_ms: int, behind: Behind) -> None:
        """A task of the queue took a slot."""
        self._started += 1
        if self._last_ms >= 0 and self.slots_total > 0:
            self._n = KEEP * self._n + 1
            self._slot_time_ms = KEEP * self._slot_time_ms + (at_ms - self._last_ms) * self.slots_total
        self._last_ms = at_ms if behind.in_pool else -1
        self.left(job, at_ms, behind)
        self._turn(job, behind)
        if job.foretold:
            self._learn_wait(job, at_ms)

    def left(self, job: Job, at_ms: int, behind: Behind) -> None:
        """A task left the queue, also by ending there: its place is given back."""
        slots, record = self.slots_total, job.record
        drain = self._drains[record.priority]
        of_flow = self._flow_drains.get((record.tenant, record.priority)) if self._flow_drains else None
        cost_ms = self._cost_ms(job) if drain.measures or (of_flow is not None and of_flow.measures) else 0.0
        drain.gave_back(at_ms, cost_ms, slots=slots, others_wait=behind.in_class > 0)
        if of_flow is not None:
            of_flow.gave_back(at_ms, cost_ms, slots=slots, others_wait=behind.in_flow > 0)

    def _turn(self, job: Job, behind: Behind) -> None:
        record, flows = job.record, self._flows
        key = (record.tenant, record.priority)
        turns = flows.get(key)
        if turns is None:
            turns = flows[key] = _Turns()
            if len(flows) > FLOWS_MAX:
                flows.popitem(last=False)
        else:
            flows.move_to_end(key)
        if turns.mark >= 0:
            turns.count = FLOW_KEEP * turns.count + 1
            turns.between = FLOW_KEEP * turns.between + self._started - turns.mark
        turns.mark = self._started if behind.in_flow else -1
        if job.ahead_in_flow >= 0 and turns.started >= job.flow_started:
            served = turns.started - job.flow_started
            self._overtaking[record.priority].add(ahead=job.ahead_in_flow, served=served)
        job.ahead_in_flow = -1
        turns.started += 1

    def _learn_wait(self, job: Job, at_ms: int) -> None:
        """Once per task: what comes back from a replica was forecast for another line."""
        job.foretold = False
        real_ms, gap_ms = max(0, at_ms - job.record.admitted_ms), self.gap_ms
        self.waits.add((real_ms + gap_ms) / (job.record.predicted_start_ms + gap_ms))

    # what is expected

    @property
    def turn_ms(self) -> float:
        """Slot time between two starts; 0 while unknown. A few samples count for what tasks took on average."""
        mean_ms = self.service.mean_ms
        return (self._slot_time_ms + _PRIOR * mean_ms) / (self._n + _PRIOR) if mean_ms else 0.0

    @property
    def gap_ms(self) -> float:
        """Between two starts of the pool; 0 while unknown."""
        slots = self.slots_total or self.loading_slots
        return self.turn_ms / slots if slots else 0.0

    def pace(self, priority: Priority | None = None, tenant: str = "") -> Pace:
        """Of the pool; and of a flow."""
        flow_pace_ms = overtaken = 0.0
        if priority is not None:
            flow_pace_ms, overtaken = self._flow_pace_ms(priority, tenant), self._overtaking[priority].part
        return Pace(
            self.slots_total,
            self.slots_free,
            self.turn_ms,
            flow_pace_ms,
            self.loading_ms,
            self.loading_slots,
            overtaken,
        )

    def joined(self, job: Job, ahead: Ahead) -> Waiting:
        """A new task is about to stand behind `ahead`; its `cost_ms` is set."""
        record = job.record
        waiting = self.waiting(ahead, record.priority, record.tenant)
        job.foretold = waiting.measured and self._n >= _KNOWN
        flow = (record.tenant, record.priority)
        turns = self._flows.get(flow)
        job.ahead_in_flow, job.flow_started = ahead.flow_tasks, turns.started if turns is not None else 0
        self._drains[record.priority].joined(job.cost_ms)
        of_flow = self._flow_drains.get(flow) if self._flow_drains else None
        if of_flow is not None:
            of_flow.joined(job.cost_ms)
        return waiting

    def waiting(self, ahead: Ahead, priority: Priority, tenant: str) -> Waiting:
        """Of a task that stands behind `ahead`."""
        if ahead is NOBODY and self.slots_free > 0 and self.slots_total > 0:
            return NO_WAIT
        return foresee(ahead, self.pace(priority, tenant))

    def chance(self, waiting_ms: float, service_ms: float, budget_ms: float) -> float:
        """Chance that a task ends within `budget_ms` from now."""
        return on_time_probability(
            wait_ms=waiting_ms,
            service_ms=service_ms,
            budget_ms=budget_ms,
            waits=self.waits.parts() if waiting_ms > 0 else (),
            services=self.service.spread.parts(),
            gap_ms=self.gap_ms,
        )

    def drain(self, priority: Priority, *, share: float = 1.0) -> Drain:
        """How places of this class's queue are given back while tasks wait in it. `share`: of the class by weight, for
        as long as little was seen."""
        slots = self.slots_total or self.loading_slots
        return self._drains[priority].told(slots=slots, turn_ms=self.turn_ms, share=share, begins_ms=self.loading_ms)

    def flow_drain(self, priority: Priority, tenant: str, *, share: float) -> Drain:
        """The same of one tenant's places; measured from the first question on, until `forget_drain`."""
        meter = self._flow_drains.setdefault((tenant, priority), DrainMeter())
        slots = self.slots_total or self.loading_slots
        pace_ms = self._flow_pace_ms(priority, tenant)
        turn_ms, share = (pace_ms * slots, 1.0) if pace_ms else (self.turn_ms, share)
        turn_ms = turn_ms or self._drains[priority].expected_ms
        return meter.told(slots=slots, turn_ms=turn_ms, share=share, begins_ms=self.loading_ms)

    def forget_drain(self, flow: tuple[str, Priority]) -> None:
        self._flow_drains.pop(flow, None)

    def told(self, load: PoolLoad) -> PoolLoad:
        """A report of the backlog with what was learned about it. O(flows in it)."""
        service = self.service
        return structs.replace(
            load,
            service_ms=round(service.mean_ms, 3),
            overhead_ms=round(service.overhead_ms, 3),
            token_ms=round(service.token_ms, 4) if service.mean_ms else 0.0,
            used=round(service.used_by_all, 4) if service.mean_ms else 0.0,
            turn_ms=round(self.turn_ms, 3),
            loading_ms=self.loading_ms,
            loading_slots=self.loading_slots,
            spread=service.spread.parts(),
            wait_spread=self.waits.parts(),
            classes={name: self._told_class(Priority(name), line) for name, line in load.classes.items()},
        )

    def _told_class(self, priority: Priority, line: ClassLoad) -> ClassLoad:
        flows = {
            tenant: structs.replace(
                flow,
                pace_ms=round(self._flow_pace_ms(priority, tenant), 3),
                used=round(self.service.used(tenant, priority), 4),
            )
            for tenant, flow in line.flows.items()
        }
        return structs.replace(line, flows=flows, overtaken=round(self._overtaking[priority].part, 4))

    def _flow_pace_ms(self, priority: Priority, tenant: str) -> float:
        turns = self._flows.get((tenant, priority))
        if turns is None or turns.count < _FLOW_KNOWN or self.slots_total <= 0:
            return 0.0
        between = turns.between / turns.count
        gap_ms = self.turn_ms / self.slots_total
        return gap_ms * between if between > 1.0 else gap_ms

    def _cost_ms(self, job: Job) -> float:
        """As expected now, which is not what was expected when it came."""
        request = job.record.request
        return self.service.expected_ms(request, job.record.tenant) if request is not None else job.cost_ms
