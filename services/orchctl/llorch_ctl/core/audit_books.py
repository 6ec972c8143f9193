"""Rebuilds from audit records alone what became of every task, and what each tenant used of each pool.

Records of one task come from several writers, so the order of the stream is not that of its moves; the sequence of the
run record is, which every move names. What a task's records must show:
- at most one admission, at most one end, and no move after the end;
- each move can follow the one before it (`states.MOVES`), and no attempt comes before an earlier one.
A move that nobody put on record is passed over and counted: whoever made it was killed, or lost its office, before it
could say so. So is a task without an admission record, whose gateway was killed.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from llorch_ctl.core.findings import Fault, Violation
from llorch_shared.states import FINAL, MOVES
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.task import TaskState

STATES: Final[dict[AuditEvent, TaskState]] = {
    AuditEvent.ADMITTED: TaskState.QUEUED,
    AuditEvent.PLACED: TaskState.PLACED,
    AuditEvent.REQUEUED: TaskState.PLACED,
    AuditEvent.PREEMPTED: TaskState.PLACED,
    AuditEvent.RUNNING: TaskState.RUNNING,
    **{AuditEvent(str(state)): state for state in FINAL},
}
"""What a task is after an event; events that are not here move no task."""


class Usage(msgspec.Struct, kw_only=True):
    tasks: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class End(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    state: TaskState
    attempt: int
    run_seq: int
    tokens_in: int | None
    """None where the record does not tell it, as scheduler's records of earlier releases."""
    tokens_out: int | None
    tenant: str
    pool_id: str


class TaskBook:
    """What is on record of one task."""

    __slots__ = ("_moves", "admissions", "end", "ends", "last_ms", "pool_id", "seq")

    def __init__(self) -> None:
        self.admissions = 0
        self.ends = 0
        self.end: End | None = None
        """The first."""
        self.seq = 0
        """Of its newest record in the audit stream."""
        self.last_ms = 0
        self.pool_id = ""
        self._moves: list[tuple[int, int, TaskState]] = []
        """(run sequence, attempt, state)."""

    @property
    def run_seq(self) -> int:
        """Of the last move that is on record."""
        return max((seq for seq, _, _ in self._moves), default=0)

    def add(self, seq: int, record: AuditRecord) -> None:
        state = STATES[record.event]
        self.seq, self.last_ms = max(self.seq, seq), max(self.last_ms, record.at_ms)
        self.pool_id = record.pool_id or self.pool_id
        if record.event is AuditEvent.ADMITTED:
            self.admissions += 1
            return
        attempt = record.attempt + (record.event is AuditEvent.PREEMPTED)
        self._moves.append((record.run_seq, attempt, state))
        if state in FINAL:
            self.ends += 1
            self.end = self.end or _end(record, state)

    def faults(self) -> Iterator[tuple[Fault, str]]:
        if self.admissions > 1:
            yield Fault.ADMITTED_TWICE, f"{self.admissions} admissions are on record"
        if self.ends > 1:
            yield Fault.ENDED_TWICE, f"{self.ends} ends are on record"
        before: TaskState | None = TaskState.QUEUED if self.admissions else None
        attempt_before = 0
        for _, attempt, state in self._ordered():
            if before is not None and not _can_become(before, state):
                if not (before in FINAL and state in FINAL):
                    yield Fault.ILLEGAL_MOVE, f"it was {before} and is then {state}"
            elif attempt < attempt_before:
                yield Fault.ILLEGAL_MOVE, f"attempt {attempt} comes after attempt {attempt_before}"
            before, attempt_before = state, attempt

    def unrecorded(self) -> int:
        """Moves that must have been made and are not on record."""
        count, before = 0, TaskState.QUEUED
        for _, _, state in self._ordered():
            count += state not in MOVES[before] and _can_become(before, state)
            before = state
        return count

    def _ordered(self) -> list[tuple[int, int, TaskState]]:
        return sorted(set(self._moves), key=lambda move: (move[0], move[1]))


class Books:
    """Of all tasks. `TASKS_HELD_MAX` bounds what is held: beyond it the longest known that ended are judged and let
    go; their totals stay. Tasks under way are all held."""

    TASKS_HELD_MAX: Final = 200_000

    def __init__(self, *, tasks_held_max: int = TASKS_HELD_MAX) -> None:
        self._let_go: Final = max(1, tasks_held_max // 10)
        self._room = tasks_held_max
        self.tasks: Final[dict[str, TaskBook]] = {}
        self.ends: Final[Counter[TaskState]] = Counter()
        self.usage: Final[dict[tuple[str, str], Usage]] = {}
        """By tenant and pool."""
        self.seen = 0
        """Tasks."""
        self.unrecorded = 0
        self.unadmitted = 0

    def add(self, seq: int, record: AuditRecord) -> Iterator[Violation]:
        """Gives what is wrong with tasks that are let go for this one."""
        if record.event not in STATES:
            return
        book = self.tasks.get(record.task_id)
        if book is None:
            yield from self._make_room()
            book = self.tasks[record.task_id] = TaskBook()
            self.seen += 1
        ended = book.ends
        book.add(seq, record)
        if book.ends and not ended and book.end is not None:
            self._count(book.end)

    def judged(self, task_id: str) -> list[Violation]:
        """Let go of a task; what is wrong with its own records."""
        book = self.tasks.pop(task_id)
        self.unrecorded += book.unrecorded()
        self.unadmitted += not book.admissions
        return violations_of(task_id, book)

    def _make_room(self) -> Iterator[Violation]:
        if len(self.tasks) < self._room:
            return
        for task_id in [task_id for task_id, book in self.tasks.items() if book.ends][: self._let_go]:
            yield from self.judged(task_id)
        self._room = max(self._room, len(self.tasks) + self._let_go)

    def _count(self, end: End) -> None:
        self.ends[end.state] += 1
        usage = self.usage.setdefault((end.tenant, end.pool_id), Usage())
        usage.tasks += 1
        usage.tokens_in += end.tokens_in or 0
        usage.tokens_out += end.tokens_out or 0


def violations_of(task_id: str, book: TaskBook) -> list[Violation]:
    return [Violation(fault=fault, said=said, seq=book.seq, task_id=task_id) for fault, said in book.faults()]


def _end(record: AuditRecord, state: TaskState) -> End:
    return End(
        state=state,
        attempt=record.attempt,
        run_seq=record.run_seq,
        tokens_in=_told(record, "tokens_in"),
        tokens_out=_told(record, "tokens_out"),
        tenant=record.tenant,
        pool_id=record.pool_id,
    )


def _told(record: AuditRecord, name: str) -> int | None:
    value = record.detail.get(name)
    return value if isinstance(value, int) else None


def _reachable() -> dict[TaskState, frozenset[TaskState]]:
    found = {state: set(moves) for state, moves in MOVES.items()}
    for _ in MOVES:
        for states in found.values():
            states.update(*(found[state] for state in tuple(states)))
    return {state: frozenset(states) for state, states in found.items()}


_REACHABLE: Final = _reachable()


def _can_become(before: TaskState, after: TaskState) -> bool:
    """Perhaps over moves that are not on record."""
    return after in _REACHABLE[before]
