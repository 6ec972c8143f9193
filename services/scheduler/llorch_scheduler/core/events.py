"""What the core is told, in the past tense. `at_ms` is Unix milliseconds, given by whoever saw it happen.

Every effect that writes a run record ends as exactly one of `WriteDone`, `WriteRefused` or `WriteFailed` with the
effect's ticket, so the core knows which of its wishes an answer belongs to.
"""

import msgspec

from llorch_shared.errors import ErrorBody
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import SessionTerms
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority, TaskRequest


class AdmissionRef(msgspec.Struct, frozen=True, gc=False):
    """One stored admission message: what an acknowledgement frees."""

    stream: str
    seq: int


class TaskArrived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An admission message was pulled. With `problem` the task cannot be served and ends at once."""

    at_ms: int
    ref: AdmissionRef
    task_id: str
    pool_id: str
    priority: Priority
    tenant: str
    lane: str
    correlation_id: str
    channel: str
    admitted_ms: int
    request: TaskRequest | None
    problem: ErrorBody | None = None
    session: SessionTerms | None = None
    """Where its session has an account: what was reserved for it."""


class TaskCancelled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    at_ms: int
    task_id: str
    reason: str = "client"


class WriteDone(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The run record of this effect is stored at `run_seq`, and what belongs to it (placement, frame, ack) is done."""

    at_ms: int
    ticket: int
    task_id: str
    run_seq: int


class WriteRefused(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Somebody wrote first: `record` stands at `run_seq`. The admission message, if any, is acknowledged."""

    at_ms: int
    ticket: int
    task_id: str
    record: RunRecord
    run_seq: int


class WriteFailed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The bus did not do it. `run_seq` is that of the stored record when only a later step failed, else 0 (and the
    record may or may not be stored). The admission message `ref` is not acknowledged. With `problem` it can never be
    done, and the task ends with it."""

    at_ms: int
    ticket: int
    task_id: str
    run_seq: int = 0
    ref: AdmissionRef | None = None
    problem: ErrorBody | None = None


class RunChanged(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A run record was stored by anybody, ourselves included."""

    at_ms: int
    record: RunRecord
    seq: int


class ReplicaReported(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    at_ms: int
    record: ReplicaRecord


class ReplicaLost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The replica's registry key expired or was deleted, or its node is gone from the bus."""

    at_ms: int
    replica_id: str
    pool_id: str
    node_gone: bool = False


class PoolChanged(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    at_ms: int
    spec: PoolSpec


class PoolRemoved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The pool is no longer wanted. Its tasks stay queued until a deadline or a cancel ends them, or it returns."""

    at_ms: int
    pool_id: str


class BacklogRead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything that waited in this queue when we took over has been pulled: its order is known now."""

    at_ms: int
    pool_id: str
    priority: Priority
    last_seq: int = 0
    """The stream's last sequence then, whether its message still waits or was placed long ago."""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Runs and registry have been read: deciding may begin. `run_seq` is the newest run sequence that was read."""

    at_ms: int
    run_seq: int


class Tick(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    at_ms: int
    run_seq: int = 0
    """Newest run sequence of pools that are not ours: what was stored before it has been told."""


Event = (
    TaskArrived
    | TaskCancelled
    | WriteDone
    | WriteRefused
    | WriteFailed
    | RunChanged
    | ReplicaReported
    | ReplicaLost
    | PoolChanged
    | PoolRemoved
    | BacklogRead
    | Rebuilt
    | Tick
)
