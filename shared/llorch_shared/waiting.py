"""How long a task will wait: one formula, used by the gateway for its answer and by the scheduler for its record.

    position = tasks that start before it: everything of a higher class, and what came earlier in its own
    start    = 0                                          while position < slots_free
             = (position - slots_free + 1) · service / slots    otherwise

`slots` busy slots end one task every service/slots on average. Until a first task has ended the bootstrap of
REQUIREMENTS section 7 holds: position · 100 ms.
"""

from typing import Final

from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.task import Priority

BOOTSTRAP_MS: Final = 100
RETRY_MIN_MS: Final = 1_000


def queue_position(load: PoolLoad | None, priority: Priority, seq: int) -> int:
    """Position of the task stored at `seq` of its admission stream, from the scheduler's last load report."""
    if load is None:
        return 0
    arrived_since = max(0, seq - load.queue_seq.get(priority, 0))
    ahead = load.queued.get(priority, 0) + max(0, arrived_since - 1)
    if arrived_since == 0:
        ahead = max(0, ahead - 1)
    if priority is Priority.BATCH:
        ahead += load.queued.get(Priority.INTERACTIVE, 0)
    return ahead


def predicted_start_ms(position: int, *, slots_total: int, slots_free: int, service_ms: float) -> int:
    if position < slots_free:
        return 0
    if service_ms <= 0 or slots_total <= 0:
        return (position + 1) * BOOTSTRAP_MS
    return round((position - slots_free + 1) * service_ms / slots_total)


def predict(load: PoolLoad | None, position: int) -> int:
    if load is None:
        return position * BOOTSTRAP_MS
    return predicted_start_ms(
        position, slots_total=load.slots_total, slots_free=load.slots_free, service_ms=load.service_ms
    )


def retry_after_ms(load: PoolLoad | None) -> int:
    """When one place of a full queue is expected to be free, at least a second."""
    if load is None or load.service_ms <= 0 or load.slots_total <= 0:
        return RETRY_MIN_MS
    return max(RETRY_MIN_MS, round(load.service_ms / load.slots_total))
