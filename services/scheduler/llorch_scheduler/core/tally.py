"""Which part of the lately ended tasks met their deadline, by priority (`deadlines_met_ratio`)."""

from collections import deque
from typing import Final

from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState

WINDOW: Final = 500
"""Ended tasks that count: one late task is a fifth of a percent."""


class DeadlineTally:
    """Cancelled and dropped tasks say nothing about deadlines; failed and expired ones missed theirs."""

    __slots__ = ("_late", "_window")

    def __init__(self) -> None:
        self._window: Final[dict[Priority, deque[bool]]] = {each: deque(maxlen=WINDOW) for each in CLASSES}
        self._late: Final[dict[Priority, int]] = dict.fromkeys(CLASSES, 0)

    def ended(self, record: RunRecord, due_ms: int) -> None:
        if record.state in (TaskState.CANCELLED, TaskState.DROPPED):
            return
        late = record.state is not TaskState.DONE or record.ended_ms > due_ms
        window = self._window[record.priority]
        if len(window) == WINDOW:
            self._late[record.priority] -= window[0]
        window.append(late)
        self._late[record.priority] += late

    def ratios(self) -> dict[Priority, float]:
        """Of the classes in which a task has ended."""
        return {each: 1 - self._late[each] / len(window) for each, window in self._window.items() if window}
