"""One replica as the scheduler sees it, and how many of its slots are taken.

A slot is taken by a task we hold on the replica (placed or running) and by a task the replica lists that we do not
hold there: one that was moved away while its engine is still busy with it. A task whose record is final no longer takes
a slot even while an older report still lists it, because the record becomes final after the slot is free.

Every change goes through a method here, and the pool's index learns of it in the same call.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

from llorch_scheduler.core.job import Job
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState

RUNS: Final = frozenset({ReplicaState.READY, ReplicaState.DRAINING})
"""States in which an engine may be busy with a task."""
MIB: Final = 1 << 20
_READY: Final = ReplicaState.READY


class Watcher(Protocol):
    """Who must know when a replica changes."""

    def reported(self, replica: "Replica") -> None:
        """Its record is another one, or gone."""

    def moved(self, replica: "Replica") -> None:
        """Its slots are taken otherwise than before."""

    def held(self, replica: "Replica", job: Job) -> None:
        """A task was placed on it, or was found there."""


@dataclass(slots=True, eq=False)
class Replica:
    """`record` is None while only run records name it: after a takeover, until its report comes or the grace ends."""

    replica_id: str
    pool_id: str
    watcher: Watcher
    record: ReplicaRecord | None = None
    absent_ms: int = 0
    node_gone: bool = False
    """It has no record because its node is gone from the bus, not because its key expired."""
    held: dict[str, Job] = field(default_factory=dict)
    strangers: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    ready: bool = False
    runs: bool = False
    """Its engine may be busy with a task: it is ready, or drains."""
    slots_total: int = 0
    """While it is ready; else 0."""

    @property
    def slots_taken(self) -> int:
        return len(self.held) + len(self.strangers)

    @property
    def slots_free(self) -> int:
        free = self.slots_total - len(self.held) - len(self.strangers)
        return free if free > 0 else 0

    @property
    def free_vram_mb(self) -> int:
        """As reported, less what held tasks will take that the report does not know yet, for engines that take KV
        memory as tasks come. O(slots) for those, O(1) for the others."""
        record = self.record
        if record is None:
            return 0
        if record.kv_bytes_per_token == 0:
            return record.free_vram_mb
        known = set(record.active)
        coming = sum(
            kv_mb(job.record.request.ctx, record.kv_bytes_per_token)
            for job in self.held.values()
            if job.record.request is not None and job.task_id not in known
        )
        return record.free_vram_mb - coming

    def hold(self, job: Job) -> None:
        task_id = job.record.task_id
        self.held[task_id] = job
        self.strangers.discard(task_id)
        self.released.discard(task_id)
        self.watcher.moved(self)
        self.watcher.held(self, job)

    def release(self, job: Job, *, slot_is_free: bool) -> None:
        """`slot_is_free`: its record is final. Otherwise the engine may still be busy with it."""
        task_id = job.record.task_id
        if self.held.pop(task_id, None) is None:
            return
        if slot_is_free:
            self.released.add(task_id)
        elif self.record is not None and task_id in self.record.active:
            self.strangers.add(task_id)
        self.watcher.moved(self)

    def report(self, record: ReplicaRecord) -> None:
        active = set(record.active)
        if self.record is not None and self.record.incarnation != record.incarnation:
            self.released.clear()
        self.record = record
        self.ready = record.state is _READY
        self.runs = record.state in RUNS
        self.slots_total = record.slots_total if self.ready else 0
        self.absent_ms = 0
        self.released &= active
        self.strangers = active - self.held.keys() - self.released
        self.watcher.reported(self)

    def lose(self, at_ms: int, *, node_gone: bool = False) -> None:
        """Nobody renews its registry key any more. The tasks it holds stay until they are released."""
        self.record, self.absent_ms, self.node_gone = None, at_ms, node_gone
        self.ready, self.runs, self.slots_total = False, False, 0
        self.strangers.clear()
        self.released.clear()
        self.watcher.reported(self)


def kv_mb(ctx: int, bytes_per_token: int) -> int:
    """KV memory of one task, MiB, rounded up: a context is reserved whole."""
    return -(-ctx * bytes_per_token // MIB)
