"""Reads what a live system put on record: its audit stream as lines of JSON, and the specifications of its pools.

A line is an audit record, or `{"pool": {…}}` with a specification. Without one, a pool is what can be seen of it: as
many slots per replica as were ever busy at once, and the default policy. A line that is neither is refused with its
number.

A task is replayed when its admission is in the recording and says its class, budget and session. What it took is
known from its last attempt; what no engine had, or had not ended, gets the median of its tenant and class, else of its
class, else of its pool.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from llorch_scheduler.simulator.quantiles import quantile
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

ENDED: Final = {
    AuditEvent.DONE: "done",
    AuditEvent.FAILED: "failed",
    AuditEvent.CANCELLED: "cancelled",
    AuditEvent.EXPIRED: "expired",
    AuditEvent.DROPPED: "dropped",
}
SERVED_MS: Final = 1_000.0
"""Of a task when nothing in its pool was ever served to the end."""
CLAIM_MS: Final = 1.0


class RecordingError(ValueError):
    """The file is not a recording that can be replayed; the message names the line."""


class Told(msgspec.Struct, frozen=True):
    """Details of an admission; all are needed."""

    priority: Priority
    max_tokens: int
    deadline_ms: int
    session_id: str


class _Line(msgspec.Struct, frozen=True):
    pool: PoolSpec


class Life(msgspec.Struct, kw_only=True):
    """What became of a task. Unix milliseconds; 0 while unknown."""

    started_ms: int = 0
    """First attempt."""
    slot_ms: float = 0.0
    """How long the last attempt held its slot; 0 when none ended."""
    ended_ms: int = 0
    outcome: str = "unfinished"
    tokens_in: int = 0
    tokens_out: int = 0


class RecordedTask(msgspec.Struct, frozen=True, kw_only=True):
    task_id: str
    pool_id: str
    tenant: str
    told: Told
    admitted_ms: int
    life: Life


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    tasks: tuple[RecordedTask, ...]
    """In the order of their admission."""
    specs: dict[str, PoolSpec]
    """Of the pools that were written down."""
    replicas: dict[str, dict[str, int]]
    """By pool: its replicas and how many tasks each had at once, at most."""
    left_out: dict[str, int]
    """Tasks that cannot be replayed, by reason."""
    claim_ms: float
    """Median time from a stored placement to the claim."""


def read_recording(lines: Iterable[bytes], name: str) -> Recording:
    """Raises RecordingError."""
    reader = _Reader()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if line.startswith(b'{"pool":'):
                reader.pool(_LINE.decode(line).pool)
            else:
                reader.record(AUDIT_DECODER.decode(line))
        except msgspec.MsgspecError as error:
            raise RecordingError(f"{name}:{number}: neither an audit record nor a pool: {error}") from error
    recording = reader.recording()
    if not recording.tasks:
        raise RecordingError(f"{name}: no admission in it can be replayed")
    return recording


_LINE: Final = msgspec.json.Decoder(_Line)


class _Reader:
    """Records of one task come in order where one service wrote them; an admission may come after its start."""

    def __init__(self) -> None:
        self._specs: Final[dict[str, PoolSpec]] = {}
        self._admitted: Final[dict[str, tuple[AuditRecord, Told]]] = {}
        self._lives: Final[dict[str, Life]] = {}
        self._running: Final[dict[str, AuditRecord]] = {}
        self._placed: Final[dict[str, int]] = {}
        self._claims: Final[list[float]] = []
        self._changes: Final[dict[tuple[str, str], list[tuple[int, int]]]] = {}
        """By pool and replica: when a task came to it (1) or left it (-1)."""
        self._without_details: Final[set[str]] = set()

    def pool(self, spec: PoolSpec) -> None:
        self._specs[spec.id] = spec

    def record(self, record: AuditRecord) -> None:
        match record.event:
            case AuditEvent.ADMITTED:
                try:
                    self._admitted[record.task_id] = record, msgspec.convert(record.detail, Told)
                except msgspec.ValidationError:
                    self._without_details.add(record.task_id)
            case AuditEvent.PLACED:
                self._placed[record.task_id] = record.at_ms
            case AuditEvent.RUNNING:
                self._started(record)
            case AuditEvent.REQUEUED | AuditEvent.PREEMPTED:
                self._left(record)
            case event if event in ENDED:
                self._left(record)
                life = self._life(record)
                life.ended_ms, life.outcome = record.at_ms, ENDED[event]
                life.tokens_in, life.tokens_out = _number(record, "tokens_in"), _number(record, "tokens_out")

    def _life(self, record: AuditRecord) -> Life:
        return self._lives.setdefault(record.task_id, Life())

    def _started(self, record: AuditRecord) -> None:
        self._running[record.task_id] = record
        self._changes.setdefault((record.pool_id, record.replica_id), []).append((record.at_ms, 1))
        placed_ms = self._placed.pop(record.task_id, 0)
        if placed_ms:
            self._claims.append(max(0.0, float(record.at_ms - placed_ms)))
        life = self._life(record)
        life.started_ms = life.started_ms or record.at_ms

    def _left(self, record: AuditRecord) -> None:
        began = self._running.pop(record.task_id, None)
        if began is not None:
            self._changes[began.pool_id, began.replica_id].append((record.at_ms, -1))
            self._life(record).slot_ms = float(max(1, record.at_ms - began.at_ms))

    def recording(self) -> Recording:
        tasks = [
            RecordedTask(
                task_id=task_id,
                pool_id=record.pool_id,
                tenant=record.tenant or "unknown",
                told=told,
                admitted_ms=record.at_ms,
                life=self._lives.get(task_id, Life()),
            )
            for task_id, (record, told) in self._admitted.items()
        ]
        tasks.sort(key=lambda task: (task.admitted_ms, task.task_id))
        unknown = self._lives.keys() - self._admitted.keys() - self._without_details
        left_out = {"admitted before the recording": len(unknown), "without details": len(self._without_details)}
        replicas: dict[str, dict[str, int]] = {task.pool_id: {} for task in tasks}
        for (pool_id, replica_id), changes in sorted(self._changes.items()):
            replicas.setdefault(pool_id, {})[replica_id] = _most(changes)
        return Recording(
            tasks=tuple(tasks),
            specs=self._specs,
            replicas=replicas,
            left_out={reason: number for reason, number in left_out.items() if number},
            claim_ms=quantile(sorted(self._claims), 0.5) if self._claims else CLAIM_MS,
        )


def slot_times(recording: Recording) -> dict[str, float]:
    """How long each task holds its slot: as recorded if it ended there, else what is usual for its like."""
    known: dict[tuple[str, ...], list[float]] = {}
    for task in recording.tasks:
        if task.life.outcome == "done" and task.life.slot_ms:
            for like in _likes(task):
                known.setdefault(like, []).append(task.life.slot_ms)
    usual = {like: quantile(sorted(values), 0.5) for like, values in known.items()}
    times: dict[str, float] = {}
    for task in recording.tasks:
        slot_ms = task.life.slot_ms
        if not slot_ms or task.life.outcome not in ("done", "failed"):
            slot_ms = max(slot_ms, next((usual[like] for like in _likes(task) if like in usual), SERVED_MS))
        times[task.task_id] = slot_ms
    return times


def _likes(task: RecordedTask) -> tuple[tuple[str, ...], ...]:
    """Groups a task belongs to, the smallest first."""
    return (
        (task.pool_id, task.told.priority, task.tenant),
        (task.pool_id, task.told.priority),
        (task.pool_id,),
    )


def _most(changes: list[tuple[int, int]]) -> int:
    """At once. Where one leaves as another comes, it leaves first."""
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return max(1, most)


def _number(record: AuditRecord, key: str) -> int:
    value: Any = record.detail.get(key, 0)
    return value if isinstance(value, int) else 0
