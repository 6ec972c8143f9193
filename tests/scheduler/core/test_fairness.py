"""Shares: against the fluid ideal, against the bounds that `queue` states, and in the situations people ask about."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from llorch_scheduler.core.job import Job
from llorch_scheduler.core.queue import PoolQueue
from llorch_shared.wire.policy import PrioritySpec, TenantLimits
from llorch_shared.wire.task import Priority
from scheduler.fluid import Fluid
from scheduler.queue_world import BATCH, FAR, INTERACTIVE, Slots, policy, queue_of, start, starts, waiting

CLASSES = (INTERACTIVE, BATCH)


def jain(values: Iterable[float]) -> float:
    parts = list(values)
    return sum(parts) ** 2 / (len(parts) * sum(each * each for each in parts))


class Backlog:
    """Flows that always wait: each start is replaced by another task of the same flow. Flows may join later."""

    def __init__(self, seed: int, *, mistaken: bool) -> None:
        self.dice = dice = random.Random(seed)
        self.depth = dice.choice([1, 1, 2, 3, 8])
        names = [f"t{number}" for number in range(dice.randint(2, 6))]
        self.weights = {name: dice.choice([1, 2, 3, 5, 10]) for name in names}
        self.cost_max = {name: dice.choice([10, 100, 1_000]) for name in names}
        self.mistaken = mistaken
        self.class_weights = dict.fromkeys(CLASSES, 1) if dice.random() < 0.5 else {INTERACTIVE: 8, BATCH: 1}
        classes = [PrioritySpec(name=priority, weight=weight) for priority, weight in self.class_weights.items()]
        self.queue = PoolQueue()
        self.queue.configure(policy(tenants=dict(self.weights), classes=classes), 0)
        self.slots = Slots(self.queue, self.depth)
        self.flows = [(priority, name) for priority in CLASSES for name in names]
        dice.shuffle(self.flows)
        self.number = 0

    def push(self, flow: tuple[Priority, str]) -> None:
        self.number += 1
        priority, name = flow
        real_ms = self.dice.randint(1, self.cost_max[name])
        told_ms = self.dice.randint(1, self.cost_max[name]) if self.mistaken else real_ms
        job = waiting(self.number, name, priority, cost_ms=told_ms)
        self.slots.real_ms[job.task_id] = real_ms
        self.queue.push(job, self.slots.now)

    def join(self, flow: tuple[Priority, str]) -> None:
        for _ in range(3 * self.depth):
            self.push(flow)

    def step(self) -> None:
        known = len(self.slots.log)
        if self.slots.running:
            self.slots.step()
        else:
            self.slots.fill()
        for _, job in self.slots.log[known:]:
            self.push((job.record.priority, job.record.tenant))


def check_bounds(world: Backlog, since: Counter[tuple[Priority, str]], joined: list[tuple[Priority, str]]) -> None:
    """The pairwise bound of `queue` for tenants of a class and for classes, and what follows against the ideal."""
    factor = 2 * world.depth + 1 if world.mistaken else 1
    work = {flow: world.slots.work[flow] - since[flow] for flow in joined}
    for priority in CLASSES:
        names = [name for each, name in joined if each is priority]
        bound = {name: world.cost_max[name] / world.weights[name] for name in names}
        served = {name: work[priority, name] / world.weights[name] for name in names}
        for one in names:
            for other in names:
                assert abs(served[one] - served[other]) <= factor * (bound[one] + bound[other]) or one == other
    both = {priority: sum(value for flow, value in work.items() if flow[0] is priority) for priority in CLASSES}
    if {priority for priority, _ in joined} == set(CLASSES):
        bounds = {
            priority: max(world.cost_max[name] for each, name in joined if each is priority) / weight
            for priority, weight in world.class_weights.items()
        }
        difference = both[INTERACTIVE] / world.class_weights[INTERACTIVE] - both[BATCH] / world.class_weights[BATCH]
        assert abs(difference) <= factor * (bounds[INTERACTIVE] + bounds[BATCH])


@pytest.mark.parametrize("mistaken", [False, True], ids=["known_costs", "mistaken_costs"])
def test_service_per_weight_differs_by_no_more_than_the_stated_bound(mistaken: bool) -> None:
    for seed in range(30):
        world = Backlog(seed, mistaken=mistaken)
        joined: list[tuple[Priority, str]] = []
        for flow in world.flows:
            world.join(flow)
            joined.append(flow)
            since = world.slots.work.copy()
            for _ in range(60):
                world.step()
                check_bounds(world, since, joined)


def test_the_ideal_of_flows_that_always_wait_is_met_within_the_bound() -> None:
    """Against the fluid model: f differs by no more than w_f · Σ w_g · (c_f / w_f + c_g / w_g) / Σ w."""
    for seed in range(40):
        dice = random.Random(seed)
        weights = {f"t{number}": dice.choice([1, 2, 5, 10]) for number in range(dice.randint(2, 7))}
        cost_max = {name: dice.choice([10, 100, 1_000]) for name in weights}
        queue = queue_of(pool=policy(tenants=dict(weights)))
        fluid = Fluid({INTERACTIVE: 1}, {(INTERACTIVE, name): weight for name, weight in weights.items()})
        served: Counter[str] = Counter()
        for number in range(40 * len(weights)):
            name = list(weights)[number % len(weights)]
            queue.push(waiting(number, name, cost_ms=dice.randint(1, cost_max[name])), 0)
            fluid.arrive((INTERACTIVE, name), 10.0**9)
        total = sum(weights.values())
        while all(queue.classes[INTERACTIVE].flows[name].queued for name in weights):
            job = start(queue)
            assert job is not None
            served[job.record.tenant] += round(job.cost_ms)
            fluid.serve(job.cost_ms)
            for name, weight in weights.items():
                apart = abs(served[name] - fluid.served[INTERACTIVE, name])
                bounds = (
                    weights[other] * (cost_max[name] / weight + cost_max[other] / weights[other])
                    for other in weights
                    if other != name
                )
                assert apart <= weight * sum(bounds) / total + 1e-6


class ComingAndGoing:
    """Flows with bursts and pauses, beside a fluid server that gets the same tasks and does the same amount of work."""

    def __init__(self, seed: int, groups: tuple[Priority, ...]) -> None:
        dice = random.Random(seed)
        self.depth = dice.choice([1, 1, 2, 4, 8])
        names = [f"t{number}" for number in range(dice.randint(2, 6))]
        self.weights = {name: dice.choice([1, 1, 2, 3, 5, 10]) for name in names}
        flows = [(group, name) for group in groups for name in names]
        most = {flow: dice.choice([20, 100, 500]) for flow in flows}
        self.queue = queue_of(pool=policy(tenants=dict(self.weights)))
        self.slots = Slots(self.queue, self.depth)
        self.fluid = Fluid({INTERACTIVE: 8, BATCH: 1}, {flow: self.weights[flow[1]] for flow in flows})
        self.served = dict.fromkeys(flows, 0.0)
        arrivals = []
        for flow in flows:
            at_ms = 0
            for _ in range(dice.randint(1, 5)):
                at_ms += dice.randint(0, 20_000)
                arrivals += [(at_ms, flow, dice.randint(1, most[flow])) for _ in range(dice.randint(1, 40))]
        self.arrivals = sorted(arrivals, key=lambda each: each[0])
        self.bound = (self.depth + 1) * sum(most.values())

    def run(self, look: Callable[[], None]) -> None:
        number = 0
        while number < len(self.arrivals) or self.slots.running:
            arrives_ms = self.arrivals[number][0] if number < len(self.arrivals) else FAR
            ends_ms = self.slots.running[0][0] if self.slots.running else FAR
            self.work(min(arrives_ms, ends_ms))
            if ends_ms <= arrives_ms:
                self.slots.step()
            while number < len(self.arrivals) and self.arrivals[number][0] == self.slots.now:
                _, flow, cost_ms = self.arrivals[number]
                number += 1
                self.queue.push(waiting(number, flow[1], flow[0], cost_ms=cost_ms), self.slots.now)
                self.fluid.arrive(flow, cost_ms)
            self.slots.fill()
            look()

    def work(self, until_ms: int) -> None:
        elapsed_ms = until_ms - self.slots.now
        for *_, job in self.slots.running:
            self.served[job.record.priority, job.record.tenant] += elapsed_ms
        self.fluid.serve(elapsed_ms * len(self.slots.running))
        self.slots.now = until_ms


@pytest.mark.parametrize("groups", [(INTERACTIVE,), CLASSES], ids=["one_class", "two_classes"])
def test_flows_that_come_and_go_stay_near_the_fluid_ideal(groups: tuple[Priority, ...]) -> None:
    """At any time, no flow is further from it than one longest task of every flow for each slot, and one more."""
    for seed in range(30):
        world = ComingAndGoing(seed, groups)

        def look(world: ComingAndGoing = world) -> None:
            for flow, served in world.served.items():
                assert abs(served - world.fluid.served[flow]) <= world.bound

        world.run(look)
        assert sum(world.served.values()) == pytest.approx(sum(cost for *_, cost in world.arrivals))


def test_a_flow_that_waits_is_passed_by_a_bounded_number_of_others() -> None:
    """Between two starts of f, g makes at most c_f / w_f · w_g / c_g + 1."""
    for seed in range(20):
        dice = random.Random(seed)
        weights = {f"t{number}": dice.choice([1, 2, 5, 50]) for number in range(dice.randint(2, 8))}
        costs = {name: dice.choice([10, 100, 1_000]) for name in weights}
        queue = queue_of(pool=policy(tenants=dict(weights)))
        number = 0
        for name in weights:
            for _ in range(2):
                number += 1
                queue.push(waiting(number, name, cost_ms=costs[name]), 0)
        passed: dict[str, Counter[str]] = {name: Counter() for name in weights}
        for _ in range(2_000):
            (job,) = starts(queue, 1)
            name = job.record.tenant
            number += 1
            queue.push(waiting(number, name, cost_ms=costs[name]), 0)
            for other, weight in weights.items():
                if other != name:
                    passed[other][name] += 1
                    share = costs[other] / weight * weights[name] / costs[name]
                    assert passed[other][name] <= share + 1 + 1e-9
            passed[name].clear()


def test_batch_gets_its_ninth_under_a_flood_of_interactive_work() -> None:
    queue = queue_of([waiting(number, "a") for number in range(900)])
    for number in range(900, 1_000):
        queue.push(waiting(number, "b", BATCH), 0)
    log = [job.record.priority for job in starts(queue, 450)]
    gaps = [at for at, priority in enumerate(log) if priority is BATCH]
    assert len(gaps) == 50
    assert max(later - sooner for sooner, later in pairwise(gaps)) <= 9


def test_a_noisy_neighbour_of_fifty_to_one_does_not_matter() -> None:
    """Jain index of the slot time over a minute, with costs that differ as much."""
    dice = random.Random(7)
    queue = queue_of(pool=policy())
    slots = Slots(queue, depth=4)
    number = 0
    for second in range(60):
        for name, count in (("noisy", 500), *((f"quiet{each}", 10) for each in range(5))):
            for _ in range(count):
                number += 1
                queue.push(waiting(number, name, cost_ms=dice.randint(100, 700)), slots.now)
        slots.run((second + 1) * 1_000)
    assert jain(slots.work.values()) >= 0.95


@pytest.mark.parametrize("mistaken", [False, True], ids=["known_costs", "mistaken_costs"])
def test_in_400_requests_shares_are_the_weights(mistaken: bool) -> None:
    dice = random.Random(3)
    for one, other, target in (
        ((INTERACTIVE, "a"), (INTERACTIVE, "b"), 5 / 6),
        ((INTERACTIVE, "a"), (BATCH, "a"), 8 / 9),
    ):
        queue = queue_of(pool=policy(tenants={"a": 5, "b": 1}))
        slots = Slots(queue, depth=2)
        for number in range(800):
            priority, name = one if number % 2 else other
            told_ms = dice.randint(50, 150)
            job = waiting(number, name, priority, cost_ms=told_ms)
            slots.real_ms[job.task_id] = dice.randint(50, 150) if mistaken else told_ms
            queue.push(job, 0)
        slots.fill()
        while len(slots.log) < 400:
            slots.step()
        assert abs(slots.work[one] / slots.work.total() - target) < 0.03


@pytest.mark.parametrize("known", [True, False], ids=["expected", "found_out_at_the_end"])
def test_who_generates_ten_times_as_much_starts_a_tenth_as_often(known: bool) -> None:
    queue = queue_of()
    slots = Slots(queue)
    for number in range(2_000):
        name, real_ms = ("long", 1_000) if number % 2 else ("short", 100)
        job = waiting(number, name, cost_ms=real_ms if known else 300)
        slots.real_ms[job.task_id] = real_ms
        queue.push(job, 0)
    slots.fill()
    while len(slots.log) < 550:
        slots.step()
    counts = Counter(job.record.tenant for _, job in slots.log)
    assert counts["short"] / counts["long"] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(("told_ms", "real_ms", "next_five"), [(100, 400, "bbbab"), (400, 100, "aaaab")])
def test_the_cost_is_corrected_in_both_directions(told_ms: int, real_ms: int, next_five: str) -> None:
    """Both have started one task, and a's was not what it was said to be."""
    queue = queue_of([waiting(number, "ab"[number % 2], cost_ms=told_ms) for number in range(2)])
    first, second = start(queue), start(queue)
    assert first is not None
    assert second is not None
    for number in range(2, 40):
        queue.push(waiting(number, "ab"[number % 2], cost_ms=100), 0)
    queue.ended(first, real_ms, 0, 500)
    assert "".join(job.record.tenant for job in starts(queue, 5)) == next_five
    queue.ended(second, told_ms, 0, 500)


def test_a_start_that_never_ran_costs_nothing() -> None:
    queue = queue_of([waiting(number, "ab"[number % 2]) for number in range(40)])
    failed = start(queue)
    assert failed is not None
    queue.ended(failed, None, 0, 0)
    assert start(queue).record.tenant == "a"  # type: ignore[union-attr]


def test_idleness_earns_nothing() -> None:
    queue = queue_of([waiting(number, "a") for number in range(100)])
    starts(queue, 50)
    for number in range(100, 200):
        queue.push(waiting(number, "b"), 0)
    assert Counter(job.record.tenant for job in starts(queue, 20)) == {"a": 10, "b": 10}


def test_a_correction_of_what_was_charged_before_a_pause_earns_nothing() -> None:
    queue = queue_of([waiting(1, "a", cost_ms=1_000)])
    slow = start(queue)
    assert slow is not None
    for number in range(100, 200):
        queue.push(waiting(number, "b"), 0)
    starts(queue, 50)
    for number in range(2, 50):
        queue.push(waiting(number, "a"), 0)
    queue.ended(slow, 1, 0, 5_000)
    assert Counter(job.record.tenant for job in starts(queue, 20))["a"] in (10, 11)


def test_being_throttled_earns_nothing() -> None:
    queue = queue_of(pool=policy(tenants={"a": TenantLimits(rps=1)}))
    for number in range(400):
        queue.push(waiting(number, "ab"[number % 2]), 0)
    starts(queue, 100)
    queue.configure(policy(), 0)
    assert Counter(job.record.tenant for job in starts(queue, 20))["a"] in (10, 11)


def test_other_weights_hold_at_once() -> None:
    queue = queue_of([waiting(number, "ab"[number % 2]) for number in range(800)])
    assert Counter(job.record.tenant for job in starts(queue, 100)) == {"a": 50, "b": 50}
    queue.configure(policy(tenants={"a": 4}), 0)
    assert Counter(job.record.tenant for job in starts(queue, 100)) == {"a": 80, "b": 20}


def test_other_class_weights_hold_at_once() -> None:
    jobs: list[Job] = [waiting(number, "a", CLASSES[number % 2]) for number in range(800)]
    queue = queue_of(jobs)
    queue.configure(policy(classes=[PrioritySpec(name=BATCH, weight=8)]), 0)
    counts = Counter(job.record.priority for job in starts(queue, 100))
    assert counts == {INTERACTIVE: 50, BATCH: 50}
