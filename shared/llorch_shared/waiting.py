"""What a pool's load report says about waiting: of one task, of one that comes now, and of one that is turned away. The
formula is in `queueing.py`. Pure.
"""

from bisect import bisect_right
from typing import Final

from llorch_shared.on_time import chance_by_preemption, on_time_probability
from llorch_shared.pool_policy import CLASSES
from llorch_shared.queueing import NO_WAIT, NOBODY, Ahead, Pace, Waiting, foresee
from llorch_shared.wire.registry import ClassLoad, PoolLoad
from llorch_shared.wire.task import Priority, TaskRequest

RETRY_MIN_MS: Final = 1_000


class Outlook:
    """What one load report says about one flow: made once for both, asked for each task."""

    __slots__ = ("_accounted", "_ahead", "_dues", "_each_ms", "_pace", "_part", "_queued")

    def __init__(self, load: PoolLoad, priority: Priority, tenant: str) -> None:
        line = load.classes.get(priority)
        if line is None:
            line = ClassLoad(queued=load.queued.get(priority, 0), work_ms=0, weight=1, flows_weight=1)
        flow = line.flows.get(tenant)
        if flow is not None:
            tasks, weight, weights = flow.queued, flow.weight, line.flows_weight
        elif not line.flows:
            tasks, weight, weights = line.queued, 1, 1
        else:
            tasks, weight, weights = _unlisted(line)
        others = [other for name, other in load.classes.items() if name != priority and other.queued]
        self._accounted: Final = load.queue_seq.get(priority, 0)
        self._queued: Final = load.queued.get(priority, 0)
        self._part: Final = tasks / line.queued if line.queued else 1.0
        """Of the class's tasks, those of the flow."""
        self._each_ms: Final = line.work_ms / line.queued if line.queued else load.service_ms
        self._dues: Final = flow.due_ms if flow is not None else ()
        self._ahead: Final = Ahead(
            flow_tasks=tasks,
            flow_weight=weight,
            flows_weight=weights,
            class_tasks=line.queued,
            class_work_ms=line.work_ms,
            class_weight=line.weight,
            other_tasks=sum(other.queued for other in others),
            other_work_ms=sum(other.work_ms for other in others),
            other_weight=sum(other.weight for other in others),
        )
        self._pace: Final = Pace(
            slots_total=load.slots_total,
            slots_free=load.slots_free,
            turn_ms=_turn_ms(load),
            flow_pace_ms=flow.pace_ms if flow is not None else 0.0,
            loading_ms=load.loading_ms,
            loading_slots=load.loading_slots,
            overtaken=line.overtaken,
        )

    def expect(self, seq: int | None = None, *, due_in_ms: int | None = None) -> Waiting:
        """As `expect`."""
        since = 0 if seq is None else max(seq - self._accounted - 1, -1 - self._queued)
        return foresee(self._before(since, due_in_ms), self._pace)

    def _before(self, since: int, due_in_ms: int | None) -> Ahead:
        """`since`: arrivals of the class that the report does not know, taken to be of the tenants in proportion to
        what waits of them; negative: arrivals it knows that stand behind the task."""
        told = self._ahead
        tasks = told.flow_tasks
        if self._dues and due_in_ms is not None:
            own = (tasks + since * self._part if since >= 0 else tasks - 1) * _sooner(self._dues, due_in_ms)
        else:
            own = tasks + since * self._part if since >= 0 else tasks - 1 + (since + 1) * self._part
        flow_tasks = round(own)
        if flow_tasks <= 0:
            return NOBODY
        class_tasks = told.class_tasks + since
        work_ms = told.class_work_ms + since * self._each_ms
        return Ahead(
            flow_tasks,
            told.flow_weight,
            told.flows_weight,
            class_tasks if class_tasks > 0 else 0,
            work_ms if work_ms > 0 else 0.0,
            told.class_weight,
            told.other_tasks,
            told.other_work_ms,
            told.other_weight,
        )


def expect(
    load: PoolLoad | None, priority: Priority, tenant: str, seq: int | None = None, *, due_in_ms: int | None = None
) -> Waiting:
    """Of the task of `tenant` stored at `seq` of its admission stream (none: of a newcomer), from the scheduler's last
    load report. `due_in_ms`: until its deadline; without it the task is taken to stand at the end of its flow."""
    if load is None:
        return NO_WAIT
    return Outlook(load, priority, tenant).expect(seq, due_in_ms=due_in_ms)


def expected_ms(load: PoolLoad, request: TaskRequest, tenant: str) -> float:
    """Slot time it is expected to take; 0 while nothing is known of this pool's slot times."""
    if load.service_ms <= 0:
        return 0.0
    line = load.classes.get(request.priority)
    flow = line.flows.get(tenant) if line is not None else None
    used = (flow.used if flow is not None else 0.0) or load.used or 1.0
    tokens = request.max_tokens * used
    if request.expected_tokens is not None:
        tokens = float(min(request.expected_tokens, request.max_tokens))
    return load.overhead_ms + load.token_ms * tokens


def chance(load: PoolLoad | None, request: TaskRequest, tenant: str, *, start_ms: float) -> float | None:
    """Chance that it ends before its deadline; None while nothing is known of this pool's slot times. If a running task
    of a lower class would be stopped for it, it need not wait."""
    if load is None or load.service_ms <= 0:
        return None
    service_ms = expected_ms(load, request, tenant)
    told = on_time_probability(
        wait_ms=start_ms,
        service_ms=service_ms,
        budget_ms=request.deadline_ms,
        waits=load.wait_spread,
        services=load.spread,
        gap_ms=_gap_ms(load),
    )
    if load.preemptible <= 0 or request.priority is CLASSES[-1]:
        return told
    return max(told, chance_by_preemption(service_ms=service_ms, budget_ms=request.deadline_ms, services=load.spread))


def retry_after_ms(load: PoolLoad | None) -> int:
    """When one place of a full queue is expected to be free, at least a second: what is said when nobody can promise
    one."""
    if load is None:
        return RETRY_MIN_MS
    wait_ms = _gap_ms(load) + (load.loading_ms if load.slots_total <= 0 else 0)
    return max(RETRY_MIN_MS, round(wait_ms))


def is_promised(load: PoolLoad | None, priority: Priority, tenant: str) -> bool:
    """Whether places that a newcomer might take are kept for others: the scheduler is asked first."""
    line = load.classes.get(priority) if load is not None else None
    flow = line.flows.get(tenant) if line is not None else None
    return line is not None and (line.promised or (flow is not None and flow.promised))


def _turn_ms(load: PoolLoad) -> float:
    return load.turn_ms or load.service_ms


def _gap_ms(load: PoolLoad) -> float:
    """As `Pace.gap_ms`."""
    slots = load.slots_total or load.loading_slots
    return _turn_ms(load) / slots if slots else 0.0


def _sooner(due_ms: tuple[int, ...], due_in_ms: int) -> float:
    """Part of a flow that is due before a task, from evenly spaced deadlines of it (the first and the last one
    included), as if the others lay evenly between them."""
    after = bisect_right(due_ms, due_in_ms)
    if after in (0, len(due_ms)):
        return float(after > 0)
    inside = (due_in_ms - due_ms[after - 1]) / (due_ms[after] - due_ms[after - 1])
    return (after - 1 + inside) / (len(due_ms) - 1)


def _unlisted(line: ClassLoad) -> tuple[int, int, int]:
    """A tenant that is not among those told: it waits for nothing of its own, or it is one of many with little."""
    listed = sum(flow.queued for flow in line.flows.values())
    weight = sum(flow.weight for flow in line.flows.values())
    rest = line.queued - listed
    if rest <= 0:
        return 0, 1, line.flows_weight + 1
    return round(rest / max(1, line.flows_weight - weight)), 1, line.flows_weight
