"""What is remembered of deadlines and of what was foretold."""

from llorch_scheduler.core.tally import STARTS, WINDOW, DeadlineTally, StartErrors
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState
from scheduler.core_world import task_id

HIGH, LOW = Priority.INTERACTIVE, Priority.BATCH


def record(state: TaskState = TaskState.DONE, priority: Priority = HIGH, **fields: int) -> RunRecord:
    return RunRecord(
        task_id=task_id(1),
        state=state,
        pool_id="p1",
        lane="l",
        correlation_id="c",
        tenant="t",
        priority=priority,
        admitted_ms=0,
        **fields,
    )


def test_late_failed_and_expired_tasks_missed_their_deadline_and_cancelled_ones_do_not_count() -> None:
    tally = DeadlineTally()
    tally.ended(record(ended_ms=10), due_ms=10)
    tally.ended(record(ended_ms=11), due_ms=10)
    tally.ended(record(TaskState.EXPIRED), due_ms=10)
    tally.ended(record(TaskState.FAILED), due_ms=10)
    tally.ended(record(TaskState.CANCELLED), due_ms=10)
    tally.ended(record(TaskState.DROPPED), due_ms=10)
    tally.ended(record(priority=LOW), due_ms=10)
    assert tally.counts() == {HIGH: (1, 4), LOW: (1, 1)}


def test_only_the_last_tasks_count() -> None:
    tally = DeadlineTally()
    for _ in range(WINDOW):
        tally.ended(record(TaskState.FAILED), due_ms=10)
    for _ in range(WINDOW):
        tally.ended(record(), due_ms=10)
    assert tally.counts() == {HIGH: (WINDOW, WINDOW)}


def test_the_median_of_what_was_foretold_wrongly() -> None:
    errors = StartErrors()
    for told_ms in (100, 150, 80):
        errors.started(record(predicted_start_ms=told_ms), at_ms=100)
    errors.started(record(), at_ms=100)
    assert errors.medians() == {HIGH: 0.2}
    for _ in range(STARTS):
        errors.started(record(predicted_start_ms=100), at_ms=100)
    assert errors.medians() == {HIGH: 0.0}
