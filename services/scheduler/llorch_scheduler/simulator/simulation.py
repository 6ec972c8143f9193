"""The loop: the core's effects become events of the cluster, and what happens there becomes events of the core.

Effects are performed as the live performer does: store the run record by compare-and-set, then what it entails, then
acknowledge, then tell the core. Each takes `store_ms`, and any number are under way at once. Nothing is lost on this
bus; what a lossy one does to the core is shown by the random walks of its own tests. There the core also hears of its
own writes from the bus, before or after their outcome; here it knows them by the outcome alone.
"""

from collections.abc import Callable
from typing import Final

from llorch_scheduler.core.effects import Ack, End, Place, PlaceAgain, Preempt, Requeue, TellLoad
from llorch_scheduler.core.events import (
    AdmissionRef,
    BacklogRead,
    Event,
    PoolChanged,
    Rebuilt,
    ReplicaLost,
    ReplicaReported,
    RunChanged,
    TaskCancelled,
    Tick,
    WriteDone,
    WriteRefused,
)
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_scheduler.simulator.admission import arrival
from llorch_scheduler.simulator.bus import AdmissionQueue, RunStore
from llorch_scheduler.simulator.clients import Clients
from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.gateway import Gateway
from llorch_scheduler.simulator.measurement import Measurement
from llorch_scheduler.simulator.nodes import Nodes
from llorch_scheduler.simulator.scenario import Change, Scenario
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.pool_policy import CLASSES
from llorch_shared.states import FINAL
from llorch_shared.wire.registry import Appointment, AppointmentRequest, PoolLoad, ReplicaRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest, TaskState

BEGAN_MS: Final = 1_000_000_000_000
"""Unix milliseconds at which every simulation begins: the core reads zero as "never"."""
TICK_MS: Final = 50.0
"""As the live loop ticks."""
STEPS_PER_LOOK: Final = 1_024

Going = Callable[["Simulation"], bool]
"""Asked every 1,024 steps; false ends the simulation with what it has."""


class Simulation:
    """One scenario and seed. `run` once."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        """Raises ScenarioError."""
        scenario.check()
        self.scenario: Final = scenario
        self.seed: Final = seed
        self.clock: Final = Clock()
        self.core: Final = SchedulerCore(actor="simulator")
        self.measured: Final = Measurement([pool.spec.id for pool in scenario.pools], CLASSES)
        self.tasks: Final[dict[str, SimTask]] = {}
        """Admitted and not ended."""
        self.arrived_count = 0
        self.ended_count = 0
        self.partial = False
        self.ended_ms = 0.0
        """When the last task ended."""
        self.specs: Final = {pool.spec.id: pool.spec for pool in scenario.pools}
        self._store_ms: Final = scenario.store_ms
        self._claim_ms: Final = scenario.claim_ms
        self._queues: Final = {
            (pool.spec.id, priority): AdmissionQueue(pool.spec, priority)
            for pool in scenario.pools
            for priority in CLASSES
        }
        self._streams: Final = {queue.stream: (key, queue) for key, queue in self._queues.items()}
        self._runs: Final = RunStore()
        self._loads: Final[dict[str, PoolLoad]] = {}
        self._registered: Final[dict[str, set[str]]] = {pool: set() for pool in self.specs}
        self._nodes: Final = Nodes(scenario, self.clock, self)
        self._gateway: Final = Gateway(self.clock, self._queues, self)
        self._clients: Final = Clients(
            scenario,
            seed,
            clock=self.clock,
            arrived=self.arrived,
            too_long=self.too_long,
            submit=self._gateway.submit,
        )

    def run(self, going: Going = lambda _: True) -> "Simulation":
        """Until every task has ended, or `going` says no."""
        for spec in self.specs.values():
            self._tell(PoolChanged(at_ms=self.wall_ms(), spec=spec))
            for priority in CLASSES:
                self._tell(BacklogRead(at_ms=self.wall_ms(), pool_id=spec.id, priority=priority))
        self._tell(Rebuilt(at_ms=self.wall_ms(), run_seq=0))
        self._nodes.begin()
        self._clients.begin()
        for change in self.scenario.changes:
            self.clock.at(1000 * change.at_s, self._change, change)
        self.clock.after(TICK_MS, self._tick)
        self.clock.after(0, self._sample)
        while self._steps(STEPS_PER_LOOK):
            if not going(self):
                self.partial = True
                self.ended_ms = self.clock.now_ms
                break
        self.measured.sample(self.clock.now_ms)
        self.measured.close()
        return self

    def _steps(self, count: int) -> bool:
        """So many steps at most; false when every task has ended before."""
        step, clients = self.clock.step, self._clients
        for _ in range(count):
            if self.ended_count >= self.arrived_count and clients.exhausted:
                return False
            step()
        return True

    def wall_ms(self) -> int:
        return BEGAN_MS + int(self.clock.now_ms)

    def _change(self, change: Change) -> None:
        """An operator's wish, as the spec bucket tells everybody at once."""
        self.specs[change.spec.id] = change.spec
        for priority in CLASSES:
            self._queues[change.spec.id, priority].configure(change.spec)
        self._tell(PoolChanged(at_ms=self.wall_ms(), spec=change.spec))

    def _tick(self, _: None) -> None:
        self._tell(Tick(at_ms=self.wall_ms()))
        self.clock.after(TICK_MS, self._tick)

    def _sample(self, _: None) -> None:
        self.measured.sample(self.clock.now_ms)
        self.clock.after(self.measured.sample_ms, self._sample)

    # the core

    def _tell(self, event: Event) -> None:
        for effect in self.core.handle(event):
            match effect:
                case Place() | Requeue() | End():
                    self.clock.after(self._store_ms, self._write, effect)
                case PlaceAgain():
                    self._place(effect.record, effect.run_seq)
                case Ack():
                    self._ack(effect.ref)
                case Preempt():
                    self._nodes.preempt(effect.node_id, effect.request.task_id)
                case TellLoad():
                    self._loads[effect.load.pool_id] = effect.load

    def _write(self, effect: Place | Requeue | End) -> None:
        record, ref = effect.record, None if isinstance(effect, Requeue) else effect.ref
        seq = self._runs.store(record, effect.expect_seq, self.clock.now_ms)
        if not seq:
            self._yield_to(effect, ref)
            return
        self._stored(record)
        if isinstance(effect, Place):
            self._place(record, seq)
        elif isinstance(effect, Requeue):
            self.measured.requeues[effect.reason] += 1
        self._ack(ref)
        self._tell(WriteDone(at_ms=self.wall_ms(), ticket=effect.ticket, task_id=record.task_id, run_seq=seq))

    def _yield_to(self, effect: Place | Requeue | End, ref: AdmissionRef | None) -> None:
        """Somebody wrote the run record first."""
        stored = self._runs.get(effect.record.task_id)
        assert stored is not None, "a record that was never stored cannot have a sequence"
        record, seq = stored
        if record.state is TaskState.PLACED and record.replica_id:
            self._place(record, seq)
        self._ack(ref)
        self._tell(
            WriteRefused(at_ms=self.wall_ms(), ticket=effect.ticket, task_id=record.task_id, record=record, run_seq=seq)
        )

    def _place(self, record: RunRecord, run_seq: int) -> None:
        self._nodes.replicas[record.replica_id].place(record, run_seq, self._claim_ms)

    def _ack(self, ref: AdmissionRef | None) -> None:
        if ref is not None:
            key, queue = self._streams[ref.stream]
            if queue.ack(ref):
                self.measured.depth[key].add(-1, self.clock.now_ms)

    # what nodes say

    def write_run(self, record: RunRecord, expect_seq: int) -> int:
        """Compare-and-set, of which the core is told. Returns the sequence of what was stored, 0 when somebody was
        first."""
        seq = self._runs.store(record, expect_seq, self.clock.now_ms)
        if seq:
            self._tell(RunChanged(at_ms=self.wall_ms(), record=record, seq=seq))
            self._stored(record)
        return seq

    def _stored(self, record: RunRecord) -> None:
        """Any run record, whoever wrote it."""
        if record.state in FINAL:
            self._end(self.tasks.pop(record.task_id), record.state)

    def reported(self, record: ReplicaRecord) -> None:
        self._registered[record.pool_id].add(record.replica_id)
        self._tell(ReplicaReported(at_ms=self.wall_ms(), record=record))

    def lost(self, replica_id: str, pool_id: str) -> None:
        self._registered[pool_id].discard(replica_id)
        self._tell(ReplicaLost(at_ms=self.wall_ms(), pool_id=pool_id, replica_id=replica_id))

    def task(self, task_id: str) -> SimTask:
        return self.tasks[task_id]

    def started(self, task: SimTask, record: RunRecord, version: str) -> None:
        now_ms = task.took_slot_ms = self.clock.now_ms
        self.measured.started(task, record, version, now_ms)
        if task.started_ms < 0:
            task.started_ms = now_ms

    def left(self, task: SimTask) -> None:
        self.measured.left(task, self.clock.now_ms)

    def preempted(self, task: SimTask) -> None:
        self.measured.preempted[task.tenant, task.priority] += 1

    def slots_changed(self, pool_id: str, ready: int) -> None:
        self.measured.ready[pool_id].add(ready, self.clock.now_ms)

    # what clients say

    def load(self, pool_id: str) -> PoolLoad | None:
        return self._loads.get(pool_id)

    def served(self, pool_id: str) -> bool:
        """A replica of the pool is in the registry, whatever its state."""
        return bool(self._registered[pool_id])

    def spec(self, pool_id: str) -> PoolSpec:
        return self.specs[pool_id]

    def appoint(self, request: AppointmentRequest) -> Appointment:
        return self.core.appoint(request, self.wall_ms())

    def arrived(self, task: SimTask) -> None:
        self.arrived_count += 1
        self.measured.outcomes[task.tenant, task.priority, "arrived"] += 1

    def too_long(self, task: SimTask) -> None:
        self._end(task, "too_long")

    def refused(self, task: SimTask, reason: str) -> None:
        self.measured.refused(task, reason)

    def gave_up(self, task: SimTask) -> None:
        self._end(task, "gave_up")

    def infeasible(self, task: SimTask) -> None:
        self._end(task, "infeasible")

    def admitted(self, task: SimTask, request: TaskRequest, queue: AdmissionQueue, seq: int) -> None:
        now_ms = self.clock.now_ms
        self.measured.admitted(task, now_ms)
        self.tasks[task.task_id] = task
        if task.cancel_ms >= 0:
            self.clock.after(task.cancel_ms, self._cancel, task.task_id)
        self._tell(arrival(task, request, AdmissionRef(queue.stream, seq), BEGAN_MS + int(now_ms)))

    def _cancel(self, task_id: str) -> None:
        """The client's wish reaches the scheduler and the node that may have the task."""
        if task_id in self.tasks:
            self._tell(TaskCancelled(at_ms=self.wall_ms(), task_id=task_id))
            self._nodes.cancel(task_id)

    def _end(self, task: SimTask, outcome: str) -> None:
        self.ended_count += 1
        now_ms = self.ended_ms = self.clock.now_ms
        self.measured.ended(task, outcome, now_ms)
        self._clients.ended(task)
