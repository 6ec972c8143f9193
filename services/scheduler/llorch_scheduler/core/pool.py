"""One pool as the scheduler keeps it: its queue, its replicas, what was measured of it, and what is expected of it."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from llorch_scheduler.core.appointments import Appointments
from llorch_scheduler.core.breaker import Breaker
from llorch_scheduler.core.forecast import Behind, Forecast
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.loading import Loading
from llorch_scheduler.core.peers import Slots
from llorch_scheduler.core.pool_fleet import PoolFleet
from llorch_scheduler.core.queue import PoolQueue
from llorch_scheduler.core.shape import Shape
from llorch_scheduler.core.tally import DeadlineTally, StartErrors
from llorch_scheduler.core.tenant_books import TenantBooks
from llorch_shared.on_time import EDGES, chance_by_preemption
from llorch_shared.pool_policy import CLASSES
from llorch_shared.queueing import NO_WAIT, Ahead, Waiting
from llorch_shared.waiting import RETRY_MIN_MS
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Determinism, Priority, TaskRequest

PROMPT_CHARS_PER_TOKEN: Final = 4
"""Of English text, on average; what the engine counted corrects it when the task ends."""

SHAPES_MAX: Final = 1_024
"""That are kept as one object; clients choose device masks."""


@dataclass(slots=True, eq=False)
class Pool:
    """`spec` is None for a pool that is not wanted (any more); nothing is placed on it."""

    pool_id: str
    fleet: PoolFleet
    since_ms: int
    spec: PoolSpec | None = None
    queue: PoolQueue = field(default_factory=PoolQueue)
    forecast: Forecast = field(default_factory=Forecast)
    breaker: Breaker = field(default_factory=Breaker)
    loading: Loading = field(default_factory=Loading)
    appointments: dict[Priority, Appointments] = field(
        default_factory=lambda: {each: Appointments() for each in CLASSES}
    )
    tenant_books: TenantBooks = field(default_factory=TenantBooks)
    tally: DeadlineTally = field(default_factory=DeadlineTally)
    start_errors: StartErrors = field(default_factory=StartErrors)
    shapes: dict[Shape, Shape] = field(default_factory=dict)
    shapes_version: int = -1
    """Of the fleet when the waiting tasks got their shapes."""
    read: set[Priority] = field(default_factory=set)
    """Queues whose backlog has been pulled."""
    backlog_read: bool = False
    """All of them."""
    paused_until_ms: int = 0
    """A placement could not be written: no other is tried before."""
    overloaded_ms: int = 0
    """Since when every slot is taken while tasks wait; 0 when that is not so."""
    running: dict[Priority, dict[str, Job]] = field(default_factory=lambda: {each: {} for each in CLASSES})
    """Claimed tasks, in the order in which they started."""
    victims: dict[str, Job] = field(default_factory=dict)
    """Running tasks that were asked to stop, by the task that waits for the slot."""
    preempted_ms: deque[int] = field(default_factory=deque)
    """When tasks were asked to stop, within the last minute."""
    told_ms: int = 0
    figures_told_ms: int = 0
    dirty: bool = True

    def backlog_is_read(self, priority: Priority) -> None:
        self.read.add(priority)
        self.backlog_read = len(self.read) == len(CLASSES)

    # what tasks require and take

    def assess(self, job: Job) -> None:
        """What the task requires and is expected to take, as far as that is known. Not while it stands in a line."""
        record, service = job.record, self.forecast.service
        request = record.request
        if request is None:
            return
        tokens = job.tokens_out = service.expected_tokens(request, record.tenant)
        cost_ms = service.overhead_ms + service.token_ms * tokens
        job.cost_ms = cost_ms if cost_ms > 1.0 else 1.0
        job.tokens = tokens + _prompt_tokens(request)
        if self.spec is not None:
            shape = self.fleet.shape_of(request)
            if record.attempt > 1 and request.determinism is Determinism.STRICT:
                shape = replace(shape, determinism_class=record.determinism_class)
            job.shape = self._one(shape)
            job.est_kv_mb = self.fleet.kv_mb(request)

    def _one(self, shape: Shape) -> Shape:
        """One object for equal shapes: tasks are many, shapes are few."""
        if len(self.shapes) > SHAPES_MAX:
            self.shapes.clear()
        return self.shapes.setdefault(shape, shape)

    def reassess(self, at_ms: int) -> None:
        """What waiting tasks require has changed. O(waiting tasks)."""
        self.shapes_version = self.fleet.shapes_version
        for queue in self.queue.classes.values():
            for job in queue.jobs():
                self.queue.discard(job)
                self.assess(job)
                self.queue.push(job, at_ms)

    # what may be expected

    def look(self, at_ms: int) -> Forecast:
        """The forecast, told how many slots there are now."""
        slots, forecast = self.fleet.slots(), self.forecast
        if slots.total != forecast.slots_total:
            forecast.has_slots(slots.total)
        forecast.slots_free = slots.free
        if slots.replicas or self.spec is None:
            forecast.loading_ms = forecast.loading_slots = 0
        else:
            forecast.loading_ms = self.loading.expected_ms(at_ms, self.spec.waiting.load_ms)
            forecast.loading_slots = self.spec.slots * max(1, len(self.loading))
        return forecast

    def foretell(self, job: Job, at_ms: int) -> None:
        """A newcomer, before it stands in line: what it takes, and how long it will wait, as its record tells."""
        self.assess(job)
        record = job.record
        ahead = self.queue.ahead_of_newcomer(record.priority, record.tenant, job.due_ms)
        waiting = self.look(at_ms).joined(job, ahead)
        if waiting is not NO_WAIT:
            job.record = replace(record, queue_position=waiting.position, predicted_start_ms=round(waiting.start_ms))

    def behind(self, job: Job) -> Behind:
        """What waits when this one has left the queue."""
        record = job.record
        queue = self.queue.classes[record.priority]
        flow = queue.flows.get(record.tenant)
        return Behind(self.queue.size, queue.size, flow.queued if flow is not None else 0)

    def waiting(self, ahead: Ahead, priority: Priority, tenant: str, at_ms: int) -> Waiting:
        return self.look(at_ms).waiting(ahead, priority, tenant)

    def chance(self, job: Job, at_ms: int, *, wait_ms: float = 0.0) -> float:
        """Chance that the task ends before its deadline when it starts after `wait_ms`."""
        budget_ms = job.due_ms - at_ms
        if wait_ms <= 0 and budget_ms >= EDGES[-1] * job.cost_ms:
            return 1.0
        return self.forecast.chance(wait_ms, job.cost_ms, budget_ms)

    def chance_by_preemption(self, job: Job, at_ms: int) -> float:
        """The same when a running task is stopped for it."""
        spread = self.forecast.service.spread.parts()
        return chance_by_preemption(service_ms=job.cost_ms, budget_ms=job.due_ms - at_ms, services=spread)

    def retry_after_ms(self) -> int:
        """When a place of a full queue is expected to be free."""
        return max(RETRY_MIN_MS, round(self.forecast.pace().gap_ms))

    # who runs

    def left(self, job: Job) -> None:
        """A claimed task has left its slot: it is nobody's victim any more."""
        record = job.record
        self.running[record.priority].pop(record.task_id, None)
        if job.preempted_for and self.victims.get(job.preempted_for) is job:
            del self.victims[job.preempted_for]
        job.preempt_ms, job.preempted_for = 0, ""

    # overload

    def note_overload(self, at_ms: int, slots: Slots) -> None:
        if slots.free or not slots.total or not self.queue.size:
            self.overloaded_ms = 0
        elif not self.overloaded_ms:
            self.overloaded_ms = at_ms

    def lasting_overload(self, at_ms: int) -> bool:
        spec = self.spec
        if spec is None or not self.overloaded_ms:
            return False
        return at_ms - self.overloaded_ms >= spec.deadlines.overload_after_ms


def _prompt_tokens(request: TaskRequest) -> float:
    chars = len(request.prompt) if request.prompt else 0
    if request.inputs:
        chars += sum(map(len, request.inputs))
    if request.messages:
        chars += sum(len(message.content) for message in request.messages)
    if request.payload_ref:
        chars += request.payload_ref.bytes
    return chars / PROMPT_CHARS_PER_TOKEN
