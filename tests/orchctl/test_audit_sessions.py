"""What sessions have spent, rebuilt from audit records, against their accounts and run records."""

from typing import Any

import msgspec

from llorch_ctl.core.audit_compare import SETTLE_MS
from llorch_ctl.core.audit_sessions import SessionBooks, unsettled
from llorch_ctl.core.findings import Fault
from llorch_shared import session_account
from llorch_shared.session_account import Used
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import SessionPolicy, SessionRecord, SessionRequest, SessionTerms
from llorch_shared.wire.task import Priority, TaskState


def account(*tasks: str) -> SessionRecord:
    record = session_account.opened("s", "a", SessionPolicy(), SessionRequest(), 0)
    for task in tasks:
        record = session_account.settle(record, Used(task, 10, 4, 12, "p1", "r1"), 1)
    return record


def settled(task: str, *, tokens: int = 10) -> AuditRecord:
    detail: dict[str, Any] = {"session_id": "s", "tokens": tokens, "time_ms": 4}
    return AuditRecord(
        event=AuditEvent.SESSION_SETTLED, task_id=task, at_ms=1, actor="poold/n", tenant="a", detail=detail
    )


def run(task: str, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "task_id": task,
        "state": TaskState.DONE,
        "pool_id": "p1",
        "lane": "bus",
        "correlation_id": "c",
        "tenant": "a",
        "priority": Priority.BATCH,
        "admitted_ms": 1,
        "ended_ms": 5,
        "tokens_out": 10,
        "decode_ms": 4,
        "session": SessionTerms(session_id="s"),
    }
    return RunRecord(**{**fields, **changes})


def faults(books: SessionBooks, record: SessionRecord) -> list[Fault]:
    return [violation.fault for violation in books.compare(record)]


def test_an_account_is_the_sum_of_what_is_on_record() -> None:
    books = SessionBooks()
    for task in ("t1", "t2"):
        assert not list(books.add(1, settled(task)))
        books.saw(run(task))
    assert faults(books, account("t1", "t2")) == []
    assert [(line.tasks, line.tokens, line.cost) for line in books.lines] == [(2, 20, 0.00004)]


def test_a_settlement_whose_writer_was_killed_is_taken_from_the_run_record() -> None:
    books = SessionBooks()
    list(books.add(1, settled("t1")))
    assert books.missing(account("t1", "t2")) == ["t2"]
    books.saw(run("t2"))
    assert faults(books, account("t1", "t2")) == []
    assert books.unrecorded == 1


def test_what_was_paid_for_twice_or_otherwise_is_found() -> None:
    books = SessionBooks()
    list(books.add(1, settled("t1")))
    assert [each.fault for each in books.add(2, settled("t1"))] == [Fault.SETTLED_TWICE]
    list(books.add(3, settled("t2", tokens=11)))
    books.saw(run("t2"))
    assert faults(books, account("t1", "t2")) == [Fault.SESSION_DIFFERS, Fault.SESSION_DIFFERS]


def test_an_account_that_was_changed_is_found() -> None:
    books = SessionBooks()
    list(books.add(1, settled("t1")))
    record = account("t1")
    cheaper = msgspec.structs.replace(record, spent=msgspec.structs.replace(record.spent, nano=1))
    assert faults(books, cheaper) == [Fault.SESSION_DIFFERS]
    assert faults(books, msgspec.structs.replace(record, spent=account().spent)) == [Fault.SESSION_DIFFERS]


def test_an_end_that_nobody_paid_for_is_found_after_a_while() -> None:
    ended = run("t2")
    assert unsettled(ended, account("t1"), now_ms=5 + SETTLE_MS) is None
    found = unsettled(ended, account("t1"), now_ms=6 + SETTLE_MS)
    assert found is not None
    assert found.fault is Fault.UNSETTLED
    assert unsettled(ended, account("t2"), now_ms=2 * SETTLE_MS) is None
    assert unsettled(run("t2", session=None), None, now_ms=2 * SETTLE_MS) is None
