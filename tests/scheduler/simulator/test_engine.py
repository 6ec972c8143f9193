"""The engine's batch, with times that can be worked out by hand."""

import pytest

from llorch_scheduler.simulator.arrivals import Poisson
from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.engine import Engine, SlotExceeded
from llorch_scheduler.simulator.scenario import Hardware
from llorch_scheduler.simulator.tasks import task_of
from llorch_shared.wire.task import Priority
from scheduler.simulator_scenarios import flow

CARD = Hardware(name="card", vram_mb=1, prefill_per_s=1_000, step_ms=8, step_per_task_ms=2)


class Bench:
    def __init__(self, slots: int) -> None:
        self.clock = Clock()
        self.ends: dict[int, float] = {}
        self.engine = Engine(
            CARD, slots, self.clock, lambda task: self.ends.__setitem__(task.number, self.clock.now_ms)
        )
        self._made = 0

    def start(self, *, prompt: int = 0, output: int, at_ms: float = 0) -> None:
        self._made += 1
        task = task_of(
            self._made,
            flow(Poisson(1)),
            0,
            at_ms=0,
            prompt=prompt,
            output=output,
            tenant="t",
            priority=Priority.BATCH,
        )
        self.clock.at(at_ms, self.engine.start, task)

    def run(self) -> dict[int, float]:
        while self.clock.step():
            pass
        return {number: round(at_ms, 6) for number, at_ms in self.ends.items()}


def test_a_task_alone_takes_its_prompt_and_its_steps() -> None:
    bench = Bench(slots=1)
    bench.start(prompt=500, output=10)
    assert bench.run() == {1: 500 + 10 * 10}


def test_a_fuller_batch_makes_longer_steps_until_somebody_leaves() -> None:
    bench = Bench(slots=2)
    bench.start(output=10)
    bench.start(output=20)
    assert bench.run() == {1: 10 * 12, 2: 10 * 12 + 10 * 10}


def test_a_late_task_slows_the_one_that_runs() -> None:
    bench = Bench(slots=2)
    bench.start(output=20)
    bench.start(output=5, at_ms=100)
    assert bench.run() == {2: 100 + 5 * 12, 1: 100 + 5 * 12 + 5 * 10}


def test_prompts_share_the_time_in_which_they_are_read() -> None:
    bench = Bench(slots=2)
    bench.start(prompt=100, output=1)
    bench.start(prompt=100, output=1)
    assert bench.run() == {1: 200 + 12, 2: 200 + 12}


def test_more_tasks_than_slots_is_loud() -> None:
    bench = Bench(slots=1)
    bench.start(output=1)
    bench.start(output=1)
    with pytest.raises(SlotExceeded):
        bench.run()


def test_a_stopped_engine_ends_nothing() -> None:
    bench = Bench(slots=1)
    bench.start(output=10)
    bench.clock.at(50, lambda _: bench.engine.stop())
    assert bench.run() == {}
