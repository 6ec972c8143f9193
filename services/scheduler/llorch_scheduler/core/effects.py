"""What the core wants done, in the imperative. Each is safe to repeat: the run record's sequence decides who wins.

`Place`, `Requeue` and `End` write a run record and end as a `WriteDone`, `WriteRefused` or `WriteFailed` event that
carries their ticket. The others have no outcome the core waits for.
"""

import msgspec

from llorch_scheduler.core.decision import DecisionLog
from llorch_scheduler.core.events import AdmissionRef
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.run import PreemptRequest, RunRecord
from llorch_shared.wire.task import Priority

Detail = dict[str, str | int | float | bool | list[str]]
"""As an audit record keeps it."""


class Place(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Store `record` expecting `expect_seq`, then the placement for its replica, then acknowledge `ref`. One that goes
    ahead is signalled to its node first, and that only if nobody claims it."""

    ticket: int
    record: RunRecord
    expect_seq: int
    ref: AdmissionRef | None
    log: DecisionLog
    detail: Detail
    """What else the audit trail keeps of this decision."""
    passed_over: Priority | None = None
    """The class that the shares would have served next, and that this more urgent task went before."""
    resumed: bool = False
    """It was preempted, and runs again."""
    ahead: str = ""
    """The node, where it is the task's first in all likelihood, and the node's claim may be its first record."""


class PlaceAgain(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Publish the placement of a record that stands already: its first publisher may have died before doing so."""

    record: RunRecord
    run_seq: int


class Requeue(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Store `record` (placed, on no replica): from then on the former holder's writes are refused."""

    ticket: int
    record: RunRecord
    expect_seq: int
    reason: str


class End(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Store the final `record`, then the terminal frame, then the audit record, then acknowledge `ref`."""

    ticket: int
    record: RunRecord
    expect_seq: int
    ref: AdmissionRef | None
    reason: str
    detail: Detail = {}


class Ack(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A run record exists for this admission: give its place in the queue back."""

    task_id: str
    ref: AdmissionRef


class Preempt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ask the node to stop this task. A signal: if it is missed, the task runs on and the wish is forgotten."""

    node_id: str
    request: PreemptRequest
    record: RunRecord
    """The victim's, as it stands."""


class Preempted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """This task has made way: its slot is free and its record stands as placed on no replica. Its node audits that."""

    record: RunRecord
    urgent_task_id: str
    """The task it made way for; empty when that is not remembered."""


class PoolFigures(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is measured of a pool for its operators, beside its load."""

    shares: tuple[tuple[str, Priority, float], ...] | None = None
    """Part of the slot time that a tenant's class got lately: tenant, priority, share; the largest. None: as told."""
    deadlines_met: dict[Priority, tuple[int, int]] = {}
    """Of the lately ended tasks: how many were in time, of how many."""
    start_error: dict[Priority, float] = {}
    """Median of |real - predicted| over real waits lately."""
    breaker_level: int = 0
    """How many classes the breaker refuses."""


class TellLoad(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    load: PoolLoad
    figures: PoolFigures = PoolFigures()


class Disown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The id of this task is another tenant's task: tell who reads the stream of this one, and the audit trail.
    `record` is what its end would be; the record that is stored under the id is the other's."""

    record: RunRecord


class Audit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    record: AuditRecord


Effect = Place | PlaceAgain | Requeue | End | Ack | Preempt | Preempted | TellLoad | Disown | Audit
