"""One engine process: a batch of tasks that share its time.

Tasks in the same phase progress at the same rate, so one counter per phase says how many tokens each has been given
since the engine started, and a task ends its phase when that counter reaches the value it was entered with. A change of
occupancy costs O(log slots), however many tasks are in the batch. A task that was recorded on a live system takes the
time it took there: what shared the batch with it then is in that time.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.scenario import Hardware
from llorch_scheduler.simulator.tasks import SimTask

_EPSILON: Final = 1e-5
"""Tokens. What is nearer to its end than this has ended: rounding of a clock that runs for weeks stays far below."""


class SlotExceeded(AssertionError):
    """More tasks than slots were started on an engine: the core broke its word."""


_Phase = list[tuple[float, int, SimTask]]


class Engine:
    """Calls `done(task)` when a task has its last token."""

    __slots__ = (
        "_busy", "_clock", "_decode_per_ms", "_decoded", "_decoding", "_done", "_entered", "_plan", "_read",
        "_read_per_ms", "_reading", "_recorded", "_slots", "_touched_ms", "stopped",
    )  # fmt: skip

    def __init__(self, hardware: Hardware, slots: int, clock: Clock, done: Callable[[SimTask], None]) -> None:
        self._read_per_ms: Final = hardware.prefill_per_s / 1000
        self._decode_per_ms: Final = [
            1 / (hardware.step_ms + hardware.step_per_task_ms * busy) for busy in range(slots + 1)
        ]
        """Of each task, by the number of tasks in the batch."""
        self._busy = 0
        self._slots: Final = slots
        self._clock: Final = clock
        self._done: Final = done
        self._reading: Final[_Phase] = []
        self._decoding: Final[_Phase] = []
        self._recorded: Final[_Phase] = []
        """By the time they end."""
        self._read = 0.0
        self._decoded = 0.0
        self._entered = 0
        self._touched_ms = clock.now_ms
        self._plan = 0
        self.stopped = False

    def start(self, task: SimTask) -> None:
        """Raises SlotExceeded."""
        if self._busy >= self._slots:
            raise SlotExceeded(f"{task.task_id} was started on an engine whose {self._slots} slots are taken")
        now_ms = task.first_token_ms = self._catch_up()
        self._busy += 1
        self._entered += 1
        if task.served_ms > 0:
            heappush(self._recorded, (now_ms + task.served_ms, self._entered, task))
        elif task.prompt:
            heappush(self._reading, (self._read + task.prompt, self._entered, task))
        else:
            heappush(self._decoding, (self._decoded + task.output, self._entered, task))
        self._plan_next()

    def stop(self) -> None:
        """The process is gone; nothing it had is heard of again."""
        self.stopped = True
        for phase in (self._reading, self._decoding, self._recorded):
            phase.clear()
        self._busy = 0

    def interrupt(self, task: SimTask) -> None:
        """The task leaves its slot before it is done. O(slots)."""
        self._catch_up()
        for phase in (self._reading, self._decoding, self._recorded):
            kept = [entry for entry in phase if entry[2] is not task]
            if len(kept) < len(phase):
                phase[:] = kept
                heapify(phase)
                self._busy -= 1
        self._plan_next()

    def _catch_up(self) -> float:
        """Everything is as of now, which is returned."""
        now_ms = self._clock.now_ms
        passed_ms = now_ms - self._touched_ms
        self._touched_ms = now_ms
        if passed_ms > 0:
            if self._reading:
                self._read += passed_ms * self._read_per_ms / len(self._reading)
            if self._decoding:
                self._decoded += passed_ms * self._decode_per_ms[self._busy]
        return now_ms

    def _plan_next(self) -> None:
        self._plan += 1
        reading, decoding = self._reading, self._decoding
        wait_ms = inf
        if reading:
            wait_ms = (reading[0][0] - self._read) * len(reading) / self._read_per_ms
        if decoding:
            end_ms = (decoding[0][0] - self._decoded) / self._decode_per_ms[self._busy]
            wait_ms = end_ms if end_ms < wait_ms else wait_ms
        if self._recorded:
            wait_ms = min(wait_ms, self._recorded[0][0] - self._touched_ms)
        if wait_ms < inf:
            self._clock.after(wait_ms if wait_ms > 0 else 0.0, self._wake, self._plan)

    def _wake(self, plan: int) -> None:
        if plan != self._plan or self.stopped:
            return
        now_ms = self._catch_up()
        reading, decoding, recorded = self._reading, self._decoding, self._recorded
        while reading and reading[0][0] <= self._read + _EPSILON:
            _, number, task = heappop(reading)
            task.first_token_ms = now_ms
            heappush(decoding, (self._decoded + task.output, number, task))
        ended = []
        while decoding and decoding[0][0] <= self._decoded + _EPSILON:
            ended.append(heappop(decoding)[2])
        while recorded and recorded[0][0] <= now_ms + _EPSILON:
            ended.append(heappop(recorded)[2])
        self._busy -= len(ended)
        self._plan_next()
        for task in ended:
            self._done(task)
