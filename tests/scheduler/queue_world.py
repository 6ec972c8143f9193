"""A queue with slots around it, as plain data: tasks of known and of mistaken cost, quotas, time in milliseconds."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import msgspec

from llorch_scheduler.core.job import Job, Phase
from llorch_scheduler.core.queue import PoolQueue
from llorch_scheduler.core.shape import ANY, Shape
from llorch_shared.wire.policy import (
    AdmissionSpec,
    DeadlineSpec,
    FairnessSpec,
    PrioritySpec,
    TenantLimits,
    TenantSpec,
)
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority, TaskState
from scheduler.samples import spec, task_id

FAR = 2**53
INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def everything(_shape: Shape) -> bool:
    return True


def waiting(
    number: int,
    tenant: str = "a",
    priority: Priority = INTERACTIVE,
    *,
    cost_ms: float = 100.0,
    due_ms: int = FAR,
    tokens: float = 0.0,
    kv_mb: int = 0,
    shape: Shape = ANY,
    came_back: bool = False,
) -> Job:
    record = RunRecord(
        task_id=task_id(number),
        state=TaskState.QUEUED,
        pool_id="p1",
        lane="gw-1",
        correlation_id="c",
        tenant=tenant,
        priority=priority,
        admitted_ms=0,
    )
    return Job(
        record=record,
        state=TaskState.QUEUED,
        phase=Phase.QUEUED,
        order=(0 if came_back else 1, number),
        due_ms=due_ms,
        shape=shape,
        cost_ms=cost_ms,
        tokens=tokens,
        est_kv_mb=kv_mb,
    )


def policy(
    *,
    tenants: dict[str, int | TenantLimits] | None = None,
    classes: Iterable[PrioritySpec] = (),
    default: TenantLimits | None = None,
    order: str = "edf",
    **fields: Any,
) -> PoolSpec:
    """`tenants`: weights, or all limits."""
    listed = [
        TenantSpec(id=name, **({"weight": value} if isinstance(value, int) else msgspec.structs.asdict(value)))
        for name, value in (tenants or {}).items()
    ]
    fairness = FairnessSpec(tenants=tuple(listed), default=default or TenantLimits())
    deadlines = msgspec.convert({"order": order}, DeadlineSpec)
    admission = AdmissionSpec(priorities=tuple(classes), fairness=fairness)
    return msgspec.structs.replace(spec(), admission=admission, deadlines=deadlines, **fields)


def queue_of(jobs: Iterable[Job] = (), *, pool: PoolSpec | None = None) -> PoolQueue:
    queue = PoolQueue()
    if pool is not None:
        queue.configure(pool, 0)
    for job in jobs:
        queue.push(job, 0)
    return queue


def start(queue: PoolQueue, at_ms: int = 0, is_open: Callable[[Shape], bool] = everything) -> Job | None:
    """Whose turn it is, started."""
    pick = queue.pick(is_open, at_ms)
    if pick is None:
        return None
    queue.took(pick, at_ms)
    return pick.job


def starts(queue: PoolQueue, count: int, *, at_ms: int = 0) -> list[Job]:
    """As many as can start, each ended at once after its expected time."""
    found: list[Job] = []
    while len(found) < count and (job := start(queue, at_ms)) is not None:
        found.append(job)
        queue.ended(job, job.cost_ms, job.tokens, at_ms)
    return found


def numbers(jobs: Iterable[Job]) -> list[int]:
    return [job.order[1] for job in jobs]


@dataclass
class Slots:
    """`depth` slots that always take what the queue gives. `real_ms` says how long a task takes, as expected unless it
    is told otherwise. `log` is every start; `work` the slot time of what was started, by (class, tenant)."""

    queue: PoolQueue
    depth: int = 1
    real_ms: dict[str, int] = field(default_factory=dict)
    now: int = 0
    log: list[tuple[int, Job]] = field(default_factory=list)
    work: Counter[tuple[Priority, str]] = field(default_factory=Counter)
    running: list[tuple[int, int, int, Job]] = field(default_factory=list)

    def fill(self) -> list[Job]:
        started: list[Job] = []
        while len(self.running) < self.depth and (job := start(self.queue, self.now)) is not None:
            real_ms = self.real_ms.get(job.task_id, round(job.cost_ms))
            heappush(self.running, (self.now + real_ms, len(self.log), self.now, job))
            self.log.append((self.now, job))
            self.work[job.record.priority, job.record.tenant] += real_ms
            started.append(job)
        return started

    def step(self) -> Job:
        """To the next end; what is free is filled."""
        end, _, began, job = heappop(self.running)
        self.now = end
        self.queue.ended(job, end - began, job.tokens, end)
        self.fill()
        return job

    def run(self, until_ms: int) -> None:
        self.fill()
        while self.running and self.running[0][0] <= until_ms:
            self.step()
        self.now = max(self.now, until_ms)
