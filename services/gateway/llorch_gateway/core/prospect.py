"""What a task may expect, from the scheduler's last load report. Pure."""

from typing import NamedTuple

from llorch_shared.waiting import chance, expect, expected_ms
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.task import Priority, TaskRequest


class Prospect(NamedTuple):
    """Of a task in its queue. Times are milliseconds from now."""

    position: int
    """Tasks that will start before it."""
    start_ms: int
    loading: bool
    """No replica is ready: it waits for the model."""
    end_ms: int | None = None
    """Start and expected slot time; None while no slot times have been measured."""
    on_time: float | None = None
    """Chance that it ends before its deadline."""


def prospect_of(
    load: PoolLoad | None, priority: Priority, tenant: str, *, seq: int, due_in_ms: int | None = None
) -> Prospect:
    """Of the task stored at `seq` of its queue, now. `due_in_ms`: until its deadline."""
    waiting = expect(load, priority, tenant, seq, due_in_ms=due_in_ms)
    return Prospect(waiting.position, round(waiting.start_ms), is_loading(load))


def prospect_for(load: PoolLoad | None, request: TaskRequest, tenant: str) -> Prospect:
    """Of a newcomer, whose deadline counts from now."""
    waiting = expect(load, request.priority, tenant, due_in_ms=request.deadline_ms)
    known = load is not None and load.service_ms > 0
    return Prospect(
        waiting.position,
        round(waiting.start_ms),
        is_loading(load),
        round(waiting.start_ms + expected_ms(load, request, tenant)) if load is not None and known else None,
        chance(load, request, tenant, start_ms=waiting.start_ms),
    )


def is_loading(load: PoolLoad | None) -> bool:
    return load is not None and load.replicas_ready == 0
