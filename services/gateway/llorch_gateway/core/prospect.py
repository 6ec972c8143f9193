"""What a task may expect, from the scheduler's last load report: its place in the line, its start. Pure."""

from typing import NamedTuple

from llorch_shared.waiting import predict, queue_position
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.task import Priority


class Prospect(NamedTuple):
    position: int
    """Tasks that will start before it."""
    start_ms: int
    """Milliseconds from now."""


def prospect_of(load: PoolLoad | None, priority: Priority, tenant: str, *, seq: int) -> Prospect:
    """Of the task stored at `seq` of its queue."""
    position = queue_position(load, priority, seq)
    return Prospect(position, predict(load, position))
