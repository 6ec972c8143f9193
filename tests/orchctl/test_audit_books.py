"""What follows from audit records about tasks and usage, and how it compares with run records."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llorch_ctl.core.audit_books import Books, TaskBook
from llorch_ctl.core.audit_compare import SETTLE_MS, differences, gone
from llorch_ctl.core.findings import Fault
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState

E = AuditEvent
TASK = "00000000-0000-4000-8000-000000000001"
Move = tuple[AuditEvent, int, int]
"""(event, run sequence, attempt)."""

LIVES: list[list[Move]] = [
    [(E.ADMITTED, 0, 0), (E.PLACED, 5, 1), (E.RUNNING, 6, 1), (E.DONE, 9, 1)],
    [(E.ADMITTED, 0, 0), (E.PLACED, 0, 1), (E.RUNNING, 6, 1), (E.DONE, 9, 1)],
    [(E.ADMITTED, 0, 0), (E.CANCELLED, 5, 1)],
    [(E.ADMITTED, 0, 0), (E.PLACED, 5, 1), (E.REQUEUED, 6, 1), (E.PLACED, 7, 1), (E.RUNNING, 8, 1), (E.FAILED, 9, 1)],
    [(E.ADMITTED, 0, 0), (E.PLACED, 5, 1), (E.RUNNING, 6, 1), (E.PREEMPTED, 7, 1), (E.PLACED, 8, 2), (E.RUNNING, 9, 2)],
    [(E.ADMITTED, 0, 0), (E.PLACED, 5, 1), (E.RUNNING, 6, 1), (E.REQUEUED, 7, 2), (E.CANCELLED, 8, 2)],
    [(E.ADMITTED, 0, 0), (E.EXPIRED, 3, 1)],
    [(E.ADMITTED, 0, 0), (E.DROPPED, 3, 1)],
]


def record(event: AuditEvent, run_seq: int, attempt: int, **more: Any) -> AuditRecord:
    fields: dict[str, Any] = {"task_id": TASK, "at_ms": 1, "actor": "x", "tenant": "acme", "pool_id": "p"} | more
    return AuditRecord(event=event, run_seq=run_seq, attempt=attempt, **fields)


def book(*moves: Move, **more: Any) -> TaskBook:
    made = TaskBook()
    for seq, move in enumerate(moves, start=1):
        made.add(seq, record(*move, **more))
    return made


def faults(*moves: Move) -> list[Fault]:
    return [fault for fault, _ in book(*moves).faults()]


def run(state: TaskState, **fields: Any) -> RunRecord:
    values: dict[str, Any] = {
        "task_id": TASK,
        "state": state,
        "pool_id": "p",
        "lane": "bus",
        "correlation_id": "c",
        "tenant": "acme",
        "priority": Priority.BATCH,
        "admitted_ms": 1,
        "ended_ms": 2,
        **fields,
    }
    return RunRecord(**values)


@pytest.mark.parametrize("life", LIVES)
def test_a_life_is_legal_in_whatever_order_its_records_were_stored(life: list[Move]) -> None:
    for order in permutations(life):
        assert faults(*order) == []
        assert book(*order).unrecorded() == 0


@given(st.sampled_from(LIVES), st.data())
def test_moves_that_nobody_told_are_counted_and_no_violation(life: list[Move], data: st.DataObject) -> None:
    kept = [move for move in life if data.draw(st.booleans())]
    assert faults(*kept) == []


def test_a_done_task_without_its_placement_has_an_unrecorded_move() -> None:
    assert book((E.ADMITTED, 0, 0), (E.RUNNING, 6, 1), (E.DONE, 9, 1)).unrecorded() == 1


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ((E.CANCELLED, 10, 1), Fault.ENDED_TWICE),
        ((E.DONE, 9, 1), Fault.ENDED_TWICE),
        ((E.ADMITTED, 0, 0), Fault.ADMITTED_TWICE),
        ((E.PLACED, 10, 2), Fault.ILLEGAL_MOVE),
        ((E.RUNNING, 10, 1), Fault.ILLEGAL_MOVE),
        ((E.PLACED, 7, 0), Fault.ILLEGAL_MOVE),
    ],
)
def test_what_cannot_have_been_is_found(more: Move, fault: Fault) -> None:
    for order in permutations([*LIVES[0], more]):
        assert fault in faults(*order)


def test_ends_and_tokens_are_summed_by_tenant_and_pool() -> None:
    books = Books()
    for number, tenant in enumerate(["acme", "acme", "zeta"]):
        told = {"tokens_in": 3, "tokens_out": 10 + number}
        for event, run_seq in ((E.ADMITTED, 0), (E.RUNNING, 4), (E.DONE, 5)):
            list(books.add(number, record(event, run_seq, 1, task_id=f"t{number}", tenant=tenant, detail=told)))
    list(books.add(9, record(E.BREAKER, 0, 0, task_id="p")))
    assert (books.seen, dict(books.ends)) == (3, {TaskState.DONE: 3})
    used = {key: (usage.tasks, usage.tokens_in, usage.tokens_out) for key, usage in books.usage.items()}
    assert used == {("acme", "p"): (2, 6, 21), ("zeta", "p"): (1, 3, 12)}


def test_no_more_tasks_are_held_than_allowed_and_who_is_let_go_is_judged() -> None:
    books, found = Books(tasks_held_max=50), []
    for number in range(500):
        for event, run_seq in ((E.ADMITTED, 0), (E.DONE, 5), *([(E.FAILED, 6)] if number == 7 else [])):
            found += books.add(number, record(event, run_seq, 1, task_id=f"t{number}"))
        assert len(books.tasks) <= 50
    assert {violation.task_id for violation in found} == {"t7"}
    assert (books.seen, books.ends[TaskState.DONE]) == (500, 500)


DONE = [(E.ADMITTED, 0, 0), (E.RUNNING, 6, 1), (E.DONE, 9, 1)]
TOKENS = {"tokens_in": 3, "tokens_out": 10}


def told(made: TaskBook, live: RunRecord, seq: int = 9, now_ms: int = SETTLE_MS + 3) -> list[Fault]:
    return [fault for fault, _ in differences(made, live, seq, now_ms=now_ms)]


def test_an_end_on_record_is_compared_with_the_run_record() -> None:
    audited = book(*DONE, detail=TOKENS)
    assert told(audited, run(TaskState.DONE, **TOKENS)) == []
    for live, seq in (
        (run(TaskState.FAILED, **TOKENS), 9),
        (run(TaskState.DONE, **TOKENS | {"tokens_out": 11}), 9),
        (run(TaskState.DONE, **TOKENS | {"tokens_in": 4}), 9),
        (run(TaskState.DONE, attempt=2, **TOKENS), 9),
        (run(TaskState.DONE, tenant="zeta", **TOKENS), 9),
        (run(TaskState.DONE, **TOKENS), 10),
        (run(TaskState.RUNNING, **TOKENS), 9),
    ):
        assert told(audited, live, seq) == [Fault.DIFFERS]


def test_tokens_that_an_earlier_release_does_not_tell_are_not_compared() -> None:
    assert told(book((E.CANCELLED, 9, 1)), run(TaskState.CANCELLED, tokens_out=4)) == []


def test_an_end_that_nobody_told_is_a_violation_after_a_while() -> None:
    unaudited = book(*DONE[:2])
    assert told(unaudited, run(TaskState.DONE)) == [Fault.END_MISSING]
    assert told(unaudited, run(TaskState.DONE), now_ms=SETTLE_MS) == []
    assert told(TaskBook(), run(TaskState.DONE)) == [Fault.END_MISSING]


def test_a_task_under_way_is_none_but_a_move_that_the_run_record_has_not_made_is() -> None:
    under_way = book(*DONE[:2])
    assert told(under_way, run(TaskState.RUNNING, ended_ms=0), 6) == []
    assert told(under_way, run(TaskState.PLACED, ended_ms=0), 5) == [Fault.DIFFERS]


def test_a_run_record_that_is_kept_no_longer_is_told_from_one_that_is_gone() -> None:
    ended = book(*DONE)
    assert not list(gone(ended, runs_from_seq=10))
    assert [fault for fault, _ in gone(ended, runs_from_seq=9)] == [Fault.RUN_GONE]
