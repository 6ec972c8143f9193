"""One pool as the scheduler keeps it: its queue, when it may be placed from, and what is told about it."""

from dataclasses import dataclass, field

from llorch_scheduler.core.estimate import SlotTime
from llorch_scheduler.core.strict_queue import PoolQueue
from llorch_scheduler.core.replica import Replica
from llorch_shared.pool_policy import CLASSES
from llorch_shared.waiting import predicted_start_ms
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority


@dataclass(slots=True, eq=False)
class Pool:
    """`spec` is None for a pool that is not wanted (any more); nothing is placed on it."""

    pool_id: str
    since_ms: int
    spec: PoolSpec | None = None
    queue: PoolQueue = field(default_factory=PoolQueue)
    slot_time: SlotTime = field(default_factory=SlotTime)
    read: set[Priority] = field(default_factory=set)
    """Queues whose backlog has been pulled."""
    paused_until_ms: int = 0
    """A placement could not be written: no other is tried before."""
    told_ms: int = 0
    dirty: bool = True

    @property
    def backlog_read(self) -> bool:
        return len(self.read) == len(CLASSES)

    def load(self, replicas: list[Replica], *, at_ms: int, version: int) -> PoolLoad:
        """What gateways answer waiting times from. O(replicas of the pool)."""
        return PoolLoad(
            pool_id=self.pool_id,
            at_ms=at_ms,
            snapshot_version=version,
            queued={str(priority): len(queue) for priority, queue in self.queue.classes.items()},
            queue_seq={str(priority): queue.seq for priority, queue in self.queue.classes.items()},
            running=sum(len(replica.held) for replica in replicas),
            slots_total=sum(replica.slots_total for replica in replicas),
            slots_free=sum(replica.slots_free for replica in replicas),
            replicas_ready=sum(replica.ready for replica in replicas),
            service_ms=round(self.slot_time.mean_ms, 3),
        )

    def predict_ms(self, position: int, replicas: list[Replica]) -> int:
        return predicted_start_ms(
            position,
            slots_total=sum(replica.slots_total for replica in replicas),
            slots_free=sum(replica.slots_free for replica in replicas),
            service_ms=self.slot_time.mean_ms,
        )
