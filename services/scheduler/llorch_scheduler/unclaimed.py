"""First placements between the signal to their node and the record of their task.

The claim of the node is that record, so a task waits for two synced writes instead of three: its admission and its
claim. What no node has claimed a moment later is recorded as placed by the scheduler and stored for its node, which has
not heard the signal, or has to look where that record stands. Until there is a record the admission stays in its queue:
whoever takes over reads it there and places it again, and of two nodes that claim it one is refused.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from llorch_scheduler.core.effects import Place
from llorch_shared.wire.run import RunRecord

MOMENT_S: Final = 0.03
"""A node that lives claims within a few milliseconds."""
AGAIN_S: Final = 1.0
"""After the bus did not take the record."""


class _Sent(NamedTuple):
    effect: Place
    timer: asyncio.TimerHandle


class Unclaimed:
    """`late` is told what nobody has claimed, `recorded` what has a record that was not written here, and that."""

    def __init__(self, *, late: Callable[[Place], None], recorded: Callable[[Place, RunRecord], None]) -> None:
        self._late: Final = late
        self._recorded: Final = recorded
        self._sent: Final[dict[str, _Sent]] = {}
        """By task. Bounded by the slots."""

    def sent(self, effect: Place) -> None:
        """A claim may come for a moment."""
        self._wait(effect, MOMENT_S)

    def not_recorded(self, effect: Place) -> None:
        """It is not known whether the record stands."""
        self._wait(effect, AGAIN_S)

    def _wait(self, effect: Place, wait_s: float) -> None:
        task_id = effect.record.task_id
        timer = asyncio.get_running_loop().call_later(wait_s, self._expired, task_id)
        self._sent[task_id] = _Sent(effect, timer)

    def _remove(self, task_id: str) -> Place | None:
        sent = self._sent.pop(task_id, None)
        if sent is None:
            return None
        sent.timer.cancel()
        return sent.effect

    def run_changed(self, record: RunRecord) -> None:
        """This was stored. Our own record is confirmed by the write that is repeated, which its task waits for."""
        sent = self._sent.get(record.task_id)
        if sent is not None and record != sent.effect.record:
            self._remove(record.task_id)
            self._recorded(sent.effect, record)

    def _expired(self, task_id: str) -> None:
        if (effect := self._remove(task_id)) is not None:
            self._late(effect)

    def hand_over(self) -> None:
        """Wait for no claim any more."""
        for task_id in list(self._sent):
            self._expired(task_id)
