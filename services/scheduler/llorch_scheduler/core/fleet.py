"""Replicas as the scheduler sees them, and how many of their slots are taken.

A slot is taken by a task we hold on the replica (placed or running) and by a task the replica lists that we do not
hold there: one that was moved away while its engine is still busy with it. A task whose record is final no longer takes
a slot even while an older report still lists it, because the record becomes final after the slot is free.
"""

from dataclasses import dataclass, field
from typing import Final

from llorch_scheduler.core.job import Job
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState

RUNS: Final = frozenset({ReplicaState.READY, ReplicaState.DRAINING})
"""States in which an engine may be busy with a task."""


@dataclass(slots=True, eq=False)
class Replica:
    """`record` is None while only run records name it: after a takeover, until its report comes or the grace ends."""

    replica_id: str
    pool_id: str
    record: ReplicaRecord | None = None
    absent_ms: int = 0
    held: dict[str, Job] = field(default_factory=dict)
    strangers: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        return self.record is not None and self.record.state is ReplicaState.READY

    @property
    def slots_total(self) -> int:
        return self.record.slots_total if self.record is not None and self.ready else 0

    @property
    def slots_taken(self) -> int:
        return len(self.held) + len(self.strangers)

    @property
    def slots_free(self) -> int:
        return max(0, self.slots_total - self.slots_taken)

    def hold(self, job: Job) -> None:
        self.held[job.task_id] = job
        self.strangers.discard(job.task_id)
        self.released.discard(job.task_id)

    def release(self, job: Job, *, slot_is_free: bool) -> None:
        """`slot_is_free`: its record is final. Otherwise the engine may still be busy with it."""
        if self.held.pop(job.task_id, None) is None:
            return
        listed = self.record is not None and job.task_id in self.record.active
        if slot_is_free:
            self.released.add(job.task_id)
        elif listed:
            self.strangers.add(job.task_id)

    def report(self, record: ReplicaRecord) -> None:
        active = set(record.active)
        if self.record is not None and self.record.incarnation != record.incarnation:
            self.released.clear()
        self.record = record
        self.absent_ms = 0
        self.released &= active
        self.strangers = active - self.held.keys() - self.released


class Fleet:
    """Every replica, by id and by pool."""

    __slots__ = ("_by_pool", "replicas")

    def __init__(self) -> None:
        self.replicas: Final[dict[str, Replica]] = {}
        self._by_pool: Final[dict[str, dict[str, Replica]]] = {}

    def get(self, replica_id: str) -> Replica | None:
        return self.replicas.get(replica_id)

    def named(self, replica_id: str, pool_id: str, at_ms: int) -> Replica:
        """The replica; made without a record when nothing but a run record names it."""
        replica = self.replicas.get(replica_id)
        if replica is None:
            replica = Replica(replica_id, pool_id, absent_ms=at_ms)
            self.replicas[replica_id] = replica
            self._by_pool.setdefault(pool_id, {})[replica_id] = replica
        return replica

    def remove(self, replica_id: str) -> Replica | None:
        replica = self.replicas.pop(replica_id, None)
        if replica is not None:
            pool = self._by_pool[replica.pool_id]
            del pool[replica_id]
            if not pool:
                del self._by_pool[replica.pool_id]
        return replica

    def of_pool(self, pool_id: str) -> list[Replica]:
        return list(self._by_pool.get(pool_id, {}).values())


def abilities(record: ReplicaRecord) -> tuple[object, ...]:
    """What decides whether a replica could serve a task at all; a change of it is worth another look at the queue."""
    return (record.state, record.engine, record.model_ref, record.device, record.ctx_max, record.workloads)
