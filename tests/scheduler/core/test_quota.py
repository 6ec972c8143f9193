"""Quotas: never exceeded at any instant, throttled work resumes to the millisecond and holds up nobody else."""

import random
from collections import deque

from llorch_scheduler.core.queue import PoolQueue
from llorch_scheduler.core.quota import Meter
from llorch_shared.wire.policy import PrioritySpec, TenantLimits
from scheduler.queue_world import BATCH, INTERACTIVE, Slots, numbers, policy, queue_of, start, starts, waiting


def limited(**limits: float) -> dict[str, int | TenantLimits]:
    return {"a": TenantLimits(**limits)}  # type: ignore[arg-type]


def test_of_fifteen_ten_start_and_five_wait() -> None:
    queue = queue_of([waiting(number) for number in range(15)], pool=policy(tenants=limited(max_concurrent=10)))
    started = [start(queue) for _ in range(15)]
    assert sum(job is not None for job in started) == 10
    assert len(queue) == 5
    assert queue.wake_ms() is None


def test_an_end_lets_exactly_one_more_start() -> None:
    queue = queue_of([waiting(number) for number in range(5)], pool=policy(tenants=limited(max_concurrent=2)))
    first, _second = start(queue), start(queue)
    assert start(queue) is None
    assert first is not None
    queue.ended(first, 100, 0, 50)
    assert start(queue, 50) is not None
    assert start(queue, 50) is None


def test_a_tenants_tasks_count_over_all_classes() -> None:
    jobs = [waiting(1), waiting(2, "a", BATCH), waiting(3, "b", BATCH)]
    queue = queue_of(jobs, pool=policy(tenants=limited(max_concurrent=1)))
    assert numbers([job for _ in range(3) if (job := start(queue))]) == [1, 3]


def test_who_waits_for_a_quota_holds_up_nobody_else() -> None:
    jobs = [waiting(number) for number in range(50)] + [waiting(100 + number, "b") for number in range(50)]
    queue = queue_of(jobs, pool=policy(tenants=limited(max_concurrent=1)))
    started = [start(queue) for _ in range(51)]
    assert all(started)
    assert start(queue) is None


def test_rps_starts_one_seconds_worth_and_then_one_by_one() -> None:
    queue = queue_of([waiting(number) for number in range(15)], pool=policy(tenants=limited(rps=10)))
    assert len(starts(queue, 15)) == 10
    for step in range(1, 6):
        assert queue.wake_ms() == step * 100
        assert starts(queue, 15, at_ms=step * 100 - 1) == []
        assert len(starts(queue, 15, at_ms=step * 100)) == 1
    assert queue.wake_ms() is None


def test_less_than_one_per_second_still_starts() -> None:
    queue = queue_of([waiting(1), waiting(2)], pool=policy(tenants=limited(rps=0.25)))
    assert numbers(starts(queue, 9)) == [1]
    assert queue.wake_ms() == 4_000
    assert starts(queue, 9, at_ms=3_999) == []
    assert numbers(starts(queue, 9, at_ms=4_000)) == [2]


def test_a_start_that_never_ran_counts_for_no_rate() -> None:
    queue = queue_of([waiting(1), waiting(2)], pool=policy(tenants=limited(rps=1, max_concurrent=1)))
    job = start(queue)
    assert job is not None
    queue.ended(job, None, 0, 5)
    assert start(queue, 5) is not None


def test_tokens_are_expected_at_the_start_and_corrected_at_the_end() -> None:
    jobs = [waiting(number, tokens=400) for number in range(4)]
    queue = queue_of(jobs, pool=policy(tenants=limited(tokens_per_min=1_000)))
    first, second = start(queue), start(queue)
    assert first is not None
    assert second is not None
    assert start(queue) is None
    assert queue.wake_ms() == 12_000
    queue.ended(first, 10, 200, 0)
    assert queue.wake_ms() == 12_000, "looked at again at its time, or when the next pick looks"
    queue.ended(second, 10, 400, 0)
    assert start(queue, 0) is None
    third = start(queue, 12_000)
    assert third is not None
    queue.ended(third, 10, 2_400, 12_000)
    assert start(queue, 12_000) is None
    wake_ms = queue.wake_ms()
    assert wake_ms is not None
    assert start(queue, wake_ms - 1) is None
    assert start(queue, wake_ms) is not None


def test_a_task_of_more_than_a_minutes_tokens_starts_from_a_rested_meter() -> None:
    queue = queue_of([waiting(1, tokens=5_000), waiting(2, tokens=1)], pool=policy(tenants=limited(tokens_per_min=600)))
    assert numbers(starts(queue, 9)) == [1]
    assert queue.wake_ms() == 440_100
    assert numbers(starts(queue, 9, at_ms=440_100)) == [2]


def test_kv_memory_waits_for_running_tasks_to_end() -> None:
    jobs = [waiting(1, kv_mb=60), waiting(2, kv_mb=60), waiting(3, "b", kv_mb=500)]
    queue = queue_of(jobs, pool=policy(tenants=limited(kv_mb=100)))
    first, other = start(queue), start(queue)
    assert first is not None
    assert other is not None
    assert other.record.tenant == "b"
    assert start(queue) is None
    queue.ended(first, 10, 0, 10)
    assert start(queue, 10) is not None


def test_what_can_never_fit_is_told() -> None:
    queue = queue_of(pool=policy(tenants=limited(kv_mb=100)))
    assert queue.never_fits(waiting(1, kv_mb=101))
    assert not queue.never_fits(waiting(1, kv_mb=100))
    assert not queue.never_fits(waiting(1, "b", kv_mb=101))


def test_a_cancel_of_the_task_that_does_not_fit_lets_the_next_pass() -> None:
    large, small = waiting(1, kv_mb=90), waiting(2, kv_mb=10)
    queue = queue_of([waiting(0, kv_mb=50), large, small], pool=policy(tenants=limited(kv_mb=100)))
    assert start(queue) is not None
    assert start(queue) is None
    assert queue.discard(large)
    assert start(queue) is small


def test_a_smaller_task_that_is_due_earlier_is_looked_at() -> None:
    queue = queue_of([waiting(0, kv_mb=50), waiting(1, kv_mb=90)], pool=policy(tenants=limited(kv_mb=100)))
    assert start(queue) is not None
    assert start(queue) is None
    urgent = waiting(2, kv_mb=10, due_ms=5)
    queue.push(urgent, 0)
    assert start(queue) is urgent


def test_a_class_over_its_rate_waits_and_the_other_goes_on() -> None:
    classes = (PrioritySpec(name=INTERACTIVE, rate_limit_rps=2),)
    jobs = [waiting(number) for number in range(5)] + [waiting(10 + number, "b", BATCH) for number in range(5)]
    queue = queue_of(jobs, pool=policy(classes=classes))
    assert [job.record.priority for job in starts(queue, 20)].count(INTERACTIVE) == 2
    assert queue.wake_ms() == 500
    assert starts(queue, 9, at_ms=499) == []
    assert numbers(starts(queue, 9, at_ms=500)) == [2]


def test_other_limits_hold_at_once() -> None:
    queue = queue_of([waiting(number) for number in range(9)], pool=policy(tenants=limited(max_concurrent=1)))
    assert start(queue) is not None
    assert start(queue) is None
    queue.configure(policy(tenants=limited(max_concurrent=3)), 10)
    assert start(queue, 10) is not None
    assert start(queue, 10) is not None
    assert start(queue, 10) is None
    queue.configure(policy(tenants=limited(max_concurrent=2)), 20)
    assert start(queue, 20) is None
    queue.configure(policy(), 30)
    assert start(queue, 30) is not None


def test_a_task_found_running_counts() -> None:
    queue = queue_of(pool=policy(tenants=limited(max_concurrent=1, kv_mb=100)))
    found = waiting(1, kv_mb=80)
    queue.held(found, 0)
    queue.held(found, 0)
    queue.push(waiting(2), 0)
    assert start(queue) is None
    queue.ended(found, 500, 10, 500)
    assert start(queue, 500) is not None


def test_a_meter_is_remembered_while_its_tenant_is_away_and_forgotten_when_it_has_drained() -> None:
    queue = queue_of([waiting(1)], pool=policy(tenants=limited(rps=1)))
    assert len(starts(queue, 1)) == 1
    assert not queue.classes[INTERACTIVE].flows
    queue.push(waiting(2), 400)
    assert start(queue, 400) is None
    assert len(starts(queue, 1, at_ms=1_000)) == 1
    assert len(queue._tenants) == 1
    assert start(queue, 2_000) is None
    assert len(queue._tenants) == 0


def test_a_meter_keeps_its_level_when_its_rate_changes() -> None:
    meter = Meter(0.001, 10)
    meter.add(10, 0)
    meter.rate = 0.01
    assert meter.opens_ms(1, 0) == 100


class Walk:
    """Tenants with random limits; every instant is checked against plain counts."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.limits = {name: self.some_limits() for name in "abcd"}
        self.queue = PoolQueue()
        self.queue.configure(policy(tenants=dict(self.limits)), 0)
        self.slots = Slots(self.queue, depth=self.dice.choice([4, 30]))
        self.started: dict[str, deque[int]] = {name: deque() for name in self.limits}
        self.tokens: dict[str, deque[tuple[int, float]]] = {name: deque() for name in self.limits}
        self.number = 0
        self.throttled = 0

    def some_limits(self) -> TenantLimits:
        dice = self.dice
        return TenantLimits(
            max_concurrent=dice.choice([None, 1, 3]),
            rps=dice.choice([None, 0.5, 5.0]),
            tokens_per_min=dice.choice([None, 3_000]),
            kv_mb=dice.choice([None, 100]),
        )

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.arrive()
            self.settle()
            free = len(self.slots.running) < self.slots.depth
            wake_ms = self.queue.wake_ms() if free else None
            end_ms = self.slots.running[0][0] if self.slots.running else None
            times = [self.slots.now + self.dice.randint(1, 300), *(each for each in (wake_ms, end_ms) if each)]
            if wake_ms is not None:
                assert wake_ms > self.slots.now
                self.throttled += 1
                if min(times) > wake_ms - 1 > self.slots.now:
                    self.slots.now = wake_ms - 1
                    assert self.slots.fill() == [], "nothing may start before the time that was told"
            self.slots.now = min(times)
            while self.slots.running and self.slots.running[0][0] <= self.slots.now:
                self.slots.step()

    def arrive(self) -> None:
        for _ in range(self.dice.randint(0, 3)):
            self.number += 1
            tokens = self.dice.choice([0.0, 100.0, 500.0])
            job = waiting(
                self.number,
                self.dice.choice("abcde"),
                self.dice.choice((INTERACTIVE, BATCH)),
                cost_ms=self.dice.randint(10, 2_000),
                tokens=tokens,
                kv_mb=self.dice.choice([0, 20, 60]),
                due_ms=self.dice.randint(1, 10**6),
            )
            self.queue.push(job, self.slots.now)

    def settle(self) -> None:
        known = len(self.slots.log)
        self.slots.fill()
        for at_ms, job in self.slots.log[known:]:
            if job.record.tenant in self.limits:
                self.started[job.record.tenant].append(at_ms)
                self.tokens[job.record.tenant].append((at_ms, job.tokens))
        for name, limits in self.limits.items():
            running = [job for *_, job in self.slots.running if job.record.tenant == name]
            assert limits.max_concurrent is None or len(running) <= limits.max_concurrent
            assert limits.kv_mb is None or sum(job.est_kv_mb for job in running) <= limits.kv_mb

    def check_rates(self) -> None:
        """In every window: at most the burst and what the rate adds in it."""
        for name, limits in self.limits.items():
            starts_of, tokens_of = list(self.started[name]), list(self.tokens[name])
            for first in range(0, len(starts_of), 7):
                for last in range(first, len(starts_of), 3):
                    window_ms = starts_of[last] - starts_of[first]
                    if limits.rps is not None:
                        assert last - first + 1 <= max(1.0, limits.rps) + limits.rps * window_ms / 1_000 + 1e-3
                    if limits.tokens_per_min is not None:
                        used = sum(tokens for _, tokens in tokens_of[first : last + 1])
                        assert used <= limits.tokens_per_min * (1 + window_ms / 60_000) + 1e-3


def test_no_quota_is_exceeded_at_any_instant() -> None:
    throttled = 0
    for seed in range(8):
        walk = Walk(seed)
        walk.run(400)
        walk.check_rates()
        throttled += walk.throttled
    assert throttled > 200


def test_whatever_is_throttled_starts_in_the_end() -> None:
    walk = Walk(99)
    walk.run(300)
    slots = walk.slots
    while len(walk.queue):
        slots.fill()
        wake_ms = walk.queue.wake_ms() if len(slots.running) < slots.depth else None
        slots.now = min(each for each in (wake_ms, slots.running[0][0] if slots.running else None) if each is not None)
        while slots.running and slots.running[0][0] <= slots.now:
            slots.step()
    assert len(slots.log) == walk.number
