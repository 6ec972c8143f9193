"""Lists of tasks: which are asked for, and where the next page begins. Pure.

Newest first: what waits in the queues, in the order of each queue, then the run records, last changed first. A cursor
names a place in one of the streams, so a page costs as much as what it reads, however many tasks there are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState

LIMIT_DEFAULT: Final = 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """Empty fields ask for nothing in particular."""

    state: TaskState | None = None
    session: str = ""
    tenant: str = ""
    pool: str = ""
    limit: int = LIMIT_DEFAULT

    @property
    def queued(self) -> bool:
        """Whether tasks in the queues can be among those."""
        return self.state in (None, TaskState.QUEUED)

    def has(self, record: RunRecord) -> bool:
        return (
            self.state in (None, record.state)
            and self.tenant in ("", record.tenant)
            and self.pool in ("", record.pool_id)
            and self.session in ("", session_of(record))
        )


def wanted_by(given: Mapping[str, Any], *, bound_to: str) -> Wanted | None:
    """`given`: parameters of the operation. None when a caller that is bound to its tenant asks for another's."""
    tenant = given.get("tenant", bound_to)
    if bound_to and tenant != bound_to:
        return None
    return Wanted(
        state=given.get("state"),
        session=given.get("session", "").lower(),
        tenant=tenant,
        pool=given.get("pool", ""),
        limit=given.get("limit", LIMIT_DEFAULT),
    )


def session_of(record: RunRecord) -> str:
    """Empty for an ended task of a release that did not note it."""
    return record.session_id or (record.request.session_id if record.request is not None else "")


class InQueue(NamedTuple):
    """From this message of this queue on."""

    pool: str
    priority: Priority
    seq: int

    def __str__(self) -> str:
        return f"q.{self.pool}.{self.priority}.{self.seq}"


class InRuns(NamedTuple):
    """Run records stored before this sequence; 0 is all of them."""

    below: int

    def __str__(self) -> str:
        return f"r.{self.below}"


Place = InQueue | InRuns


def parse_place(cursor: str) -> Place:
    """Of a cursor that has the pattern."""
    kind, *parts = cursor.split(".")
    if kind == "r":
        return InRuns(int(parts[0]))
    return InQueue(parts[0], Priority(parts[1]), int(parts[2]))


def queues_from(pools: Iterable[str], wanted: Wanted, place: Place | None) -> list[InQueue]:
    """The queues to read and where each begins, in their order; none behind the last."""
    if not wanted.queued or isinstance(place, InRuns):
        return []
    everything = [InQueue(pool, priority, 1) for pool in sorted(pools) for priority in CLASSES]
    chosen = [queue for queue in everything if wanted.pool in ("", queue.pool)]
    if place is None:
        return chosen
    return [
        place if queue[:2] == place[:2] else queue
        for queue in chosen
        if (queue.pool, CLASSES.index(queue.priority)) >= (place.pool, CLASSES.index(place.priority))
    ]
