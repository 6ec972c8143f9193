"""What the core wants done, in the imperative. Each is safe to repeat: the run record's sequence decides who wins.

`Place`, `Requeue` and `End` write a run record and end as a `WriteDone`, `WriteRefused` or `WriteFailed` event that
carries their ticket. The others have no outcome the core waits for.
"""

import msgspec

from llorch_scheduler.core.events import AdmissionRef
from llorch_scheduler.core.placement import DecisionLog
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.run import PreemptRequest, RunRecord


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Store `record` expecting `expect_seq`, then the placement for its replica, then acknowledge `ref`."""

    ticket: int
    record: RunRecord
    expect_seq: int
    ref: AdmissionRef | None
    log: DecisionLog


class PlaceAgain(msgspec.Struct, frozen=True, kw_only=True):
    """Publish the placement of a record that stands already: its first publisher may have died before doing so."""

    record: RunRecord
    run_seq: int


class Requeue(msgspec.Struct, frozen=True, kw_only=True):
    """Store `record` (placed, on no replica): from then on the former holder's writes are refused."""

    ticket: int
    record: RunRecord
    expect_seq: int
    reason: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Store the final `record`, then the terminal frame, then the audit record, then acknowledge `ref`."""

    ticket: int
    record: RunRecord
    expect_seq: int
    ref: AdmissionRef | None
    reason: str


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """A run record exists for this admission: give its place in the queue back."""

    task_id: str
    ref: AdmissionRef


class Preempt(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the node to stop this task. A signal: if it is missed, the task runs on and the wish is forgotten."""

    node_id: str
    request: PreemptRequest
    record: RunRecord
    """The victim's, as it stands."""
    urgent_task_id: str
    """The task that waits for its slot."""


class TellLoad(msgspec.Struct, frozen=True, kw_only=True):
    load: PoolLoad


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    record: AuditRecord


Effect = Place | PlaceAgain | Requeue | End | Ack | Preempt | TellLoad | Audit
