"""The index answers as a look at every replica would, whatever happens to replicas, and does not grow."""

import random

import msgspec
import pytest

from llorch_scheduler.core.fleet import Fleet
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.pool_fleet import PoolFleet
from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.replica_sets import set_key
from llorch_shared.wire.policy import AffinitySpec, CanarySpec
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementOverrides, Workload
from scheduler.fleets import POOL, fleet_of, job, picked, ready, scan
from scheduler.samples import request, spec, task_id

KV = 1 << 20


class Walk:
    """Replicas report, hold, release, are lost and come back; the specification changes; each decision is compared."""

    def __init__(self, dice: random.Random, replicas: int) -> None:
        self.dice = dice
        self.names = [f"r{n}" for n in range(replicas)]
        self.fleet = Fleet()
        self.pool: PoolFleet = self.fleet.pool(POOL)
        self.spec: PoolSpec = spec()
        self.pool.configure(self.spec)
        self.held: list[tuple[Job, Replica]] = []
        self.lives: dict[str, int] = {}
        self.number = 0
        self.now = 0
        self.chosen: list[str] = []

    def step(self) -> None:
        self.now += self.dice.randrange(2_000)
        kinds = (self.report, self.place, self.place, self.place, self.end, self.end, self.lose, self.change)
        self.dice.choices(kinds, weights=(8, 6, 6, 6, 5, 5, 1, 1))[0]()
        self.check()

    def report(self) -> None:
        name = self.dice.choice(self.names)
        replica = self.fleet.named(POOL, name, self.now)
        if self.dice.random() < 0.05:
            self.lives[name] = self.lives.get(name, 0) + 1
        listed = [task for task in replica.held if self.dice.random() < 0.8]
        strange = [task_id(self.dice.randrange(1_000_000, 1_000_010))] if self.dice.random() < 0.1 else []
        replica.report(self.record(name, (*listed, *strange)))

    def record(self, name: str, active: tuple[str, ...]) -> ReplicaRecord:
        dice = self.dice
        return ready(
            name,
            incarnation=f"i{self.lives.get(name, 0)}",
            state=dice.choices(list(ReplicaState), weights=(1, 1, 1, 12, 1, 1, 1))[0],
            slots=dice.choice((1, 2, 4)),
            active=active,
            device=dice.choice(("cuda:0", "cuda:1")),
            free_vram_mb=dice.choice((0, 500, 500, 1_500)),
            kv_bytes_per_token=dice.choice((0, 0, 0, KV)),
            ctx_max=4_096,
            engine_version=dice.choice(("v1", "v1", "v1", "v2")),
            workloads=dice.choice(((Workload.COMPLETION,), (Workload.COMPLETION, Workload.EMBEDDING))),
            perf_tokens_per_s=dice.choice((0.0, 20.0, 21.0, 50.0, 100.0)),
            perf_first_token_ms=dice.choice((0.0, 40.0, 400.0)),
        )

    def place(self) -> None:
        self.number += 1
        dice = self.dice
        task = job(
            self.number,
            session_id=task_id(dice.randrange(20)),
            ctx=dice.choice((100, 400, 512, 3_000)),
            max_tokens=dice.choice((1, 64)),
            workload=dice.choice((Workload.COMPLETION, Workload.COMPLETION, Workload.EMBEDDING)),
            placement=dice.choice((None, None, PlacementOverrides(require_device_mask="cuda:1"))),
        )
        wish = task.record.request
        assert wish is not None
        last = self.pool.affinity.last(
            task.record.tenant, wish.session_id, at_ms=self.now, ttl_ms=self.spec.affinity.ttl_ms
        )
        decision = self.pool.decide(wish, tenant=task.record.tenant, at_ms=self.now)
        everyone = self.pool.index.replicas.values()
        assert (picked(decision), decision.busy or decision.replica is not None) == scan(
            everyone, wish, self.spec, sets=self.pool.sets, last=last
        )
        removed = sum(int(each.partition(":")[2]) for each in decision.log.filters_applied)
        assert removed <= len(self.pool.index.replicas)
        assert (removed == len(self.pool.index.replicas)) == (decision.replica is None)
        self.chosen.append(picked(decision))
        if decision.replica is not None:
            assert self.pool.can_take(self.pool.shape_of(wish))
            task.held_ms = self.now
            decision.replica.hold(task)
            self.held.append((task, decision.replica))

    def end(self) -> None:
        if self.held:
            task, replica = self.held.pop(self.dice.randrange(len(self.held)))
            replica.release(task, slot_is_free=self.dice.random() < 0.7)
            if replica.record is None and not replica.held:
                self.fleet.remove(replica)

    def lose(self) -> None:
        replica = self.fleet.get(POOL, self.dice.choice(self.names))
        if replica is not None:
            replica.lose(self.now)
            if not replica.held:
                self.fleet.remove(replica)

    def change(self) -> None:
        self.spec = msgspec.structs.replace(
            spec(),
            require_same_engine_version=self.dice.random() < 0.7,
            canary=self.dice.choice((None, CanarySpec(engine_version="v2", percent=50))),
            affinity=AffinitySpec(ttl_ms=self.dice.choice((0, 5_000, 600_000))),
        )
        self.pool.configure(self.spec)

    def check(self) -> None:
        index, everyone = self.pool.index, list(self.pool.index.replicas.values())
        assert index.ready == sum(each.ready for each in everyone)
        assert sum(kind.slots_total for kind in index.kinds.values()) == sum(each.slots_total for each in everyone)
        assert sum(kind.slots_free for kind in index.kinds.values()) == sum(each.slots_free for each in everyone)
        assert index.held == sum(len(each.held) for each in everyone)
        assert sum(kind.size for kind in index.kinds.values()) == index.ready
        for kind in index.kinds.values():
            assert kind.size > 0
            assert kind.size == sum(peers.size for peers in kind.peers.values())
            assert kind.free == sum(peers.free for peers in kind.peers.values())
            for peers in kind.peers.values():
                assert peers.size > 0
                assert len(peers.heap) <= 2 * peers.size + 33
        for replica in everyone:
            if replica.record is not None and replica.ready:
                assert index.kind_of(replica) is not None
                assert set_key(replica.record) == index.kinds[index.kind_of(replica).abilities].abilities.version  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(12))
def test_the_index_chooses_what_a_look_at_every_replica_would(seed: int) -> None:
    walk = Walk(random.Random(seed), replicas=3 + seed * 2)
    for _ in range(600):
        walk.step()
    assert sum(bool(each) for each in walk.chosen) > 40


def test_equal_walks_choose_equally() -> None:
    walks = [Walk(random.Random(99), replicas=9) for _ in range(2)]
    for walk in walks:
        for _ in range(400):
            walk.step()
    assert walks[0].chosen == walks[1].chosen


def test_reports_that_change_every_second_do_not_make_it_grow() -> None:
    fleet, replicas = fleet_of(*(ready(f"r{n}") for n in range(10)))
    for turn in range(5_000):
        name = f"r{turn % 10}"
        fleet.named(POOL, name, 0).report(ready(name, free_vram_mb=turn, perf_tokens_per_s=turn % 7))
    entries = sum(len(peers.heap) for kind in replicas.index.kinds.values() for peers in kind.peers.values())
    assert entries <= 2 * 10 + 7 * 33
    assert len(replicas.index.kinds) == 1


def test_the_second_best_is_told_without_losing_the_best() -> None:
    _, replicas = fleet_of(ready("r1"), ready("r2", free_vram_mb=2), ready("r3", free_vram_mb=3))
    (kind,) = replicas.index.kinds.values()
    (peers,) = kind.peers.values()
    second = replicas.index.second(peers)
    assert second is not None
    assert second[2] == "r3"
    assert picked(replicas.decide(request(1), tenant="default", at_ms=0)) == "r1"
