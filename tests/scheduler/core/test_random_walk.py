"""Whatever happens, in whatever order: no task is lost or in two places, order and bounds are kept, each ends once.

A step is anything that can happen to a scheduler: arrivals, duplicates, cancels, claims, endings, engines and nodes
that die, engines that garble, writes that fail before, between and after their steps, late news, takeovers with a
predecessor that still writes, policies that change, running tasks that are asked to make way and do or do not.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llorch_scheduler.core.effects import Preempt, Preempted
from llorch_scheduler.core.limits import Limits
from llorch_shared.wire.policy import (
    AdmissionSpec,
    BreakerSpec,
    DeadlineSpec,
    FairnessSpec,
    FullPolicy,
    PreemptionSpec,
    QueueSpec,
    TenantLimits,
    TenantSpec,
)
from llorch_shared.wire.run import PreemptRequest
from llorch_shared.wire.task import PlacementOverrides, Priority
from scheduler.core_world import World, task_id

POOLS = ("p1", "p2")
TENANTS = ("a", "b", "c")
QUOTAS = AdmissionSpec(
    fairness=FairnessSpec(
        tenants=(TenantSpec(id="a", weight=3), TenantSpec(id="b", max_concurrent=1)),
        default=TenantLimits(rps=2.0, tokens_per_min=200, kv_mb=20),
    )
)
POLICIES: tuple[dict[str, Any], ...] = (
    {"admission": AdmissionSpec()},
    {"admission": QUOTAS},
    {"queue": QueueSpec(capacity=6, full_policy=FullPolicy.SHED_LOW_PRIORITY)},
    {"queue": QueueSpec(capacity=6, full_policy=FullPolicy.DROP_LRU, tenant_capacity=4)},
    {"queue": QueueSpec()},
    {"deadlines": DeadlineSpec(order="fifo", evict="expiry")},
    {"deadlines": DeadlineSpec(overload_after_ms=500)},
    {"preemption": PreemptionSpec(mode="hard")},
    {"preemption": PreemptionSpec(mode="disabled")},
    {"breaker": BreakerSpec(start_ms=100, hold_ms=1_000)},
    {"breaker": None},
)
REPLICAS = {"a1": "p1", "a2": "p1", "b1": "p2"}


class Walk:
    def __init__(self, dice: random.Random, *, hurried: bool = False, world: type[World] = World) -> None:
        """`hurried`: interactive tasks are urgent, batch is what runs, and it can be stopped."""
        self.dice = dice
        self.hurried = hurried
        self.policies = [each for each in POLICIES if not hurried or "preemption" not in each]
        self.world = world(limits=Limits(attempts_max=4, preempt_lead_ms=3_500), pools=POOLS)
        self.world.respec("p1", preemption=PreemptionSpec(mode="hard"), **POLICIES[2])
        self.admitted = 0
        self.lives = 1
        self.steps: list[Callable[[], None]] = [
            *[self.admit] * 6,
            *[self.perform] * 10,
            *[self.hear] * 10,
            *[self.claim] * 6,
            *[self.record_late] * 3,
            *[self.finish] * 5,
            *[self.report] * 4,
            *[self.tick] * 4,
            self.cancel,
            self.cancel,
            self.admit_twice,
            self.redeliver,
            self.engine_restarts,
            self.node_dies,
            self.zombie_writes,
            self.zombie_writes,
            self.write_floor,
            self.long_tick,
            *[self.stop] * 3,
            *[self.give_back] * 2,
            self.respec,
        ]
        if hurried:
            self.steps = [step for step in self.steps if step not in (self.long_tick, self.finish, self.report)]
            self.steps += [*[self.claim] * 20, *[self.perform] * 20, *[self.hear] * 30, *[self.stop] * 10, self.finish]
        self.asked: list[PreemptRequest] = []
        self.gave_back = 0
        for replica in REPLICAS:
            self.replica(replica)

    def replica(self, name: str) -> None:
        self.lives += 1
        self.world.replica(
            name,
            pool=REPLICAS[name],
            slots=1 + (name == "a1"),
            device=f"cuda:{name[-1]}",
            incarnation=f"i{self.lives}",
            features=("interruptible_decode",) if name != "a2" else (),
            kv_bytes_per_token=4096 if name == "b1" else 0,
            free_vram_mb=4_000,
        )

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.dice.random() < 0.004:
                self.world.take_over()
            self.dice.choice(self.steps)()
        self.come_to_rest()

    def admit(self) -> None:
        if len(self.world.core.jobs) > 40:
            return
        self.admitted += 1
        fields: dict[str, Any] = {
            "priority": self.dice.choice(list(Priority)),
            "deadline_ms": self.dice.choice([300, 4_000, 60_000, 3_600_000, 3_600_000, 3_600_000]),
            "tenant": self.dice.choice(TENANTS),
            "ctx": self.dice.choice([300, 512, 2048]),
            "channel": self.dice.choice(["http", "http", "nats"]),
            "session_id": task_id(self.dice.randrange(5)),
        }
        if self.hurried:
            fields |= {"deadline_ms": 3_600_000, "priority": Priority.BATCH, "tenant": "a", "ctx": 300}
            if self.dice.random() < 0.15:
                fields |= {"deadline_ms": 3_600, "priority": Priority.INTERACTIVE}
        if self.dice.random() < 0.15 and not self.hurried:
            fields["placement"] = PlacementOverrides(require_device_mask=self.dice.choice(["cuda:1", "cuda:2"]))
        self.world.admit(self.admitted, pool=self.dice.choice(POOLS), **fields)

    def admit_twice(self) -> None:
        if self.admitted:
            number = self.dice.randint(max(1, self.admitted - 20), self.admitted)
            self.world.admit(number, pool=self.dice.choice(POOLS), priority=self.dice.choice(list(Priority)))

    def redeliver(self) -> None:
        if self.world.admissions:
            self.world.redeliver(self.dice.choice(list(self.world.admissions)))

    def cancel(self) -> None:
        if self.admitted:
            self.world.cancel(task_id(self.dice.randint(max(1, self.admitted - 20), self.admitted + 1)))

    def perform(self) -> None:
        if self.world.pending:
            effect = self.world.pending.pop(self.dice.randrange(min(4, len(self.world.pending))))
            if isinstance(effect, Preempt):
                self.asked.append(effect.request)
                return
            fault = self.dice.choice(["", "", "", "", "", "", "lost", "unsure", "half"])
            self.world.perform(effect, fault=fault)

    def record_late(self) -> None:
        if self.world.unclaimed:
            task = self.dice.choice(list(self.world.unclaimed))
            self.world.record_late(task, fault=self.dice.choice(["", "", "lost", "unsure", "half"]))

    def respec(self) -> None:
        """The operator changes a pool's policy."""
        self.world.respec(self.dice.choice(POOLS), **self.dice.choice(self.policies))

    def stop(self) -> None:
        """A node hears that it is to stop a task, at once or late."""
        if self.asked:
            self.world.stop(self.asked.pop(self.dice.randrange(len(self.asked))))

    def zombie_writes(self) -> None:
        if self.world.zombies:
            effect = self.world.zombies.pop(self.dice.randrange(len(self.world.zombies)))
            self.world.perform(effect, fault=self.dice.choice(["", "half"]), heard=False)

    def hear(self) -> None:
        if self.world.live:
            self.world.deliver_live()

    def claim(self) -> None:
        self._of_a_living_replica(self.world.claim)

    def finish(self) -> None:
        name = self.dice.choice(list(REPLICAS))
        if held := sorted(self.world.replicas[name].held):
            self.world.finish(name, self.dice.choice(held))

    def give_back(self) -> None:
        """A node's engine has garbled a task and lives."""
        name = self.dice.choice(list(REPLICAS))
        if held := sorted(self.world.replicas[name].held):
            self.gave_back += self.world.give_back(name, self.dice.choice(held))

    def report(self) -> None:
        self.world.now += self.dice.choice([10, 900])
        self._of_a_living_replica(self.world.replica)

    def engine_restarts(self) -> None:
        self.lives += 1
        self._of_a_living_replica(lambda name: self.world.engine_restarts(name, f"i{self.lives}"))

    def node_dies(self) -> None:
        name = self.dice.choice(list(REPLICAS))
        if self.world.replicas[name].alive:
            self.world.lose(name)
        else:
            self.replica(name)

    def tick(self) -> None:
        self.world.tick(self.dice.choice([50, 50, 500]))

    def long_tick(self) -> None:
        self.world.tick(5_000)

    def write_floor(self) -> None:
        self.world.write_floor()

    def _of_a_living_replica(self, act: Callable[[str], object]) -> None:
        name = self.dice.choice(list(REPLICAS))
        if self.world.replicas[name].alive:
            act(name)

    def come_to_rest(self) -> None:
        """Nothing fails any more: everything must end."""
        while self.world.zombies:
            self.world.perform(self.world.zombies.pop(), heard=False)
        for name in REPLICAS:
            self.replica(name)
        for _ in range(400):
            self.world.settle()
            for name in REPLICAS:
                while self.world.claim(name):
                    pass
                for task in sorted(self.world.replicas[name].held):
                    self.world.finish(name, task)
                self.world.replica(name)
            self.world.settle()
            if not self.world.core.jobs and not self.world.admissions:
                break
            if not self.world.core.jobs:
                self.redeliver()
            self.world.tick(20_000)
        self.world.check_finished()


@pytest.mark.parametrize("seed", range(12))
def test_a_long_walk_loses_nothing_and_ends_everything_once(seed: int) -> None:
    Walk(random.Random(seed)).run(1_500)


@given(st.randoms(use_true_random=False), st.integers(10, 120))
@settings(max_examples=60, deadline=None)
def test_any_short_walk_loses_nothing_and_ends_everything_once(dice: random.Random, steps: int) -> None:
    Walk(dice).run(steps)


def test_a_walk_in_a_hurry_loses_nothing_that_was_stopped() -> None:
    stopped = gave_back = 0
    for seed in range(4):
        walk = Walk(random.Random(seed), hurried=True)
        walk.run(4_000)
        stopped += sum(isinstance(each, Preempted) for each in walk.world.told)
        gave_back += walk.gave_back
    assert stopped >= 8
    assert gave_back >= 8
