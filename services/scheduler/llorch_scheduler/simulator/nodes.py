"""Nodes and their replicas: they start, report, claim what was placed on them, run it, fail and come back.

A replica's life follows what poold does: provisioning, starting, ready; a new incarnation with every life; the registry
key renewed every second and at every change of state, gone three seconds after its last renewal. A placement waits
until its replica is ready and is dropped when the run record has moved on.
"""

from itertools import count
from typing import Final, Protocol

import msgspec

from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.engine import Engine
from llorch_scheduler.simulator.scenario import Failure, PoolPlan, ReplicaPlan, Scenario
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.streams import REGISTRY_TTL_S
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState

BEAT_MS: Final = 1_000.0


class Outside(Protocol):
    """What a node says, and to whom it writes."""

    def reported(self, record: ReplicaRecord) -> None: ...

    def lost(self, replica_id: str, pool_id: str) -> None: ...

    def write_run(self, record: RunRecord, expect_seq: int) -> int: ...

    def started(self, task: SimTask) -> None: ...

    def slots_changed(self, pool_id: str, *, busy: int = 0, ready: int = 0) -> None: ...

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
        self._renewed_ms = 0.0
        self._registered = False
        self._record: Final = ReplicaRecord(
            replica_id=replica_id,
            pool_id=pool.spec.id,
            node_id=plan.node,
            incarnation="",
            state=ReplicaState.PROVISIONING,
            engine=pool.spec.engine,
            model_ref=pool.spec.model,
            device=plan.hardware.name,
            slots_total=plan.slots,
            ctx_max=pool.spec.ctx,
            free_vram_mb=pool.free_vram_mb(plan),
            live=True,
        )
        self._state = ReplicaState.PROVISIONING
        self.alive = False

    # life

    def begin(self, *, provisioned: bool, loaded: bool, beat_ms: float = BEAT_MS) -> None:
        """A life begins: at once ready, or through provisioning and loading. Its first beat comes after `beat_ms`."""
        self._life += 1
        self.alive = True
        if loaded:
            self._ready(self._life)
        elif provisioned or self.plan.provision_ms <= 0:
            self._load(self._life)
        else:
            self._enter(ReplicaState.PROVISIONING)
            self._clock.after(self.plan.provision_ms, self._load, self._life)
        self._clock.after(beat_ms, self._beat, self._life)

    def fail(self) -> None:
        """The node is gone with everything on it; its registry key stays until it expires."""
        self.alive = False
        if self._state is ReplicaState.READY:
            self._outside.slots_changed(self.pool_id, busy=-len(self._claimed), ready=-self.plan.slots)
        if self._engine is not None:
            self._engine.stop()
        self._engine = None
        self._claimed.clear()
        self._clock.at(self._renewed_ms + 1000 * REGISTRY_TTL_S, self._expire, self._life)

    def _load(self, life: int) -> None:
        if self._lives(life):
            self._enter(ReplicaState.STARTING)
            self._clock.after(self.plan.load_ms, self._ready, life)

    def _ready(self, life: int) -> None:
        if not self._lives(life):
            return
        self._engine = Engine(self.plan.hardware, self.plan.slots, self._clock, self._finish)
        self._outside.slots_changed(self.pool_id, ready=self.plan.slots)
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
        self._renewed_ms = self._clock.now_ms
        self._registered = True
        self._outside.reported(
            msgspec.structs.replace(
                self._record, state=self._state, incarnation=self.incarnation, active=tuple(self._claimed)
            )
        )

    @property
    def incarnation(self) -> str:
        return f"{self.replica_id}-{self._life}"

    def _beat(self, life: int) -> None:
        if self._lives(life):
            self._report()
            self._clock.after(BEAT_MS, self._beat, life)

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
        running = msgspec.structs.replace(
            record,
            state=TaskState.RUNNING,
            node_id=self.plan.node,
            incarnation=self.incarnation,
            started_ms=self._outside.wall_ms(),
        )
        seq = self._outside.write_run(running, run_seq)
        if seq:
            task = self._outside.task(record.task_id)
            self._claimed[record.task_id] = (running, seq)
            self._outside.slots_changed(self.pool_id, busy=1)
            self._engine.start(task)
            self._outside.started(task)

    def _finish(self, task: SimTask) -> None:
        """The slot is free, then the record is final. A node that was fenced meanwhile says nothing."""
        record, seq = self._claimed.pop(task.task_id)
        self._outside.slots_changed(self.pool_id, busy=-1)
        done = msgspec.structs.replace(
            record,
            state=TaskState.DONE,
            ended_ms=self._outside.wall_ms(),
            tokens_in=task.prompt,
            tokens_out=task.output,
            finish_reason="stop",
            request=None,
        )
        self._outside.write_run(done, seq)


class Nodes:
    """All replicas of a scenario, and the failures that befall their nodes."""

    def __init__(self, scenario: Scenario, clock: Clock, outside: Outside) -> None:
        self.replicas: Final[dict[str, Replica]] = {}
        self._clock: Final = clock
        numbers: dict[tuple[str, str], count[int]] = {}
        for pool in scenario.pools:
            for plan in pool.replicas:
                number = next(numbers.setdefault((pool.spec.id, plan.node), count()))
                replica_id = f"{pool.spec.id}-{plan.node}-{number}"
                self.replicas[replica_id] = Replica(replica_id, pool, plan, clock, outside)
        self._failures: Final = scenario.failures

    def begin(self) -> None:
        """Begin the first lives, with beats spread so that not all report at once; plan the failures."""
        spread = BEAT_MS / max(1, len(self.replicas))
        for index, replica in enumerate(self.replicas.values()):
            warm = replica.plan.warm
            replica.begin(provisioned=warm, loaded=warm, beat_ms=(index + 1) * spread)
        for failure in self._failures:
            self._clock.at(1000 * failure.at_s, self._fail, failure)

    def _fail(self, failure: Failure) -> None:
        for replica in self._of(failure.node):
            if replica.alive:
                replica.fail()
        if failure.back_after_s is not None:
            self._clock.after(1000 * failure.back_after_s, self._return, failure.node)

    def _return(self, node: str) -> None:
        for replica in self._of(node):
            if not replica.alive:
                replica.begin(provisioned=True, loaded=False)

    def _of(self, node: str) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.plan.node == node]
