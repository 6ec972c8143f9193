"""How good a pool is at its word: `deadlines_met_ratio` and `predicted_start_error_ratio`."""

from collections import deque
from statistics import median
from typing import Final

from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState

WINDOW: Final = 500
"""Ended tasks that count: one late task is a fifth of a percent."""
STARTS: Final = 200
"""Starts that count."""
_DONE: Final = TaskState.DONE
_NOBODYS: Final = frozenset({TaskState.CANCELLED, TaskState.DROPPED})


class DeadlineTally:
    """Cancelled and dropped tasks say nothing about deadlines; failed and expired ones missed theirs."""

    __slots__ = ("_late", "_window")

    def __init__(self) -> None:
        self._window: Final[dict[Priority, deque[bool]]] = {each: deque(maxlen=WINDOW) for each in CLASSES}
        self._late: Final[dict[Priority, int]] = dict.fromkeys(CLASSES, 0)

    def ended(self, record: RunRecord, due_ms: int) -> None:
        done = record.state is _DONE
        if not done and record.state in _NOBODYS:
            return
        late, priority = not done or record.ended_ms > due_ms, record.priority
        window = self._window[priority]
        more = late - window[0] if len(window) == WINDOW else int(late)
        window.append(late)
        if more:
            self._late[priority] += more

    def counts(self) -> dict[Priority, tuple[int, int]]:
        """How many were in time, of how many; for the classes in which a task has ended."""
        return {each: (len(window) - self._late[each], len(window)) for each, window in self._window.items() if window}


class StartErrors:
    """|real - told| over real waits, of tasks that were told to wait."""

    __slots__ = ("_window",)

    def __init__(self) -> None:
        self._window: Final[dict[Priority, deque[float]]] = {each: deque(maxlen=STARTS) for each in CLASSES}

    def started(self, record: RunRecord, at_ms: int) -> None:
        """For the first time."""
        real_ms = at_ms - record.admitted_ms
        if record.predicted_start_ms > 0 and real_ms > 0:
            self._window[record.priority].append(abs(real_ms - record.predicted_start_ms) / real_ms)

    def medians(self) -> dict[Priority, float]:
        return {each: median(window) for each, window in self._window.items() if window}
