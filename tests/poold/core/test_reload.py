"""A pool gets another model: what each node does meanwhile, and when all of them have or have not got it."""

from dataclasses import replace
from typing import Any

import msgspec

from llorch_poold.core.devices import CPU
from llorch_poold.core.reconcile import (
    Changes,
    Desired,
    Place,
    Present,
    Start,
    Why,
    changes,
    desired_places,
    with_model,
)
from llorch_poold.core.reload import DONE, SWITCH, Failed, ended, verdict
from llorch_shared.wire.desired import PoolReload, ReloadState
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState, Standby, StandbyState
from llorch_shared.wire.spec import PoolSpec

OLD, NEW = "file:/old.gguf", "file:/new.gguf"
RELOAD = PoolReload(
    id="r1",
    pool_id="p",
    new_model_ref=NEW,
    old_model_ref=OLD,
    state=ReloadState.UNDERWAY,
    requested_ms=1_000,
    deadline_ms=500,
)
FIRST, SECOND = "p-n1-1", "p-n1-1-b"


def pool(model: str = OLD, **fields: Any) -> PoolSpec:
    return msgspec.convert({"id": "p", "engine": "llamacpp", "model": model, "devices": "cpu", **fields}, PoolSpec)


def place(spec: PoolSpec | None = None, reload: PoolReload | None = RELOAD, *, tight: bool = False) -> dict[str, Place]:
    return desired_places(
        [spec or pool()],
        node_id="n1",
        gpus=(),
        gpu_problem="no driver",
        profile="ci",
        reloads={"p": reload} if reload is not None else {},
        tight={FIRST: "r1"} if tight else {},
    )


def replica(replica_id: str, model: str, **changes: Any) -> Present:
    """At the pool's only place."""
    spec = pool() if model == OLD else with_model(pool(), model)
    return Present(FIRST, Desired(replica_id, spec, CPU), **changes)


SERVES = replica(FIRST, OLD)
HOLDS = replica(SECOND, NEW, reload_id="r1")
FAILED = ended(RELOAD, Failed("no such file"), 1_200)


def test_the_new_model_starts_beside_the_old_one_and_is_held_back() -> None:
    assert changes([SERVES], place()) == Changes(start=(Start(HOLDS.desired, FIRST, "r1"),))
    assert changes([SERVES, HOLDS], place()) == Changes(), "until it is decided, nothing moves"


def test_a_pool_that_is_still_coming_up_comes_up_first() -> None:
    assert changes([], place()) == Changes(start=(Start(SERVES.desired, FIRST),))
    assert changes([replace(SERVES, settled=False)], place()) == Changes()


def test_at_the_change_over_the_new_one_serves_and_the_old_one_drains() -> None:
    switched = place(with_model(pool(), NEW))
    assert changes([SERVES, HOLDS], switched) == Changes(stop=((FIRST, Why.REPLACED),), release=(SECOND,))
    released = replace(HOLDS, reload_id="")
    assert changes([replace(SERVES, leaving=True), released], switched) == Changes()
    assert changes([released], place(with_model(pool(), NEW), None)) == Changes(), "it keeps its id"


def test_the_next_reload_takes_the_id_that_is_free() -> None:
    serving = replica(SECOND, OLD)
    assert changes([serving], place()) == Changes(start=(Start(replica(FIRST, NEW).desired, FIRST, "r1"),))
    both = [serving, replica(FIRST, NEW, leaving=True, reload_id="r0")]
    assert changes(both, place()) == Changes(), "the last one's replica is still going"


def test_a_reload_that_failed_leaves_the_old_one_as_it_is() -> None:
    assert changes([SERVES, HOLDS], place(reload=FAILED)) == Changes(stop=((SECOND, Why.GIVEN_UP),))


def test_a_policy_changes_during_a_reload() -> None:
    other = pool(queue={"capacity": 7})
    wanted = replace(SERVES.desired, spec=other)
    assert changes([SERVES, HOLDS], place(other)) == Changes(adopt=(wanted,))
    both = place(with_model(other, NEW))
    held = replace(HOLDS.desired, spec=with_model(other, NEW))
    assert changes([SERVES, HOLDS], both) == Changes(stop=((FIRST, Why.REPLACED),), release=(SECOND,), adopt=(held,))


def test_a_change_of_the_process_during_a_reload_starts_both_again() -> None:
    other = pool(slots=2)
    assert changes([SERVES, HOLDS], place(other)).stop == ((FIRST, Why.CHANGED), (SECOND, Why.CHANGED))
    assert changes([], place(other)).start == (Start(replace(SERVES.desired, spec=other), FIRST),)


def test_without_room_for_both_the_old_one_drains_first() -> None:
    cramped = replace(HOLDS, no_room=True)
    assert changes([SERVES, cramped], place()) == Changes(stop=((SECOND, Why.NO_ROOM),), tight=(FIRST,))
    tight = place(tight=True)
    leaving = replace(HOLDS, leaving=True)
    assert changes([SERVES, leaving], tight) == Changes(stop=((FIRST, Why.NO_ROOM),))
    assert changes([replace(SERVES, leaving=True)], tight) == Changes(), "two never load at once"
    alone = Start(replace(HOLDS.desired, replica_id=FIRST), FIRST, "r1")
    assert changes([], tight) == Changes(start=(alone,))
    again = replica(FIRST, NEW, reload_id="r1", no_room=True)
    assert changes([again], tight) == Changes(), "memory is given back a little later: it tries again by itself"
    assert changes([again], place(with_model(pool(), NEW), tight=True)) == Changes(release=(FIRST,))


def test_without_room_for_both_the_old_one_is_brought_back_when_the_reload_fails() -> None:
    holds = replica(FIRST, NEW, reload_id="r1")
    failed = place(reload=FAILED, tight=True)
    assert changes([holds], failed) == Changes(stop=((FIRST, Why.GIVEN_UP),))
    assert changes([replace(holds, leaving=True)], failed) == Changes()
    assert changes([], failed) == Changes(start=(Start(SERVES.desired, FIRST),))


def test_the_new_file_is_not_held_against_the_old_ones_checksum() -> None:
    spec = pool(provisioning={"model": {"checksum": "sha256:00", "cache_dir": "/models"}})
    model = with_model(spec, NEW).provisioning.model
    assert (model.checksum, model.cache_dir) == ("", "/models")


def held(node: str, state: StandbyState = StandbyState.READY, number: int = 1, **fields: Any) -> ReplicaRecord:
    changed = {"standby": Standby(reload_id="r1", state=state), **fields}
    return ReplicaRecord(
        replica_id=f"p-{node}-{number}-b",
        pool_id="p",
        node_id=node,
        incarnation="i",
        state=ReplicaState.TESTING,
        engine=pool().engine,
        **changed,
    )


def decided(*replicas: ReplicaRecord, spec: PoolSpec | None = None, now_ms: int = 1_001, **more: Any) -> object:
    nodes = more.get("nodes", ("n1", "n2"))
    return verdict(RELOAD, spec or pool(), nodes=nodes, replicas=replicas, now_ms=now_ms)


def test_the_pool_changes_over_when_every_place_on_every_node_is_ready() -> None:
    assert decided(held("n1")) is None
    assert decided(held("n1"), held("n2", StandbyState.COMING)) is None
    assert decided(held("n1"), held("n2")) is SWITCH
    assert decided(held("n1"), held("n2"), spec=pool(replicas=2)) is None
    assert decided(held("n1"), spec=pool(nodes=["n1"])) is SWITCH
    assert decided(held("n1"), nodes=("n1",)) is SWITCH, "a node that died is not waited for"
    assert decided(held("n1"), held("n2"), nodes=("n1", "n2", "n3")) is None, "one that joined is"


def test_what_an_earlier_reload_left_counts_for_nothing() -> None:
    earlier = held("n1", StandbyState.FAILED, standby=Standby(reload_id="r0", state=StandbyState.FAILED))
    assert decided(earlier, nodes=("n1",)) is None


def test_one_replica_that_fails_ends_the_reload_with_its_cause() -> None:
    found = decided(held("n1"), held("n2", StandbyState.FAILED, last_error="no such file"))
    assert found == Failed("replica p-n2-1-b: no such file")
    assert isinstance(found, Failed)
    told = ended(RELOAD, found, 1_234)
    assert (told.state, told.ended_ms, told.last_error) == (ReloadState.FAILED, 1_234, found.reason)


def test_a_place_that_was_not_served_before_decides_nothing() -> None:
    refused = held("n2", StandbyState.FAILED, last_error="no usable GPU")
    before = msgspec.structs.replace(held("n2", standby=None), state=ReplicaState.FAILED)
    assert decided(held("n1"), refused, before) is SWITCH
    assert decided(held("n1", StandbyState.COMING), refused, before) is None
    twice = held("n2", StandbyState.FAILED, number=2, last_error="no such file")
    spec = pool(replicas=2)
    assert "no such file" in str(decided(held("n1"), held("n1", number=2), refused, twice, before, spec=spec))
    assert "no usable GPU" in str(decided(refused, before, nodes=("n2",))), "somebody has to have shown that it runs"


def test_a_reload_fails_when_its_time_is_up() -> None:
    assert decided(held("n1"), now_ms=1_499) is None
    assert decided(held("n1"), now_ms=1_500) == Failed("not ready within 500 ms on node n2")
    assert "none that serves the pool" in str(decided(nodes=(), now_ms=1_500))
    assert decided(nodes=()) is None


def test_a_change_over_that_was_cut_short_is_ended_by_the_next_look() -> None:
    assert decided(spec=pool(NEW)) is DONE
    assert ended(RELOAD, DONE, 1_300).state is ReloadState.DONE


def test_somebody_elses_model_a_drain_and_a_removed_pool_end_a_reload() -> None:
    drained = verdict(RELOAD, pool(), nodes=("n1",), replicas=(), drained=True, now_ms=1_001)
    assert drained == Failed("the pool was drained meanwhile")
    assert "file:/third.gguf" in str(decided(spec=pool("file:/third.gguf")))
    assert verdict(RELOAD, None, nodes=(), replicas=(), now_ms=1_001) == Failed("the pool was removed meanwhile")
