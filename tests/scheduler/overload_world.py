"""A pool in overload, small enough for a test: real queue, forecast and appointments; slots, clients and a gateway that
knows the pool by load reports only. Seeded; time is simulated."""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from statistics import median
from typing import Any, Final

from msgspec import structs

from llorch_scheduler.core.appointments import Appointments
from llorch_scheduler.core.forecast import Behind, Forecast
from llorch_scheduler.core.job import Job, Phase
from llorch_scheduler.core.queue import PoolQueue
from llorch_shared.pool_policy import class_capacity, class_weight
from llorch_shared.waiting import RETRY_MIN_MS, chance, expect, retry_after_ms
from llorch_shared.wire.registry import Appointment, PoolLoad
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskRequest, TaskState, Workload

POOL: Final = "p1"
TOLD_EVERY_MS: Final = 100
REFUSALS_MAX: Final = 2


@dataclass(frozen=True)
class Crowd:
    """Open arrivals of one tenant in one class; `users` instead of `per_s` closes the loop."""

    tenant: str = "crowd"
    priority: Priority = Priority.INTERACTIVE
    per_s: float = 0.0
    users: int = 0
    think_s: float = 5.0
    mean_tokens: float = 200.0
    sigma: float = 0.8
    max_tokens: int = 1_000
    budget_ms: int = 10**9
    patience_s: float = 10**9
    late_ms: int = 500
    """Clients come back up to so much after they were told to."""


@dataclass
class Client:
    number: int
    crowd: Crowd
    request: TaskRequest
    tokens: int
    told_back: bool = False
    first_ms: int = 0


@dataclass
class Started:
    at_ms: int
    crowd: Crowd
    told_ms: float
    waited_ms: int


@dataclass
class OverloadWorld:
    spec: PoolSpec
    crowds: list[Crowd]
    seed: int = 1
    slots: int = 16
    overhead_ms: float = 300.0
    token_ms: float = 20.0
    ready_ms: int = 0
    """When the slots are there; until then the pool loads."""
    started: list[Started] = field(default_factory=list)
    returns: list[tuple[int, bool]] = field(default_factory=list)
    """(time, admitted) of clients that came back when they were told to."""
    chances: list[tuple[int, float, bool]] = field(default_factory=list)
    """(time of the end, what it was told, whether it was in time)."""
    idle_ms: float = 0.0
    """Slot time without work since the queue was first full."""

    def __post_init__(self) -> None:
        self.now = 0
        self.dice = Random(self.seed)
        self.queue = PoolQueue()
        self.queue.configure(self.spec, 0)
        self.forecast = Forecast()
        self.appointments = {priority: Appointments() for priority in Priority}
        self.seq = dict.fromkeys(Priority, 0)
        self.waiting = dict.fromkeys(Priority, 0)
        self.busy = 0
        self.load: PoolLoad | None = None
        self.clients: dict[str, Client] = {}
        self.told: dict[str, tuple[float, float | None]] = {}
        self._events: list[tuple[int, int, Any, tuple[Any, ...]]] = []
        self._count = 0
        self._full_once = False

    # time

    def at(self, at_ms: float, action: Any, *arguments: Any) -> None:
        self._count += 1
        heappush(self._events, (round(at_ms), self._count, action, arguments))

    def run(self, until_ms: int) -> None:
        for crowd in self.crowds:
            if crowd.per_s:
                self.at(self.now + self._gap(crowd), self._arrive, crowd)
            for _ in range(crowd.users):
                self.at(self.now + self.dice.random() * 1000 * crowd.think_s, self._new, crowd)
        self.at(self.now, self._tell)
        self.at(self.ready_ms, self._fill)
        while self._events and self._events[0][0] <= until_ms:
            at_ms, _, action, arguments = heappop(self._events)
            if self._full_once:
                self.idle_ms += (at_ms - self.now) * (self.slots - self.busy)
            self.now = at_ms
            action(*arguments)

    def _gap(self, crowd: Crowd) -> float:
        return self.dice.expovariate(crowd.per_s) * 1000

    # clients

    def _arrive(self, crowd: Crowd) -> None:
        self._new(crowd)
        self.at(self.now + self._gap(crowd), self._arrive, crowd)

    def _new(self, crowd: Crowd) -> None:
        number = len(self.clients)
        mu_mean = crowd.mean_tokens / 2.718281828 ** (crowd.sigma**2 / 2)
        tokens = min(crowd.max_tokens, max(1, round(self.dice.lognormvariate(0, crowd.sigma) * mu_mean)))
        request = TaskRequest(
            task_id=f"00000000-0000-4000-8000-{number:012d}",
            session_id=f"00000000-0000-4000-8000-{number:012d}",
            workload=Workload.COMPLETION,
            model_ref="m",
            engine=Engine.MOCK,
            ctx=100,
            priority=crowd.priority,
            max_tokens=crowd.max_tokens,
            deadline_ms=crowd.budget_ms,
            prompt="",
        )
        client = self.clients[request.task_id] = Client(number, crowd, request, tokens, first_ms=self.now)
        self._submit(client)

    def _submit(self, client: Client) -> None:
        """What a gateway does."""
        line = self.load.classes.get(client.crowd.priority) if self.load else None
        came_back, client.told_back = client.told_back, False
        if line is not None and line.promised:
            answer = self._ask(client)
            if not answer.admit:
                self._send_away(client, answer, came_back=came_back)
                return
        for refusals in range(1, REFUSALS_MAX + 1):
            if self.waiting[client.crowd.priority] < class_capacity(self.spec, client.crowd.priority):
                if came_back:
                    self.returns.append((self.now, True))
                self._admit(client)
                return
            self._full_once = True
            answer = self._ask(client)
            if not answer.admit or refusals == REFUSALS_MAX:
                self._send_away(client, answer, came_back=came_back)
                return

    def _send_away(self, client: Client, answer: Appointment, *, came_back: bool) -> None:
        if came_back:
            self.returns.append((self.now, False))
        wait_ms = max(RETRY_MIN_MS, answer.retry_after_ms or retry_after_ms(self.load))
        wait_ms = -(-wait_ms // 1000) * 1000
        crowd = client.crowd
        if self.now + wait_ms - client.first_ms > crowd.patience_s * 1000:
            if crowd.users:
                self.at(self.now + crowd.think_s * 1000, self._new, crowd)
            return
        client.told_back = True
        self.at(self.now + wait_ms + self.dice.random() * crowd.late_ms, self._submit, client)

    def _ask(self, client: Client) -> Appointment:
        self._measure_slots()
        priority = client.crowd.priority
        capacity = class_capacity(self.spec, priority)
        weights = sum(class_weight(self.spec, each) for each in {crowd.priority for crowd in self.crowds})
        return self.appointments[priority].ask(
            client.request.task_id,
            self.now,
            capacity=capacity,
            free=capacity - self.waiting[priority],
            drain=self.forecast.drain(priority, share=class_weight(self.spec, priority) / weights),
            spec=self.spec.waiting,
        )

    # the scheduler

    def _admit(self, client: Client) -> None:
        crowd, request = client.crowd, client.request
        self.seq[crowd.priority] += 1
        seq = self.seq[crowd.priority]
        told = expect(self.load, crowd.priority, crowd.tenant, seq)
        self.told[request.task_id] = told.start_ms, chance(self.load, request, crowd.tenant, start_ms=told.start_ms)
        self.appointments[crowd.priority].arrived(request.task_id)
        self._measure_slots()
        ahead = self.queue.ahead_of_newcomer(crowd.priority, crowd.tenant, self.now + request.deadline_ms)
        record = RunRecord(
            task_id=request.task_id,
            state=TaskState.QUEUED,
            pool_id=POOL,
            lane="l",
            correlation_id="c",
            tenant=crowd.tenant,
            priority=crowd.priority,
            admitted_ms=self.now,
            request=request,
        )
        job = Job(
            record=record,
            state=TaskState.QUEUED,
            phase=Phase.QUEUED,
            order=(1, seq),
            due_ms=self.now + request.deadline_ms,
            since_ms=self.now,
        )
        job.cost_ms = self.forecast.service.expected_ms(request, crowd.tenant)
        waiting = self.forecast.joined(job, ahead)
        job.record = structs.replace(
            record, queue_position=waiting.position, predicted_start_ms=round(waiting.start_ms)
        )
        self.queue.push(job, self.now)
        self.waiting[crowd.priority] += 1
        self._fill()

    def _measure_slots(self) -> None:
        ready = self.now >= self.ready_ms
        self.forecast.has_slots(self.slots if ready else 0)
        self.forecast.slots_free = self.slots - self.busy if ready else 0
        self.forecast.loading_ms = 0 if ready else self.ready_ms - self.now
        self.forecast.loading_slots = 0 if ready else self.slots

    def _fill(self) -> None:
        self._measure_slots()
        while self.now >= self.ready_ms and self.busy < self.slots:
            pick = self.queue.pick(lambda _shape: True, self.now)
            if pick is None:
                return
            self.queue.took(pick, self.now)
            self._start(pick.job)

    def _start(self, job: Job) -> None:
        self._measure_slots()
        line = self.queue.classes[job.record.priority]
        flow = line.flows.get(job.record.tenant)
        self.forecast.started(job, self.now, Behind(len(self.queue), len(line), flow.queued if flow else 0))
        self.waiting[job.record.priority] -= 1
        self.busy += 1
        client = self.clients[job.task_id]
        waited_ms = self.now - job.record.admitted_ms
        self.started.append(Started(self.now, client.crowd, self.told[job.task_id][0], waited_ms))
        slot_ms = self.overhead_ms * self.dice.uniform(0.5, 1.5) + self.token_ms * client.tokens
        self.at(self.now + slot_ms, self._end, job, client, round(slot_ms))

    def _end(self, job: Job, client: Client, slot_ms: int) -> None:
        self.busy -= 1
        self.forecast.service.add(
            tenant=job.record.tenant,
            priority=job.record.priority,
            max_tokens=client.crowd.max_tokens,
            tokens_out=client.tokens,
            slot_ms=slot_ms,
            expected_ms=job.cost_ms,
        )
        self.queue.ended(job, slot_ms, client.tokens, self.now)
        told = self.told.pop(job.task_id)[1]
        if told is not None:
            self.chances.append((self.now, told, self.now <= job.due_ms))
        if client.crowd.users:
            self.at(self.now + 2000 * client.crowd.think_s * self.dice.random(), self._new, client.crowd)
        self._fill()

    def _tell(self) -> None:
        self._measure_slots()
        for each in self.appointments.values():
            each.step(self.now, self.spec.waiting)
        classes = {
            name: structs.replace(line, promised=self.appointments[Priority(name)].outstanding > 0)
            for name, line in self.queue.class_loads().items()
        }
        self.load = self.forecast.told(
            PoolLoad(
                pool_id=POOL,
                at_ms=self.now,
                snapshot_version=1,
                queued={str(priority): waiting for priority, waiting in self.waiting.items()},
                queue_seq={str(priority): seq for priority, seq in self.seq.items()},
                running=self.busy,
                slots_total=self.forecast.slots_total,
                slots_free=self.forecast.slots_free,
                replicas_ready=1,
                service_ms=0,
                classes=classes,
            )
        )
        self.at(self.now + TOLD_EVERY_MS, self._tell)

    # what came out

    def errors(self, since_ms: int = 0, crowd: Crowd | None = None, floor_ms: int = 1_000) -> list[float]:
        """|told - waited| / waited of tasks that waited for longer than `floor_ms`."""
        return [
            abs(each.told_ms - each.waited_ms) / each.waited_ms
            for each in self.started
            if each.at_ms >= since_ms and each.waited_ms > floor_ms and crowd in (None, each.crowd)
        ]

    def median_error(self, since_ms: int = 0, crowd: Crowd | None = None) -> float:
        return median(self.errors(since_ms, crowd))

    def admitted_share(self, since_ms: int = 0) -> float:
        came = [admitted for at_ms, admitted in self.returns if at_ms >= since_ms]
        return sum(came) / len(came)

    def calibration(self, low: float, high: float, since_ms: int = 0) -> tuple[int, float]:
        """How many tasks were told a chance in this range, and the part of them that was in time."""
        kept = [kept for at_ms, told, kept in self.chances if at_ms >= since_ms and low <= told <= high]
        return len(kept), sum(kept) / max(1, len(kept))


def waiting_job(number: int, tenant: str, priority: Priority = Priority.INTERACTIVE) -> Job:
    """A task that was admitted at 0 and waits, and is expected to take a second."""
    task = f"00000000-0000-4000-8000-{number:012d}"
    record = RunRecord(
        task_id=task,
        state=TaskState.QUEUED,
        pool_id=POOL,
        lane="l",
        correlation_id="c",
        tenant=tenant,
        priority=priority,
        admitted_ms=0,
    )
    return Job(
        record=record, state=TaskState.QUEUED, phase=Phase.QUEUED, order=(1, number), due_ms=2**53, cost_ms=1_000.0
    )
