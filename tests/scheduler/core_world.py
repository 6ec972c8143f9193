"""A bus, nodes and engines as plain data around a `SchedulerCore`: what the real ones promise, and how they break.

The model performs effects as the performer does, on a stored truth changed by compare-and-set only, and feeds back what
the real parts would tell. `check` holds after every event whatever happened; `check_finished` when all is at rest.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from llorch_scheduler.core.effects import (
    Ack,
    Audit,
    Disown,
    Effect,
    End,
    Place,
    PlaceAgain,
    Preempt,
    Preempted,
    Requeue,
    TellLoad,
)
from llorch_scheduler.core.events import (
    AdmissionRef,
    BacklogRead,
    Event,
    PoolChanged,
    Rebuilt,
    ReplicaLost,
    ReplicaReported,
    RunChanged,
    TaskArrived,
    TaskCancelled,
    Tick,
    WriteDone,
    WriteFailed,
    WriteRefused,
)
from llorch_scheduler.core.job import HOLDS_SLOT, Phase, off_replica
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_scheduler.core.shape import Shape
from llorch_shared.errors import ErrorBody
from llorch_shared.pool_policy import CLASSES, tenant_limits, total_capacity
from llorch_shared.states import FINAL, check_move
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.registry import PoolLoad, ReplicaRecord
from llorch_shared.wire.run import PreemptRequest, RunRecord
from llorch_shared.wire.task import Priority, TaskState
from scheduler.samples import replica_record, request, spec, task_id


@dataclass
class EngineLife:
    """One replica: what its engine holds, by task, with the sequence its node claimed it at."""

    record: ReplicaRecord
    alive: bool = True
    held: dict[str, int] = field(default_factory=dict)
    placements: list[tuple[RunRecord, int]] = field(default_factory=list)


@dataclass
class Late:
    """A placement that was sent and that nobody has claimed for a moment: its record is to be stored."""

    place: Place


class Waiting(NamedTuple):
    flow: tuple[str, Priority, str, Shape]
    rank: tuple[int, int, tuple[int, int]]


class World:
    def __init__(self, *, limits: Limits | None = None, pools: tuple[str, ...] = ("p1",)) -> None:
        self.limits = limits or Limits()
        self.now = 1_000_000
        self.seq = 0
        self.runs: dict[str, tuple[RunRecord, int]] = {}
        self.live: list[tuple[RunRecord, int]] = []
        self.admissions: dict[AdmissionRef, TaskArrived] = {}
        self.admission_seq: dict[str, int] = {}
        self.accepted: set[str] = set()
        self.finals: dict[str, list[TaskState]] = {}
        self.cancels: set[str] = set()
        self.replicas: dict[str, EngineLife] = {}
        self.specs = {pool: spec(pool) for pool in pools}
        self.pending: list[Effect] = []
        self.zombies: list[Effect | Late] = []
        self.unclaimed: dict[str, Place] = {}
        """Sent ahead of any record."""
        self.loads: list[PoolLoad] = []
        self.told: list[Audit | Disown | Preempted] = []
        self.trace: list[str] = []
        self.tickets: set[int] = set()
        self.core = SchedulerCore(limits=self.limits)
        self.take_over()

    # events

    def tell(self, event: Event) -> list[Effect]:
        waiting = self._waiting()
        fresh = self._fresh(event.pool_id) if isinstance(event, TaskArrived) else 0
        effects = self.core.handle(event)
        self._check_order(waiting, effects)
        if isinstance(event, TaskArrived):
            self._check_bound(event, fresh)
        for effect in effects:
            if isinstance(effect, TellLoad):
                self.loads.append(effect.load)
            elif isinstance(effect, Audit | Disown | Preempted):
                self.told.append(effect)
            else:
                self.pending.append(effect)
        self.check()
        return effects

    def take_over(self) -> None:
        """A new term: what the old one had under way may still reach the bus."""
        self.zombies += [*self.pending, *map(Late, self.unclaimed.values())]
        self.pending, self.live, self.unclaimed = [], [], {}
        self.core = SchedulerCore(limits=self.limits)
        for record, seq in sorted(self.runs.values(), key=lambda run: run[1]):
            if seq >= self.floor_written:
                self.tell(RunChanged(at_ms=self.now, record=record, seq=seq))
        for task in sorted(self.cancels):
            self.tell(TaskCancelled(at_ms=self.now, task_id=task))
        for replica in self.replicas.values():
            if replica.alive:
                self.tell(ReplicaReported(at_ms=self.now, record=self._reported(replica)))
        for pool in self.specs.values():
            self.tell(PoolChanged(at_ms=self.now, spec=pool))
        self.tell(Rebuilt(at_ms=self.now, run_seq=self.seq))
        for ref in list(self.admissions):
            self.redeliver(ref)
        for pool_id in self.specs:
            for priority in CLASSES:
                self.tell(BacklogRead(at_ms=self.now, pool_id=pool_id, priority=priority))

    floor_written = 0

    def write_floor(self) -> None:
        self.floor_written = max(self.floor_written, self.core.floor())
        for record, seq in self.runs.values():
            assert record.state in FINAL or seq >= self.floor_written, "an unfinished run lies below the floor"

    def admit(
        self,
        number: int,
        *,
        pool: str = "p1",
        problem: ErrorBody | None = None,
        tenant: str = "default",
        channel: str = "http",
        **fields: Any,
    ) -> list[Effect]:
        wish = request(number, **fields)
        stream = f"ADM_{pool}_{wish.priority}"
        seq = self.admission_seq[stream] = self.admission_seq.get(stream, 0) + 1
        ref = AdmissionRef(stream, seq)
        self.accepted.add(wish.task_id)
        self.admissions[ref] = TaskArrived(
            at_ms=self.now,
            ref=ref,
            task_id=wish.task_id,
            pool_id=pool,
            priority=wish.priority,
            tenant=tenant,
            lane=f"bus-{tenant}" if channel == "nats" else "gw-1",
            correlation_id="c",
            channel=channel,
            admitted_ms=self.now,
            request=wish,
            problem=problem,
        )
        return self.redeliver(ref)

    def redeliver(self, ref: AdmissionRef) -> list[Effect]:
        return self.tell(msgspec.structs.replace(self.admissions[ref], at_ms=self.now))

    def cancel(self, task: str) -> list[Effect]:
        self.cancels.add(task)
        return self.tell(TaskCancelled(at_ms=self.now, task_id=task))

    def tick(self, later_ms: int = 50) -> list[Effect]:
        self.now += later_ms
        return self.tell(Tick(at_ms=self.now))

    def respec(self, pool: str = "p1", **fields: Any) -> list[Effect]:
        """The operator changes the pool."""
        self.specs[pool] = msgspec.structs.replace(self.specs[pool], **fields)
        return self.tell(PoolChanged(at_ms=self.now, spec=self.specs[pool]))

    # the bus

    def cas(self, record: RunRecord, expect_seq: int) -> int:
        """The new sequence, or 0 when somebody wrote first."""
        before, seq = self.runs.get(record.task_id, (None, 0))
        if seq != expect_seq:
            return 0
        claims = before is None and record.state is TaskState.RUNNING
        check_move(before.state if before else TaskState.PLACED if claims else TaskState.QUEUED, record.state)
        self.seq += 1
        self.runs[record.task_id] = (record, self.seq)
        self.live.append((record, self.seq))
        if record.state in FINAL:
            self.finals.setdefault(record.task_id, []).append(record.state)
        return self.seq

    def deliver_live(self) -> None:
        record, seq = self.live.pop(0)
        place = self.unclaimed.get(record.task_id)
        if place is not None and record != place.record:
            del self.unclaimed[record.task_id]
            self.acked(place.ref)
        self.tell(RunChanged(at_ms=self.now, record=record, seq=seq))

    def record_late(self, task: str, *, fault: str = "") -> None:
        """Nobody has claimed it for a moment."""
        self.perform(Late(self.unclaimed.pop(task)), fault=fault)

    def perform(self, effect: Effect | Late, *, fault: str = "", heard: bool = True) -> None:
        """`fault`: `lost` nothing is stored, or its node misses the signal; `unsure` the record is stored and nobody
        knows; `half` what comes after the record fails. `heard` is false for a scheduler that is no more."""
        if isinstance(effect, Place) and effect.ahead:
            if fault != "lost":
                self._placement(effect.record, 0)
            if heard:
                self.unclaimed[effect.record.task_id] = effect
            return
        if isinstance(effect, Late):
            if fault in ("lost", "unsure"):
                if fault == "unsure":
                    self.cas(effect.place.record, effect.place.expect_seq)
                if heard:
                    self.unclaimed[effect.place.record.task_id] = effect.place
                return
            effect = effect.place
        if isinstance(effect, Ack):
            if not fault:
                self.acked(effect.ref)
            return
        if isinstance(effect, PlaceAgain):
            if not fault:
                self._placement(effect.record, effect.run_seq)
            return
        if isinstance(effect, Preempt):
            if not fault:
                self.stop(effect.request)
            return
        assert isinstance(effect, Place | Requeue | End)
        ref = None if isinstance(effect, Requeue) else effect.ref
        common = {"at_ms": self.now, "ticket": effect.ticket, "task_id": effect.record.task_id}
        if fault == "lost":
            self._hear(WriteFailed(**common, ref=ref), heard)
            return
        seq = self.cas(effect.record, effect.expect_seq)
        if not seq:
            record, stands = self.runs[effect.record.task_id]
            if record != effect.record:
                if record.state is TaskState.PLACED and record.replica_id:
                    self._placement(record, stands)
                self.acked(ref)
                self._hear(WriteRefused(**common, record=record, run_seq=stands), heard)
                return
            seq = stands
        if fault == "unsure":
            self._hear(WriteFailed(**common, ref=ref), heard)
            return
        if fault == "half":
            self._hear(WriteFailed(**common, run_seq=seq, ref=ref), heard)
            return
        if isinstance(effect, Place):
            self._placement(effect.record, seq)
        self.acked(ref)
        self._hear(WriteDone(**common, run_seq=seq), heard)

    def acked(self, ref: AdmissionRef | None) -> None:
        if ref is not None and (event := self.admissions.pop(ref, None)) is not None:
            copies = any(other.task_id == event.task_id for other in self.admissions.values())
            assert copies or event.task_id in self.runs, "an admission was given back before its record existed"

    def _hear(self, event: Event, heard: bool) -> None:
        if heard:
            self.tell(event)

    def _placement(self, record: RunRecord, seq: int) -> None:
        replica = self.replicas.get(record.replica_id)
        if replica is None or (record, seq) in replica.placements:
            return
        if (record, 0) in replica.placements:
            replica.placements.remove((record, 0))  # a node knows what it was signalled
        replica.placements.append((record, seq))

    def settle(self) -> None:
        """Perform everything, deliver everything."""
        while self.pending or self.live or self.unclaimed:
            if self.pending:
                self.perform(self.pending.pop(0))
            elif self.live:
                self.deliver_live()
            else:
                self.record_late(next(iter(self.unclaimed)))

    # nodes

    def replica(self, replica_id: str = "r1", *, pool: str = "p1", slots: int = 1, **fields: Any) -> list[Effect]:
        """A replica comes up, or reports anew with these fields. Every second one takes placements ahead."""
        known = self.replicas.get(replica_id)
        fields.setdefault("takes_ahead", len(self.replicas) % 2 == 0 if known is None else known.record.takes_ahead)
        if known is None:
            known = self.replicas[replica_id] = EngineLife(replica_record(replica_id, pool=pool, slots=slots, **fields))
        else:
            known.record = msgspec.structs.replace(known.record, **fields)
        known.alive = True
        return self.tell(ReplicaReported(at_ms=self.now, record=self._reported(known)))

    def _reported(self, replica: EngineLife) -> ReplicaRecord:
        return msgspec.structs.replace(replica.record, active=tuple(replica.held))

    def claim(self, replica_id: str = "r1") -> bool:
        """The node takes its next placement."""
        replica = self.replicas[replica_id]
        if not replica.placements:
            return False
        record, seq = replica.placements.pop(0)
        running = msgspec.structs.replace(
            record,
            state=TaskState.RUNNING,
            node_id=replica.record.node_id,
            incarnation=replica.record.incarnation,
            started_ms=self.now,
            determinism_class=replica.record.determinism_class if record.attempt == 1 else record.determinism_class,
        )
        claimed = self.cas(running, seq)
        if not (claimed or seq) and self.runs[record.task_id][0] == record:
            claimed = self.cas(running, self.runs[record.task_id][1])
        if claimed:
            replica.held[record.task_id] = claimed
            if record.task_id in self.cancels:
                self.finish(replica_id, record.task_id, TaskState.CANCELLED)
        return bool(claimed)

    def stop(self, request: PreemptRequest) -> bool:
        """The node stops a task for more urgent work: its slot is free, then its record says so."""
        for replica in self.replicas.values():
            if replica.held.get(request.task_id) == request.run_seq:
                del replica.held[request.task_id]
                record, _ = self.runs[request.task_id]
                back = msgspec.structs.replace(
                    off_replica(record),
                    state=TaskState.PLACED,
                    attempt=record.attempt + 1,
                    preemptions=record.preemptions + 1,
                )
                return bool(self.cas(back, request.run_seq))
        return False

    def give_back(self, replica_id: str, task: str) -> bool:
        """The engine garbled it and lives: the slot is free, then the record says that nobody has the task. Only of a
        first attempt; a later one is just not listed any more."""
        seq = self.replicas[replica_id].held.pop(task)
        record, stands = self.runs[task]
        if record.attempt - record.preemptions > 1:
            return False
        back = msgspec.structs.replace(off_replica(record), state=TaskState.PLACED, attempt=record.attempt + 1)
        return seq == stands and bool(self.cas(back, seq))

    def finish(self, replica_id: str, task: str, state: TaskState = TaskState.DONE) -> bool:
        """The engine's slot is free, then the record is final; false when somebody else has the task by now."""
        seq = self.replicas[replica_id].held.pop(task)
        record, stands = self.runs[task]
        final = msgspec.structs.replace(record, state=state, ended_ms=self.now, tokens_out=8, request=None)
        return seq == stands and bool(self.cas(final, seq))

    def engine_restarts(self, replica_id: str = "r1", incarnation: str = "i2") -> list[Effect]:
        self.replicas[replica_id].held.clear()
        return self.replica(replica_id, incarnation=incarnation)

    def lose(self, replica_id: str = "r1") -> list[Effect]:
        """Its node dies: the engine with it; the registry key expires. Its placements stay in the stream."""
        self.replicas[replica_id].alive = False
        self.replicas[replica_id].held.clear()
        pool_id = self.replicas[replica_id].record.pool_id
        return self.tell(ReplicaLost(at_ms=self.now, pool_id=pool_id, replica_id=replica_id))

    # what always holds

    def state(self, number: int) -> str:
        run = self.runs.get(task_id(number))
        return str(run[0].state) if run else "queued"

    def _waiting(self) -> dict[str, Waiting]:
        """What waits, and how it ranks in its flow: who came back first, then by deadline or admission."""
        waiting = {}
        for job in self.core.jobs.values():
            if job.phase is Phase.QUEUED:
                spec = self.core.pools[job.record.pool_id].spec
                due_ms = job.due_ms if job.order[0] and spec is not None and spec.deadlines.order == "edf" else 0
                flow = (job.record.pool_id, job.record.priority, job.record.tenant, job.shape)
                waiting[job.task_id] = Waiting(flow, (job.order[0], due_ms, job.order))
        return waiting

    def _check_order(self, before: dict[str, Waiting], effects: list[Effect]) -> None:
        """Whoever is placed left nobody behind that ranks before it in its flow and requires the same."""
        after = self._waiting()
        for effect in effects:
            if not isinstance(effect, Place):
                continue
            replica = self.core.fleet.get(effect.record.pool_id, effect.record.replica_id)
            assert replica is not None
            assert replica.slots_taken <= replica.slots_total, "more in flight than slots"
            self._check_quota(effect.record)
            placed = before.get(effect.record.task_id)
            for other, waiting in before.items():
                if placed is not None and other in after and waiting.flow == placed.flow:
                    assert waiting.rank > placed.rank, f"{effect.record.task_id} overtook {other}"

    def check(self) -> None:
        queued = {}
        for pool in self.core.pools.values():
            for priority, queue in pool.queue.classes.items():
                members = [job.task_id for job in queue.jobs()]
                assert len(members) == len(set(members)) == len(queue)
                for member in members:
                    assert member not in queued, "a task stands in two queues"
                    queued[member] = priority
            self._check_counts(pool)
        held = [task for replica in self.core.fleet.replicas.values() for task in replica.held]
        assert len(held) == len(set(held)), "a task is held by two replicas"
        for job in self.core.jobs.values():
            assert (job.phase is Phase.QUEUED) == (job.task_id in queued), f"{job.phase} and queued do not agree"
            assert (job.phase in HOLDS_SLOT) == (job.task_id in held), f"{job.phase} and held do not agree"
            listed = job.task_id in self.core.pools[job.record.pool_id].running[job.record.priority]
            assert (job.phase is Phase.RUNNING) == listed, f"{job.phase} and running do not agree"
        assert set(held) | set(queued) <= set(self.core.jobs)
        stored = {event.task_id for event in self.admissions.values()}
        for task in self.accepted:
            assert task in stored or task in self.runs, "an accepted task is nowhere"
            assert len(self.finals.get(task, [])) <= 1, "a task ended twice"

    def _check_counts(self, pool: Pool) -> None:
        """What is counted as things happen agrees with a look at everything."""
        replicas = self.core.fleet.of_pool(pool.pool_id)
        assert pool.fleet.index.held == sum(len(each.held) for each in replicas)
        assert pool.fleet.slots().free <= sum(each.slots_free for each in replicas)
        for victim in pool.victims.values():
            assert victim.preempt_ms, "a victim that was not asked"

    def _check_quota(self, record: RunRecord) -> None:
        """Its tenant holds no more than its quota now that this one has started. Tasks that were found running, or
        started before a quota was lowered, count: so nothing starts until they end."""
        pool = self.core.pools[record.pool_id]
        assert pool.spec is not None, "placed on a pool that is not wanted"
        limits = tenant_limits(pool.spec, record.tenant)
        held = [
            job
            for job in self.core.jobs.values()
            if job.phase in HOLDS_SLOT and (job.record.pool_id, job.record.tenant) == (pool.pool_id, record.tenant)
        ]
        assert limits.max_concurrent is None or len(held) <= limits.max_concurrent, "more at once than the quota"
        assert limits.kv_mb is None or sum(job.est_kv_mb for job in held) <= limits.kv_mb, "more KV than the quota"

    def _check_bound(self, event: TaskArrived, before: int) -> None:
        """A full policy keeps the queue in its bound: no newcomer makes a full one longer. One whose placement failed
        keeps its message and waits again, though somebody has taken its place."""
        pool = self.core.pools[event.pool_id]
        if pool.spec is not None and pool.spec.queue.full_policy is not FullPolicy.REJECT:
            assert self._fresh(event.pool_id) <= max(before, total_capacity(pool.spec)), "the queue is over its bound"

    def _fresh(self, pool_id: str) -> int:
        pool = self.core.pools.get(pool_id)
        return sum(queue.fresh for queue in pool.queue.classes.values()) if pool is not None else 0

    def check_finished(self) -> None:
        """Every accepted task has ended, once; nothing is left in anybody's hands."""
        self.check()
        assert not self.core.jobs
        assert not self.admissions
        for task in self.accepted:
            assert len(self.finals[task]) == 1
        for replica in self.core.fleet.replicas.values():
            assert not replica.held
