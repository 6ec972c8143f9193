"""Decisions of the scheduler's core: no bus, one core, a queue that stays as long as it is.

One task is four events: it arrives, its placement is stored, a node claims it, it ends; and one placement is decided
along the way. Each event's `handle` is timed alone; figures are medians over batches, because machines are noisy.
"""

import gc
import itertools
import statistics
import time
import tracemalloc
import uuid
from collections import deque
from typing import Final

import msgspec

from llorch_scheduler.core.effects import Effect, Place
from llorch_scheduler.core.events import (
    AdmissionRef,
    BacklogRead,
    Event,
    PoolChanged,
    Rebuilt,
    ReplicaReported,
    RunChanged,
    TaskArrived,
    Tick,
    WriteDone,
)
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskRequest, TaskState, Workload

QUEUED: Final = (100, 10_000, 100_000)
TENANTS: Final = (10, 5_000)
REPLICAS: Final = (2, 1_000)
BATCHES: Final = 20
BATCH_TASKS: Final = 200
BEGIN_MS: Final = 1_700_000_000_000
STREAM: Final = "ADM_bench_interactive"
SAMPLE_TASKS: Final = 10_000
"""Tasks whose memory is weighed."""


class CoreRow(msgspec.Struct, frozen=True, kw_only=True):
    queued: int
    tenants: int
    replicas: int
    decisions_per_s: int
    """Placements: the event that frees a slot, to the decision who takes it."""
    tasks_per_s: int
    """Everything the core does for a task, from its arrival to its end."""
    p99_us: float
    """Of one event."""


class Bench:
    """A pool whose slots are all taken, and a queue."""

    def __init__(self, *, tenants: int, replicas: int) -> None:
        self.core = SchedulerCore()
        self.at_ms = BEGIN_MS
        self.tenants = tenants
        self.spent_ns: list[int] = []
        self._arrivals = itertools.count(1)
        self._seqs = itertools.count(1)
        self._running: deque[RunRecord] = deque()
        self.handle(PoolChanged(at_ms=self.at_ms, spec=pool()))
        for number in range(replicas):
            self.handle(ReplicaReported(at_ms=self.at_ms, record=replica(number)))
        self.handle(Rebuilt(at_ms=self.at_ms, run_seq=0))

    def handle(self, event: Event) -> list[Effect]:
        before = time.perf_counter_ns()
        effects = self.core.handle(event)
        self.spent_ns.append(time.perf_counter_ns() - before)
        return effects

    def arrive(self, request: TaskRequest | None = None) -> None:
        number = next(self._arrivals)
        request = request or task()
        event = TaskArrived(
            at_ms=self.at_ms,
            ref=AdmissionRef(STREAM, number),
            task_id=request.task_id,
            pool_id="bench",
            priority=request.priority,
            tenant=f"t{number % self.tenants}",
            lane="gw-1",
            correlation_id=request.task_id,
            channel="http",
            admitted_ms=self.at_ms,
            request=request,
        )
        self._follow(self.handle(event))

    def fill(self, count: int) -> None:
        """As after a takeover: the backlog is read, then decided on."""
        for _ in range(count):
            self.arrive()
        for priority in Priority:
            read = BacklogRead(at_ms=self.at_ms, pool_id="bench", priority=priority)
            self._follow(self.handle(read))

    def turn(self) -> int:
        """A task ends, the next is placed, another arrives. Returns what the deciding event took, in nanoseconds."""
        self.at_ms += 1
        record = self._running.popleft()
        done = msgspec.structs.replace(record, state=TaskState.DONE, ended_ms=self.at_ms, tokens_out=16, request=None)
        effects = self.handle(RunChanged(at_ms=self.at_ms, record=done, seq=next(self._seqs)))
        deciding_ns = self.spent_ns[-1]
        assert any(isinstance(effect, Place) for effect in effects), "a slot is free and nothing was placed"
        self._follow(effects)
        self.arrive()
        return deciding_ns

    def _follow(self, effects: list[Effect]) -> None:
        """Placements are stored and claimed at once."""
        for effect in effects:
            if isinstance(effect, Place):
                stored = next(self._seqs)
                self._follow(
                    self.handle(
                        WriteDone(at_ms=self.at_ms, ticket=effect.ticket, task_id=effect.record.task_id, run_seq=stored)
                    )
                )
                claimed = msgspec.structs.replace(
                    effect.record, state=TaskState.RUNNING, node_id="n", incarnation="i", started_ms=self.at_ms
                )
                self._running.append(claimed)
                self._follow(self.handle(RunChanged(at_ms=self.at_ms, record=claimed, seq=next(self._seqs))))


def pool() -> PoolSpec:
    return PoolSpec(id="bench", engine=Engine.MOCK, model="mock:words", queue=QueueSpec(capacity=1_000_000))


def replica(number: int) -> ReplicaRecord:
    return ReplicaRecord(
        replica_id=f"bench-n-{number}",
        pool_id="bench",
        node_id="n",
        incarnation="i",
        state=ReplicaState.READY,
        engine=Engine.MOCK,
        model_ref="mock:words",
        slots_total=4,
        ctx_max=8192,
        live=True,
        free_vram_mb=1000 + number % 7,
    )


def task() -> TaskRequest:
    return TaskRequest(
        task_id=str(uuid.uuid4()),
        session_id=str(uuid.uuid4()),
        workload=Workload.COMPLETION,
        model_ref="mock:words",
        engine=Engine.MOCK,
        ctx=512,
        priority=Priority.INTERACTIVE,
        max_tokens=16,
        deadline_ms=3_600_000,
        prompt="one two three",
    )


def measure(*, queued: int, tenants: int, replicas: int) -> CoreRow:
    bench = Bench(tenants=tenants, replicas=replicas)
    bench.fill(queued + 4 * replicas)
    gc.collect()
    gc.freeze()
    deciding_ns: list[float] = []
    whole_ns: list[float] = []
    bench.spent_ns.clear()
    for _ in range(BATCHES):
        first = len(bench.spent_ns)
        deciding_ns.append(sum(bench.turn() for _ in range(BATCH_TASKS)) / BATCH_TASKS)
        whole_ns.append(sum(bench.spent_ns[first:]) / BATCH_TASKS)
        bench.handle(Tick(at_ms=bench.at_ms))
    gc.unfreeze()
    return CoreRow(
        queued=queued,
        tenants=tenants,
        replicas=replicas,
        decisions_per_s=round(1e9 / statistics.median(deciding_ns)),
        tasks_per_s=round(1e9 / statistics.median(whole_ns)),
        p99_us=round(statistics.quantiles(bench.spent_ns, n=100)[98] / 1000, 1),
    )


def bytes_per_task(tenants: int = 5_000) -> int:
    """What a waiting task takes in the core, its own request not counted."""
    bench = Bench(tenants=tenants, replicas=0)
    requests = [task() for _ in range(SAMPLE_TASKS)]
    for _ in range(SAMPLE_TASKS):
        bench.arrive()
    bench.spent_ns = []
    gc.collect()
    tracemalloc.start()
    for request in requests:
        bench.arrive(request)
    bench.spent_ns = []
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(held / SAMPLE_TASKS)


def rows() -> list[CoreRow]:
    return [
        measure(queued=queued, tenants=tenants, replicas=replicas)
        for replicas in REPLICAS
        for tenants in TENANTS
        for queued in QUEUED
    ]
