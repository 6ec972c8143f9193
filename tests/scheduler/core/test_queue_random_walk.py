"""Whatever happens, the queue decides as its naive twin does: same task, same time, same reason."""

import random
from typing import Any

import msgspec
import pytest

from llorch_scheduler.core.job import Job
from llorch_scheduler.core.queue import PoolQueue
from llorch_scheduler.core.shape import Shape
from llorch_shared.wire.policy import PreemptionSpec, PrioritySpec, TenantLimits
from llorch_shared.wire.spec import PoolSpec, TimeoutSpec
from scheduler.naive_queue import NEVER, NaiveQueue
from scheduler.queue_world import BATCH, INTERACTIVE, policy, waiting

SHAPES = tuple(Shape(device=device) for device in ("", "cuda:0", "cuda:1"))


class Twins:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 0
        self.number = 0
        self.queued: list[Job] = []
        self.running: list[Job] = []
        self.starts = 0
        self.passed = 0
        spec = self.some_policy()
        self.queue = PoolQueue()
        self.queue.configure(spec, 0)
        self.naive = NaiveQueue(spec)
        self.steps = [self.arrive] * 8 + [self.start] * 8 + [self.end] * 6 + [self.cancel, self.fail, self.come_back]

    def some_policy(self) -> PoolSpec:
        dice = self.dice
        tenants: dict[str, int | TenantLimits] = {
            name: TenantLimits(
                weight=dice.choice([1, 1, 2, 7]),
                max_concurrent=dice.choice([None, None, 1, 3]),
                rps=dice.choice([None, None, 0.5, 20.0]),
                tokens_per_min=dice.choice([None, None, 5_000]),
                kv_mb=dice.choice([None, None, 100]),
            )
            for name in "abcd"
        }
        classes = [
            PrioritySpec(name=each, weight=dice.choice([None, 1, 3]), rate_limit_rps=dice.choice([None, None, 2.0]))
            for each in (INTERACTIVE, BATCH)
        ]
        mode: Any = dice.choice(["disabled", "soft"])
        return policy(
            tenants=tenants,
            classes=classes,
            order=dice.choice(["edf", "fifo"]),
            preemption=msgspec.convert({"mode": mode, "soft_max_in_row": dice.choice([1, 8])}, PreemptionSpec),
            timeouts=TimeoutSpec(wall_ms=dice.choice([500, 600_000])),
        )

    def step(self) -> None:
        self.now += self.dice.choice([0, 0, 1, 20, 200])
        if self.dice.random() < 0.004:
            self.change_policy()
        self.dice.choice(self.steps)()
        self.check()

    def arrive(self) -> None:
        dice = self.dice
        if len(self.queued) > 60:
            return
        for _ in range(dice.randint(1, 3)):
            self.number += 1
            job = waiting(
                self.number,
                dice.choice("abcdefgh"),
                dice.choice([INTERACTIVE, BATCH]),
                cost_ms=dice.randint(1, 400),
                due_ms=self.now + dice.randint(0, 3_000),
                tokens=float(dice.randint(0, 900)),
                kv_mb=dice.choice([0, 10, 60]),
                shape=dice.choice(SHAPES),
            )
            self.push(job)

    def push(self, job: Job) -> None:
        self.queued.append(job)
        self.queue.push(job, self.now)
        self.naive.push(job)

    def start(self) -> None:
        shapes = {shape for shape in SHAPES if self.dice.random() < 0.8}
        pick = self.queue.pick(shapes.__contains__, self.now)
        expected = self.naive.pick(set(shapes), self.now)
        assert (pick and (pick.job, pick.passed_over)) == expected
        if pick is None:
            return
        self.starts += 1
        self.passed += pick.passed_over is not None
        self.queue.took(pick, self.now)
        self.naive.took(pick.job, pick.passed_over, self.now)
        self.queued.remove(pick.job)
        self.running.append(pick.job)

    def leave(self, actual_ms: float | None, tokens: float) -> Job | None:
        if not self.running:
            return None
        job = self.running.pop(self.dice.randrange(len(self.running)))
        self.queue.ended(job, actual_ms, tokens, self.now)
        self.naive.ended(job, actual_ms, tokens, self.now)
        return job

    def end(self) -> None:
        self.leave(self.dice.randint(1, 800), float(self.dice.randint(0, 1_500)))

    def fail(self) -> None:
        self.leave(None, 0.0)

    def come_back(self) -> None:
        job = self.leave(float(self.dice.randint(0, 300)), 0.0)
        if job is not None:
            self.number += 1
            job.order = (0, self.number)
            self.push(job)

    def cancel(self) -> None:
        if self.queued:
            job = self.queued.pop(self.dice.randrange(len(self.queued)))
            assert self.queue.discard(job)
            assert self.naive.discard(job)
            assert not self.queue.discard(job)

    def change_policy(self) -> None:
        spec = self.some_policy()
        self.queue.configure(spec, self.now)
        self.naive.configure(spec)

    def check(self) -> None:
        """Every tag and sum."""
        assert len(self.queue) == len(self.queued)
        for priority, group in self.naive.classes.items():
            queue = self.queue.classes[priority]
            assert queue.tag == group.tag
            assert queue.virtual == group.virtual
            assert list(queue.flows) == list(group.flows)
            waiting_now = [job for job in self.queued if job.record.priority is priority]
            assert queue.size == queue.fresh + sum(job.order[0] == 0 for job in waiting_now) == len(waiting_now)
            assert queue.work_ms == pytest.approx(sum(job.cost_ms for job in waiting_now))
            assert queue.flows_weight == sum(flow.weight for flow in group.flows.values() if flow.jobs)
            for tenant, flow in group.flows.items():
                twin = queue.flows[tenant]
                assert twin.tag == flow.tag
                assert twin.queued == len(flow.jobs)
                assert (twin.wake_ms if twin.throttled else None) == flow.throttled_until
        wakes = [
            flow.throttled_until
            for group in self.naive.classes.values()
            for flow in group.flows.values()
            if flow.throttled_until is not None and flow.throttled_until != NEVER
        ]
        told = self.queue.wake_ms()
        assert told is not None or not wakes
        assert told is None or not wakes or told <= min(wakes)


@pytest.mark.parametrize("seed", range(12))
def test_the_queue_decides_as_its_naive_twin(seed: int) -> None:
    twins = Twins(seed)
    for _ in range(1_000):
        twins.step()
    assert twins.starts > 150


def test_the_walks_pass_classes_over_and_throttle() -> None:
    passed = 0
    for seed in range(12):
        twins = Twins(seed)
        for _ in range(300):
            twins.step()
        passed += twins.passed
    assert passed > 20
