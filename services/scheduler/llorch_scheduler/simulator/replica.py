"""One replica: it starts, reports, claims what was placed on it, runs it, is told to stop it, fails and comes back.

Its life follows what poold does: provisioning, starting, ready; a new incarnation with every life; the registry key
renewed every second, gone three seconds after its last renewal. A renewal that says nothing new is not told to anybody:
a report comes with every change of state, and else when the replica's pace has changed or its tasks were not told for
long. A placement waits until the replica is ready and is dropped when the run record has moved on. A task that is
stopped for more urgent work goes back to placed on no replica once its slot is free, and runs again from its start.
"""

from typing import Final, Protocol

from msgspec.structs import replace

from llorch_scheduler.core.job import off_replica
from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.engine import Engine
from llorch_scheduler.simulator.heartbeat import BEAT_MS, Heartbeat
from llorch_scheduler.simulator.scenario import PoolPlan, ReplicaPlan
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.streams import REGISTRY_TTL_S
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState

PACE_STEP: Final = 0.1
"""A pace that moved by this part is news."""
DECAY: Final = 0.9
"""What a past task weighs in a replica's pace when another one ends, as poold measures it."""
CAN_STOP: Final = "interruptible_decode"
_RUNNING: Final = TaskState.RUNNING
_DONE: Final = TaskState.DONE


class Outside(Protocol):
    """What a replica says, and to whom it writes."""

    def reported(self, record: ReplicaRecord) -> None: ...

    def lost(self, replica_id: str, pool_id: str) -> None: ...

    def write_run(self, record: RunRecord, expect_seq: int) -> int: ...

    def started(self, task: SimTask, record: RunRecord, version: str) -> None: ...

    def left(self, task: SimTask) -> None: ...

    def preempted(self, task: SimTask) -> None: ...

    def slots_changed(self, pool_id: str, ready: int) -> None: ...

    def task(self, task_id: str) -> SimTask: ...

    def wall_ms(self) -> int: ...


class Replica:
    """One replica through all its lives."""

    def __init__(self, replica_id: str, pool: PoolPlan, plan: ReplicaPlan, clock: Clock, outside: Outside) -> None:
        self.replica_id: Final = replica_id
        self.pool_id: Final = pool.spec.id
        self.plan: Final = plan
        self._clock: Final = clock
        self._outside: Final = outside
        self._engine: Engine | None = None
        self._claimed: Final[dict[str, tuple[RunRecord, int]]] = {}
        self._placements: Final[list[tuple[RunRecord, int]]] = []
        self._life = 0
        self._incarnation = ""
        self._heartbeat: Final = Heartbeat(clock, has_news=self._has_news, report=self._report)
        self._pace = self._told_pace = 0.0
        """Tokens per second of one task, now and in the last report."""
        self._first_token_ms = 0.0
        self._tokens = self._decode_ms = 0.0
        self._registered = False
        self._record = ReplicaRecord(
            replica_id=replica_id,
            pool_id=pool.spec.id,
            node_id=plan.node,
            incarnation="",
            state=ReplicaState.PROVISIONING,
            engine=pool.spec.engine,
            engine_version=plan.engine_version,
            model_ref=pool.spec.model,
            device=plan.hardware.name,
            slots_total=plan.slots,
            ctx_max=pool.spec.ctx,
            free_vram_mb=pool.free_vram_mb(plan),
            features=plan.features,
            live=True,
        )
        self._state = ReplicaState.PROVISIONING
        self.alive = False

    # life

    def begin(self, *, provisioned: bool, loaded: bool, beat_ms: float = BEAT_MS) -> None:
        """A life begins: at once ready, or through provisioning and loading. Its first beat comes after `beat_ms`."""
        self._life += 1
        self._incarnation = f"{self.replica_id}-{self._life}"
        self.alive = True
        if loaded:
            self._ready(self._life)
        elif provisioned or self.plan.provision_ms <= 0:
            self._load(self._life)
        else:
            self._enter(ReplicaState.PROVISIONING)
            self._clock.after(self.plan.provision_ms, self._load, self._life)
        self._heartbeat.begin(beat_ms)

    def fail(self) -> None:
        """The node is gone with everything on it; its registry key stays until it expires."""
        renewed_ms = self._heartbeat.end()
        self.alive = False
        for task_id in self._claimed:
            self._outside.left(self._outside.task(task_id))
        if self._state is ReplicaState.READY:
            self._outside.slots_changed(self.pool_id, -self.plan.slots)
        if self._engine is not None:
            self._engine.stop()
        self._engine = None
        self._claimed.clear()
        self._clock.at(renewed_ms + 1000 * REGISTRY_TTL_S, self._expire, self._life)

    def _load(self, life: int) -> None:
        if self._lives(life):
            self._enter(ReplicaState.STARTING)
            self._clock.after(self.plan.load_ms, self._ready, life)

    def _ready(self, life: int) -> None:
        if not self._lives(life):
            return
        self._engine = Engine(self.plan.hardware, self.plan.slots, self._clock, self._finish)
        self._outside.slots_changed(self.pool_id, self.plan.slots)
        self._enter(ReplicaState.READY)
        while self._placements:
            self._claim()

    def _lives(self, life: int) -> bool:
        return self.alive and life == self._life

    def _enter(self, state: ReplicaState) -> None:
        self._state = state
        self._report()

    # registry

    def _report(self) -> None:
        self._heartbeat.reported()
        self._registered = True
        self._told_pace = self._pace
        self._record = replace(
            self._record,
            state=self._state,
            incarnation=self._incarnation,
            active=tuple(self._claimed),
            perf_tokens_per_s=self._pace,
            perf_first_token_ms=self._first_token_ms,
        )
        self._outside.reported(self._record)

    def _has_news(self) -> bool:
        return abs(self._pace - self._told_pace) > PACE_STEP * self._told_pace

    def _expire(self, life: int) -> None:
        if not self._lives(life) and self._life == life and self._registered:
            self._registered = False
            self._outside.lost(self.replica_id, self.pool_id)

    # tasks

    def place(self, record: RunRecord, run_seq: int, claim_ms: float) -> None:
        """A placement is stored for this replica, whether it lives or not."""
        self._placements.append((record, run_seq))
        self._clock.after(claim_ms, self._claim)

    def _claim(self, _: None = None) -> None:
        """Take the oldest placement, if nobody wrote its run record since."""
        if self._engine is None or not self._placements:
            return
        record, run_seq = self._placements.pop(0)
        outside, plan = self._outside, self.plan
        running = replace(
            record,
            state=_RUNNING,
            node_id=plan.node,
            incarnation=self._incarnation,
            started_ms=outside.wall_ms(),
        )
        seq = outside.write_run(running, run_seq)
        if seq:
            task_id = record.task_id
            task = outside.task(task_id)
            self._claimed[task_id] = (running, seq)
            self._engine.start(task)
            outside.started(task, running, plan.engine_version)

    def preempt(self, task_id: str) -> None:
        """Stop it for more urgent work, if it is here and the engine can."""
        if CAN_STOP not in self.plan.features or task_id not in self._claimed:
            return
        task = self._outside.task(task_id)
        record, seq = self._stop(task_id)
        waiting = replace(off_replica(record), attempt=record.attempt + 1, preemptions=record.preemptions + 1)
        self._outside.write_run(replace(waiting, state=TaskState.PLACED), seq)
        self._outside.preempted(task)

    def cancel(self, task_id: str) -> None:
        if task_id in self._claimed:
            record, seq = self._stop(task_id)
            ended_ms = self._outside.wall_ms()
            ended = replace(
                record, state=TaskState.CANCELLED, ended_ms=ended_ms, request=None, finish_reason="cancelled"
            )
            self._outside.write_run(ended, seq)

    def _stop(self, task_id: str) -> tuple[RunRecord, int]:
        """The slot is free before any record says so."""
        assert self._engine is not None, "a replica without an engine has claimed nothing"
        task = self._outside.task(task_id)
        self._engine.interrupt(task)
        self._outside.left(task)
        return self._claimed.pop(task_id)

    def _finish(self, task: SimTask) -> None:
        """The slot is free, then the record is final. A node that was fenced meanwhile says nothing."""
        record, seq = self._claimed.pop(task.task_id)
        outside = self._outside
        outside.left(task)
        self._measure(task)
        ended = replace(
            record,
            state=_DONE,
            ended_ms=outside.wall_ms(),
            request=None,
            finish_reason="stop",
            tokens_in=task.prompt,
            tokens_out=task.output,
        )
        outside.write_run(ended, seq)

    def _measure(self, task: SimTask) -> None:
        """How fast this replica was for a task, for its next report. A recorded task tells nothing about hardware."""
        first_token_ms = task.first_token_ms
        decode_ms = self._clock.now_ms - first_token_ms
        if task.served_ms > 0 or decode_ms <= 0:
            return
        first_ms, known_ms = first_token_ms - task.took_slot_ms, self._first_token_ms
        self._tokens = tokens = DECAY * self._tokens + task.output
        self._decode_ms = decode_ms = DECAY * self._decode_ms + decode_ms
        self._pace = round(1000 * tokens / decode_ms, 2)
        self._first_token_ms = round(DECAY * known_ms + (1 - DECAY) * first_ms if known_ms else first_ms, 2)
        if self._has_news():
            self._heartbeat.news()
