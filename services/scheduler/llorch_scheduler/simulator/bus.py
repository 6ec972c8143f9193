"""The bus as the scheduler, nodes and clients know it: bounded admission queues, and run records changed by
compare-and-set. What it takes to store something is the caller's to wait for.
"""

from collections import Counter, deque
from typing import Final

from llorch_scheduler.core.events import AdmissionRef
from llorch_shared.pool_policy import server_capacity
from llorch_shared.states import FINAL, check_move
from llorch_shared.streams import admission_stream
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority, TaskState

FORGET_MS: Final = 5_000
"""How long a final record is kept. No write that expects an earlier one is under way for longer."""
_QUEUED: Final = TaskState.QUEUED


class AdmissionQueue:
    """One admission stream: it refuses at its capacity, and at a tenant's, counting what is stored and not
    acknowledged."""

    __slots__ = ("_capacity", "_of_tenant", "_priority", "_stored", "_tenant_capacity", "last_seq", "stream")

    def __init__(self, spec: PoolSpec, priority: Priority) -> None:
        self.stream: Final = admission_stream(spec.id, priority)
        self._priority: Final = priority
        self._stored: Final[dict[int, str]] = {}
        self._of_tenant: Final[Counter[str]] = Counter()
        self.last_seq = 0
        self.configure(spec)

    def configure(self, spec: PoolSpec) -> None:
        self._capacity = server_capacity(spec, self._priority)
        self._tenant_capacity = spec.queue.tenant_capacity

    def __len__(self) -> int:
        return len(self._stored)

    def tenant_full(self, tenant: str) -> bool:
        """The queue may have room; this tenant has its part of it."""
        return self._tenant_capacity is not None and self._of_tenant[tenant] >= self._tenant_capacity

    def publish(self, tenant: str) -> int:
        """The sequence of the stored message, or 0: the queue is full, for all or for this tenant."""
        stored = self._stored
        if len(stored) >= self._capacity or self.tenant_full(tenant):
            return 0
        self.last_seq = seq = self.last_seq + 1
        stored[seq] = tenant
        self._of_tenant[tenant] += 1
        return seq

    def ack(self, ref: AdmissionRef) -> bool:
        """Give the place back; false when that was done before."""
        tenant = self._stored.pop(ref.seq, None)
        if tenant is None:
            return False
        self._of_tenant[tenant] -= 1
        return True


class RunStore:
    """The stored truth about every task that was ever placed or ended."""

    __slots__ = ("_final", "_records", "seq")

    def __init__(self) -> None:
        self._records: Final[dict[str, tuple[RunRecord, int]]] = {}
        self._final: Final[deque[tuple[float, str]]] = deque()
        self.seq = 0

    def get(self, task_id: str) -> tuple[RunRecord, int] | None:
        return self._records.get(task_id)

    def store(self, record: RunRecord, expect_seq: int, at_ms: float) -> int:
        """The new sequence, or 0 when somebody wrote first. Raises IllegalMove for a move that no state table has."""
        task_id, state, records = record.task_id, record.state, self._records
        stored = records.get(task_id)
        if stored is None:
            if expect_seq:
                return 0
            check_move(_QUEUED, state)
        else:
            if stored[1] != expect_seq:
                return 0
            check_move(stored[0].state, state)
        self.seq = seq = self.seq + 1
        records[task_id] = (record, seq)
        if state in FINAL:
            final = self._final
            final.append((at_ms, task_id))
            while final[0][0] < at_ms - FORGET_MS:
                del records[final.popleft()[1]]
        return seq
