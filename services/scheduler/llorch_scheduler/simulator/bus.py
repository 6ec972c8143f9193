"""The bus as the scheduler, nodes and clients know it: bounded admission queues, and run records changed by
compare-and-set. What it takes to store something is the caller's to wait for.
"""

from collections import deque
from typing import Final

from llorch_scheduler.core.events import AdmissionRef
from llorch_shared.states import FINAL, check_move
from llorch_shared.streams import admission_stream
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState

FORGET_MS: Final = 60_000
"""How long a final record is kept. No write that expects an earlier one is under way for longer."""


class AdmissionQueue:
    """One admission stream: it refuses at capacity, counting what is stored and not acknowledged."""

    __slots__ = ("_capacity", "_stored", "last_seq", "stream")

    def __init__(self, pool_id: str, priority: Priority, capacity: int) -> None:
        self.stream: Final = admission_stream(pool_id, priority)
        self._capacity: Final = capacity
        self._stored: Final[set[int]] = set()
        self.last_seq = 0

    def __len__(self) -> int:
        return len(self._stored)

    def publish(self) -> int:
        """The sequence of the stored message, or 0: the queue is full."""
        if len(self._stored) >= self._capacity:
            return 0
        self.last_seq += 1
        self._stored.add(self.last_seq)
        return self.last_seq

    def ack(self, ref: AdmissionRef) -> bool:
        """Give the place back; false when that was done before."""
        if ref.seq not in self._stored:
            return False
        self._stored.remove(ref.seq)
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
        stored = self._records.get(record.task_id)
        before, seq = stored if stored is not None else (None, 0)
        if seq != expect_seq:
            return 0
        check_move(before.state if before is not None else TaskState.QUEUED, record.state)
        self.seq += 1
        self._records[record.task_id] = (record, self.seq)
        if record.state in FINAL:
            self._final.append((at_ms, record.task_id))
            self._forget(at_ms)
        return self.seq

    def _forget(self, at_ms: float) -> None:
        while self._final[0][0] < at_ms - FORGET_MS:
            del self._records[self._final.popleft()[1]]
