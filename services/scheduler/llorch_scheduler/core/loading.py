"""How long until a replica of the pool is ready, learned from those that became so.

    mean ← mean + ALPHA · (sample - mean)        from the first report that is not ready to the first that is

The prior is the pool's `waiting.load_ms`. One that takes longer than the mean is expected to need a tenth of it more.
"""

from typing import Final

from llorch_shared.wire.registry import ReplicaRecord, ReplicaState

ALPHA: Final = 0.3
OVERDUE_PART: Final = 0.1
_LOADS: Final = frozenset({
    ReplicaState.PROVISIONING,
    ReplicaState.STARTING,
    ReplicaState.TESTING,
    ReplicaState.BACKOFF,
})  # fmt: skip


class Loading:
    """Of one pool."""

    __slots__ = ("_began_ms", "_mean_ms")

    def __init__(self) -> None:
        self._mean_ms = 0.0
        self._began_ms: Final[dict[str, int]] = {}

    def __len__(self) -> int:
        """Replicas that are about to become ready."""
        return len(self._began_ms)

    def reported(self, record: ReplicaRecord, at_ms: int) -> None:
        if record.state in _LOADS:
            self._began_ms.setdefault(record.replica_id, at_ms)
            return
        began_ms = self._began_ms.pop(record.replica_id, None)
        if began_ms is not None and record.state is ReplicaState.READY:
            sample_ms = float(at_ms - began_ms)
            self._mean_ms = self._mean_ms + ALPHA * (sample_ms - self._mean_ms) if self._mean_ms else sample_ms

    def lost(self, replica_id: str) -> None:
        self._began_ms.pop(replica_id, None)

    def expected_ms(self, at_ms: int, prior_ms: int) -> int:
        """Until the first is ready. O(replicas that load)."""
        mean_ms = self._mean_ms or float(prior_ms)
        oldest_ms = min(self._began_ms.values(), default=at_ms)
        return round(max(OVERDUE_PART * mean_ms, mean_ms - (at_ms - oldest_ms)))
