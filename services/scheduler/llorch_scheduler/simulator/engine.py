"""One engine process: a batch of tasks that share its time.

Tasks in the same phase progress at the same rate, so one counter per phase says how many tokens each has been given
since the engine started, and a task ends its phase when that counter reaches the value it was entered with. A change of
occupancy costs O(log slots), however many tasks are in the batch. A task that was recorded on a live system takes the
time it took there: what shared the batch with it then is in that time.

Nobody hears of a prompt that has been read, so the clock wakes the engine for ends only. Prompts that were read
meanwhile are caught up with before anything else changes, each at its own time.
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

_ROUNDING_MS: Final = 1e-3
"""An end that is foreseen again from a later moment may come by less than this sooner."""


class SlotExceeded(Exception):
    """More tasks than slots were started on an engine: the core broke its word."""


_Phase = list[tuple[float, int, SimTask]]


class Engine:
    """Calls `done(task)` when a task has its last token."""

    __slots__ = (
        "_busy", "_clock", "_decode_per_ms", "_decoded", "_decoding", "_done", "_entered", "_no_end_before_ms",
        "_prompt_first", "_read", "_read_per_ms", "_reading", "_recorded", "_slots", "_touched_ms", "_turn_ms",
        "_wake_ms", "_wakes", "stopped",
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
        self._turn_ms = inf
        """When the next prompt is read or the next task ends, if nothing else happens before."""
        self._prompt_first = False
        """It is a prompt."""
        self._no_end_before_ms = inf
        self._wake_ms = inf
        """When the clock wakes it, never after the next end; infinite while nothing is planned."""
        self._wakes = 0
        """The one that was planned last counts."""
        self.stopped = False

    def start(self, task: SimTask) -> None:
        """Raises SlotExceeded."""
        if self._busy >= self._slots:
            raise SlotExceeded(f"{task.task_id} was started on an engine whose {self._slots} slots are taken")
        now_ms = task.first_token_ms = self._clock.now_ms
        self._catch_up(now_ms)
        self._busy += 1
        self._entered += 1
        if task.served_ms > 0:
            heappush(self._recorded, (now_ms + task.served_ms, self._entered, task))
        elif task.prompt:
            heappush(self._reading, (self._read + task.prompt, self._entered, task))
        else:
            heappush(self._decoding, (self._decoded + task.output, self._entered, task))
        self._foresee()
        self._plan()

    def stop(self) -> None:
        """The process is gone; nothing it had is heard of again."""
        self.stopped = True
        for phase in (self._reading, self._decoding, self._recorded):
            phase.clear()
        self._busy = 0

    def interrupt(self, task: SimTask) -> None:
        """The task leaves its slot before it is done. O(slots)."""
        self._catch_up(self._clock.now_ms)
        for phase in (self._reading, self._decoding, self._recorded):
            kept = [entry for entry in phase if entry[2] is not task]
            if len(kept) < len(phase):
                phase[:] = kept
                heapify(phase)
                self._busy -= 1
        self._foresee()
        self._plan()

    def _catch_up(self, now_ms: float) -> None:
        """Everything is as of now, which no end is before."""
        while self._prompt_first and self._turn_ms < now_ms:
            self._progress(self._turn_ms)
            self._foresee()
        passed_ms = now_ms - self._touched_ms
        self._touched_ms = now_ms
        if passed_ms > 0:
            if self._reading:
                self._read += passed_ms * self._read_per_ms / len(self._reading)
            if self._decoding:
                self._decoded += passed_ms * self._decode_per_ms[self._busy]

    def _progress(self, to_ms: float) -> None:
        """To the next turn. Those whose prompts have been read begin to decode."""
        reading, decoding = self._reading, self._decoding
        passed_ms = to_ms - self._touched_ms
        self._touched_ms = to_ms
        if passed_ms > 0 and decoding:
            self._decoded += passed_ms * self._decode_per_ms[self._busy]
        if reading:
            if passed_ms > 0:
                self._read += passed_ms * self._read_per_ms / len(reading)
            most = self._read + _EPSILON
            while reading and reading[0][0] <= most:
                _, number, task = heappop(reading)
                task.first_token_ms = to_ms
                heappush(decoding, (self._decoded + task.output, number, task))

    def _foresee(self) -> None:
        """What happens next, if nothing comes in between. A task whose prompt is still read has all its steps before
        it, and so does not end before they are done."""
        now_ms, reading, decoding = self._touched_ms, self._reading, self._decoding
        per_ms = self._decode_per_ms[self._busy]
        end_ms = (decoding[0][0] - self._decoded) / per_ms if decoding else inf
        if self._recorded and self._recorded[0][0] - now_ms < end_ms:
            end_ms = self._recorded[0][0] - now_ms
        if not reading:
            self._prompt_first = False
            self._turn_ms = self._no_end_before_ms = now_ms + end_ms if end_ms > 0 else now_ms
            return
        turn_ms = (reading[0][0] - self._read) * len(reading) / self._read_per_ms
        self._prompt_first = prompt_first = turn_ms < end_ms
        if not prompt_first:
            turn_ms = end_ms
        for _, _, task in reading:
            steps_ms = task.output / per_ms
            end_ms = steps_ms if steps_ms < end_ms else end_ms
        self._turn_ms = turn_ms = now_ms + turn_ms if turn_ms > 0 else now_ms
        sooner_ms = now_ms + end_ms - _ROUNDING_MS
        self._no_end_before_ms = sooner_ms if sooner_ms > turn_ms else turn_ms

    def _plan(self) -> None:
        """See that the clock wakes it in time. Being woken too early costs less than a new plan with each change."""
        if self._no_end_before_ms < self._wake_ms:
            self._wakes += 1
            self._wake_ms = self._no_end_before_ms
            self._clock.at(self._wake_ms, self._wake, self._wakes)

    def _wake(self, number: int) -> None:
        if number != self._wakes or self.stopped:
            return
        now_ms, self._wake_ms = self._wake_ms, inf
        while self._prompt_first and self._turn_ms < now_ms:
            self._progress(self._turn_ms)
            self._foresee()
        if self._turn_ms > now_ms:
            self._plan()
            return
        self._progress(now_ms)
        decoding, recorded = self._decoding, self._recorded
        ended = []
        if decoding:
            most = self._decoded + _EPSILON
            while decoding and decoding[0][0] <= most:
                ended.append(heappop(decoding)[2])
        while recorded and recorded[0][0] <= now_ms + _EPSILON:
            ended.append(heappop(recorded)[2])
        self._busy -= len(ended)
        self._foresee()
        self._plan()
        for task in ended:
            self._done(task)
