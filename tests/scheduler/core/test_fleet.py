"""Slots of a replica: who takes one, and when it is free again; and that pools do not share replicas."""

from llorch_scheduler.core.fleet import Fleet
from scheduler.fleets import POOL, fleet_of, job, picked, place, ready
from scheduler.samples import spec, task_id


def test_a_task_held_and_a_task_listed_take_a_slot_each() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=3, active=(task_id(7),)))
    replica = fleet.named(POOL, "r1", 0)
    held = job(1)
    replica.hold(held)
    assert (replica.slots_taken, replica.slots_free, replicas.slots().free) == (2, 1, 1)
    replica.report(ready("r1", slots=3, active=(task_id(7), held.task_id)))
    assert replica.slots_taken == 2


def test_a_task_that_was_moved_away_keeps_its_slot_until_the_engine_lets_it_go() -> None:
    fleet, replicas = fleet_of(ready("r1"))
    replica, held = fleet.named(POOL, "r1", 0), job(1)
    replica.hold(held)
    replica.report(ready("r1", active=(held.task_id,)))
    replica.release(held, slot_is_free=False)
    assert picked(place(replicas, job(2))) == ""
    replica.report(ready("r1"))
    assert picked(place(replicas, job(2))) == "r1"


def test_a_task_whose_record_is_final_frees_its_slot_before_the_report_says_so() -> None:
    fleet, replicas = fleet_of(ready("r1"))
    replica, held = fleet.named(POOL, "r1", 0), job(1)
    replica.hold(held)
    replica.report(ready("r1", active=(held.task_id,)))
    replica.release(held, slot_is_free=True)
    assert picked(place(replicas, job(2))) == "r1"
    replica.report(ready("r1", active=(held.task_id,)))
    assert replica.slots_taken == 1, "an older report lists it still"


def test_a_new_life_of_the_engine_forgets_what_the_old_one_let_go() -> None:
    fleet, _ = fleet_of(ready("r1"))
    replica, held = fleet.named(POOL, "r1", 0), job(1)
    replica.hold(held)
    replica.release(held, slot_is_free=True)
    replica.report(ready("r1", incarnation="i2", active=(held.task_id,)))
    assert replica.slots_taken == 1


def test_more_tasks_than_slots_are_no_free_slots() -> None:
    fleet, replicas = fleet_of(ready("r1", active=(task_id(7), task_id(8))))
    assert fleet.named(POOL, "r1", 0).slots_free == 0
    assert replicas.slots().free == 0


def test_a_lost_replica_serves_nothing_and_keeps_its_tasks_until_they_are_released() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=2))
    replica, held = fleet.named(POOL, "r1", 0), job(1)
    replica.hold(held)
    replica.lose(5)
    assert (replica.absent_ms, list(replica.held), replicas.index.ready, replicas.index.held) == (
        5,
        [held.task_id],
        0,
        1,
    )
    assert not place(replicas, job(2)).busy
    replica.release(held, slot_is_free=False)
    fleet.remove(replica)
    assert fleet.of_pool(POOL) == []
    assert replicas.index.held == 0
    assert not replicas.index.kinds


def test_a_replica_known_only_from_a_run_record_takes_nothing_new() -> None:
    fleet, replicas = fleet_of()
    fleet.named(POOL, "r1", 3).hold(job(1))
    assert not place(replicas, job(2)).busy
    assert place(replicas, job(2)).log.filters_applied == ("ready:1",)


def test_replicas_of_two_pools_may_have_one_name() -> None:
    fleet = Fleet()
    for pool_id in ("a", "a-b"):
        fleet.pool(pool_id).configure(spec(pool_id))
        fleet.named(pool_id, "a-b-c-1", 0).report(ready("a-b-c-1", pool=pool_id))
    first, second = fleet.get("a", "a-b-c-1"), fleet.get("a-b", "a-b-c-1")
    assert first is not None
    assert first is not second
    fleet.remove(first)
    assert [replica.pool_id for replica in fleet.replicas.values()] == ["a-b"]
