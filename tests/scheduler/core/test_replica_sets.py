"""Versions never mix, a canary takes its part, and one change takes it back."""

import random
from collections import Counter

import msgspec
import pytest

from llorch_scheduler.core.replica_sets import side_of
from llorch_shared.wire.policy import CanarySpec
from llorch_shared.wire.registry import ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementOverrides
from scheduler.fleets import POOL, fleet_of, job, picked, place, ready
from scheduler.samples import request, spec, task_id


def canary(**fields: object) -> PoolSpec:
    return msgspec.structs.replace(spec(), canary=CanarySpec(engine_version="v2", **fields))  # type: ignore[arg-type]


def session(number: int) -> str:
    return task_id(1_000_000 + number)


def test_tasks_go_to_one_version_only_and_the_log_says_what_it_kept_out() -> None:
    _, replicas = fleet_of(
        ready("r1", engine_version="v1"),
        ready("r2", engine_version="v1"),
        ready("r3", engine_version="v2", free_vram_mb=99_999),
        ready("r4", engine_version="v1", sampler_profile_version="v0", free_vram_mb=99_999),
        ready("r5", engine_version="v1", model_digest="sha256:other", free_vram_mb=99_999),
    )
    decisions = [place(replicas, job(n)) for n in range(1, 4)]
    assert [picked(each) for each in decisions] == ["r1", "r2", ""]
    assert decisions[0].log.filters_applied == ("replica_set:3",)
    assert decisions[0].log.replica_set.startswith("v1/v1/")
    assert decisions[2].busy
    slots = replicas.slots()
    assert (slots.total, slots.free, slots.replicas) == (2, 0, 2), "slots that no task can have are not counted"


def test_the_largest_set_is_stable_then_the_highest_version() -> None:
    _, replicas = fleet_of(ready("r1", engine_version="b999"), ready("r2", engine_version="b1000"))
    assert picked(place(replicas, job(1))) == "r2"
    _, replicas = fleet_of(
        ready("r1", engine_version="v1"), ready("r2", engine_version="v1"), ready("r3", engine_version="v9")
    )
    assert picked(place(replicas, job(1))) == "r1"


def test_the_choice_waits_for_the_first_task() -> None:
    fleet, replicas = fleet_of(ready("r1", engine_version="v1"))
    assert replicas.can_take(replicas.shape_of(request(1)))
    for name in ("r2", "r3"):
        fleet.named(POOL, name, 0).report(ready(name, engine_version="v2"))
    assert picked(place(replicas, job(1))) == "r2"


def test_the_stable_set_goes_with_its_last_replica_and_does_not_come_back_as_an_equal() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=4, engine_version="v1"))
    assert picked(place(replicas, job(1))) == "r1"
    fleet.named(POOL, "r2", 0).report(ready("r2", slots=4, engine_version="v2"))
    assert picked(place(replicas, job(2))) == "r1"
    fleet.named(POOL, "r1", 0).lose(0)
    assert picked(place(replicas, job(3))) == "r2"
    fleet.named(POOL, "r1", 0).report(ready("r1", slots=4, engine_version="v1"))
    assert picked(place(replicas, job(4))) == "r2"


def test_an_upgrade_node_by_node_changes_over_once_and_keeps_about_half_of_the_slots() -> None:
    """Each of six nodes drains, is away, and comes back newer."""
    names = [f"r{n}" for n in range(6)]
    fleet, replicas = fleet_of(*(ready(name, slots=99, engine_version="v1") for name in names))
    serving, number, least = [], 0, 6
    for name in names:
        for record in (
            ready(name, state=ReplicaState.DRAINING, engine_version="v1"),
            ready(name, state=ReplicaState.PROVISIONING),
            ready(name, slots=99, engine_version="v2"),
        ):
            fleet.named(POOL, name, 0).report(record)
            number += 1
            decision = place(replicas, job(number))
            assert decision.replica is not None
            assert decision.replica.record is not None
            serving.append(decision.replica.record.engine_version)
            least = min(least, replicas.slots().replicas)
    assert serving == sorted(serving)
    assert (serving[0], serving[-1]) == ("v1", "v2")
    assert least >= 2


def test_crashes_and_equal_counts_move_nobody() -> None:
    fleet, replicas = fleet_of(*(ready(name, slots=99, engine_version="v1") for name in ("r1", "r2")))
    assert picked(place(replicas, job(1))) == "r1"
    for name in ("r3", "r4"):
        fleet.named(POOL, name, 0).report(ready(name, slots=99, engine_version="v2"))
    for number, name in enumerate(("r1", "r2", "r1", "r2"), 2):
        fleet.named(POOL, name, 0).report(ready(name, state=ReplicaState.BACKOFF, engine_version="v1"))
        assert picked(place(replicas, job(number))) == ("r2" if name == "r1" else "r1")
        fleet.named(POOL, name, 0).report(ready(name, slots=99, engine_version="v1"))
    fleet.named(POOL, "r5", 0).report(ready("r5", slots=99, engine_version="v2"))
    assert picked(place(replicas, job(9))) == "r3", "three to two"
    fleet.named(POOL, "r5", 0).report(ready("r5", state=ReplicaState.BACKOFF, engine_version="v2"))
    fleet.named(POOL, "r6", 0).report(ready("r6", slots=99, engine_version="v1"))
    assert picked(place(replicas, job(10))) in ("r3", "r4"), "three of each are alive"


def test_a_canary_never_becomes_stable_by_its_number() -> None:
    _, replicas = fleet_of(
        ready("r1", slots=9, engine_version="v1"),
        *(ready(name, slots=9, engine_version="v2") for name in ("r2", "r3", "r4")),
        pool=canary(labels=("next",)),
    )
    assert [picked(place(replicas, job(n))) for n in range(1, 5)] == ["r1"] * 4


@pytest.mark.parametrize("state", [ReplicaState.BACKOFF, ReplicaState.STARTING, ReplicaState.TESTING])
def test_a_crash_of_a_moment_does_not_move_the_pool_to_another_version(state: ReplicaState) -> None:
    fleet, replicas = fleet_of(ready("r1", slots=4, engine_version="v1"))
    place(replicas, job(1))
    fleet.named(POOL, "r2", 0).report(ready("r2", engine_version="v2"))
    fleet.named(POOL, "r1", 0).report(ready("r1", state=state, engine_version="v1"))
    decision = place(replicas, job(2))
    assert (picked(decision), decision.busy) == ("", False)
    assert decision.log.filters_applied == ("ready:1", "replica_set:1")
    fleet.named(POOL, "r1", 0).report(ready("r1", slots=4, engine_version="v1"))
    assert picked(place(replicas, job(2))) == "r1"


@pytest.mark.parametrize(
    ("state", "version"),
    [
        (ReplicaState.FAILED, "v1"),
        (ReplicaState.DRAINING, "v1"),
        (ReplicaState.PROVISIONING, ""),
        (ReplicaState.STARTING, "v2"),
    ],
)
def test_a_version_that_will_not_come_back_gives_way(state: ReplicaState, version: str) -> None:
    fleet, replicas = fleet_of(ready("r1", slots=4, engine_version="v1"))
    place(replicas, job(1))
    fleet.named(POOL, "r2", 0).report(ready("r2", engine_version="v2"))
    fleet.named(POOL, "r1", 0).report(ready("r1", state=state, engine_version=version))
    assert picked(place(replicas, job(2))) == "r2"


def test_versions_may_mix_where_the_pool_says_so() -> None:
    pool = msgspec.structs.replace(spec(), require_same_engine_version=False)
    _, replicas = fleet_of(ready("r1", engine_version="v1"), ready("r2", engine_version="v2"), pool=pool)
    decisions = [place(replicas, job(n)) for n in (1, 2)]
    assert [picked(each) for each in decisions] == ["r1", "r2"]
    assert decisions[0].log.replica_set == ""


@pytest.mark.parametrize("percent", [0.0, 0.5, 5.0, 33.3, 100.0])
def test_a_canary_takes_its_part_of_the_sessions_and_each_stays_on_its_side(percent: float) -> None:
    pool = canary(percent=percent)
    sides = {n: side_of(request(n, session_id=session(n)), pool) for n in range(20_000)}
    share = sum(side == "canary" for side in sides.values()) / len(sides)
    assert share == pytest.approx(percent / 100, abs=0.01)
    for number in range(100):
        assert side_of(request(number + 50_000, session_id=session(number).upper()), pool) == sides[number]
    wider = canary(percent=min(100.0, percent + 10))
    stays = [side_of(request(n, session_id=session(n)), wider) for n, side in sides.items() if side == "canary"]
    assert set(stays) <= {"canary"}, "a wider canary keeps the sessions it has"


def test_a_label_chooses_the_canary() -> None:
    pool = canary(labels=("next",))
    _, replicas = fleet_of(
        ready("r1", slots=4, engine_version="v1"), ready("r2", slots=4, engine_version="v2"), pool=pool
    )
    assert picked(place(replicas, job(1, placement=PlacementOverrides(label="next")))) == "r2"
    assert picked(place(replicas, job(2, placement=PlacementOverrides(label="other")))) == "r1"
    assert picked(place(replicas, job(3))) == "r1"


def test_one_change_rolls_a_canary_back_at_the_next_decision() -> None:
    replicas_of = (ready("r1", slots=8, engine_version="v1"), ready("r2", slots=8, engine_version="v2"))
    for rolled_back in (canary(percent=0), spec()):
        _, replicas = fleet_of(*replicas_of, pool=canary(percent=100))
        waiting = replicas.shape_of(request(1))
        assert picked(place(replicas, job(1, session_id=session(1)))) == "r2"
        replicas.configure(rolled_back)
        assert picked(place(replicas, job(2, session_id=session(1)))) == "r1"
        assert replicas.can_take(waiting)


def test_a_canary_is_never_chosen_as_stable_and_never_falls_into_the_stable_share() -> None:
    fleet, replicas = fleet_of(
        ready("r1", slots=2, engine_version="v1"),
        ready("r2", slots=2, engine_version="v2"),
        ready("r3", slots=2, engine_version="v2"),
        pool=canary(labels=("next",)),
    )
    assert [picked(place(replicas, job(n))) for n in (1, 2, 3)] == ["r1", "r1", ""]
    labelled = PlacementOverrides(label="next")
    assert [picked(place(replicas, job(n, placement=labelled))) for n in range(4, 9)] == ["r2", "r3", "r2", "r3", ""]
    fleet.named(POOL, "r1", 0).report(ready("r1", state=ReplicaState.BACKOFF, engine_version="v1"))
    assert not place(replicas, job(9)).busy, "a crash of the stable set does not hand its tasks to the canary"


def test_a_side_without_any_replica_is_served_by_the_other() -> None:
    labelled = PlacementOverrides(label="next")
    _, replicas = fleet_of(ready("r1", engine_version="v1"), pool=canary(labels=("next",)))
    assert picked(place(replicas, job(1, placement=labelled))) == "r1"
    _, replicas = fleet_of(ready("r1", engine_version="v2"), pool=canary(labels=("next",)))
    decision = place(replicas, job(1))
    assert picked(decision) == "r1"
    assert decision.log.replica_set.startswith("v2")


def test_a_stable_set_that_is_gone_for_good_leaves_its_tasks_to_the_canary_until_it_returns() -> None:
    fleet, replicas = fleet_of(
        ready("r1", slots=4, engine_version="v1"),
        ready("r2", slots=4, engine_version="v2"),
        pool=canary(labels=("next",)),
    )
    assert picked(place(replicas, job(1))) == "r1"
    fleet.named(POOL, "r1", 0).lose(0)
    assert picked(place(replicas, job(2))) == "r2"
    fleet.named(POOL, "r1", 0).report(ready("r1", slots=4, engine_version="v1"))
    assert picked(place(replicas, job(3))) == "r1"


@pytest.mark.parametrize("seed", range(8))
def test_a_rolling_upgrade_never_mixes_versions_on_one_side(seed: int) -> None:
    """Replicas drain, go and come back newer, crash and return; the canary comes and goes. At any moment all tasks of
    one side go to one version, and a side changes its version only when most ready replicas are of another."""
    dice = random.Random(seed)
    versions = {f"r{n}": "v1" for n in range(6)}
    fleet, replicas = fleet_of(*(ready(name, slots=99, engine_version=version) for name, version in versions.items()))
    pool, number, changes = spec(), 0, 0
    before: dict[str, str] = {}
    for _ in range(400):
        name = dice.choice(list(versions))
        if dice.random() < 0.3:
            versions[name] = dice.choice(("v1", "v2", "v3"))
        state = dice.choice((ReplicaState.READY, ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.BACKOFF))
        if dice.random() < 0.1:
            fleet.named(POOL, name, 0).lose(0)
        else:
            sampler = dice.choice(("v1", "v1", "v1", "v2"))
            record = ready(
                name, slots=9_999, state=state, engine_version=versions[name], sampler_profile_version=sampler
            )
            fleet.named(POOL, name, 0).report(record)
        if dice.random() < 0.05:
            pool = dice.choice((spec(), canary(percent=50)))
            replicas.configure(pool)
            before.clear()
        seen: dict[str, set[str]] = {}
        for _ in range(6):
            number += 1
            decision = place(replicas, job(number))
            wish = request(number)
            if decision.replica is not None and decision.replica.record is not None:
                record = decision.replica.record
                key = f"{record.engine_version}/{record.sampler_profile_version}"
                seen.setdefault(side_of(wish, pool), set()).add(key)
        before = {side: key for side, key in before.items() if side in seen}
        for side, keys in seen.items():
            (key,) = keys
            if before.get(side, key) != key:
                changes += 1
                ready_now = Counter(
                    f"{each.record.engine_version}/{each.record.sampler_profile_version}"
                    for each in fleet.of_pool(POOL)
                    if each.record is not None and each.ready
                )
                stood_in = pool.canary is not None and before[side].startswith(pool.canary.engine_version)
                assert side == "canary" or stood_in or ready_now[key] > ready_now[before[side]]
            before[side] = key
    assert changes
