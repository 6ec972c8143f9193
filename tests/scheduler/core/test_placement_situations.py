"""Placement inside the core: what a specification or a replica changes reaches the tasks that wait already."""

from collections.abc import Iterator, Sequence

import msgspec
import pytest

from llorch_scheduler.core.effects import Place
from llorch_scheduler.core.events import PoolChanged, WriteFailed
from llorch_shared.wire.policy import CanarySpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementOverrides
from scheduler.core_world import World
from scheduler.samples import spec, task_id

NEXT = PlacementOverrides(label="next")
CANARY = msgspec.structs.replace(spec(), canary=CanarySpec(engine_version="v2", labels=("next",)))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()


def change(world: World, pool: PoolSpec) -> list[object]:
    world.specs["p1"] = pool
    return list(world.tell(PoolChanged(at_ms=world.now, spec=pool)))


def placed(effects: Sequence[object]) -> list[tuple[str, str]]:
    return [(each.record.task_id, each.record.replica_id) for each in effects if isinstance(each, Place)]


def test_a_rolled_back_canary_gives_its_waiting_tasks_to_the_stable_set(world: World) -> None:
    change(world, CANARY)
    world.replica("r1", engine_version="v1")
    world.replica("r2", engine_version="v2")
    assert placed(world.admit(1, placement=NEXT)) == [(task_id(1), "r2")]
    assert placed(world.admit(2, placement=NEXT)) == []
    assert placed(change(world, spec())) == [(task_id(2), "r1")]


def test_a_new_canary_takes_waiting_tasks_of_its_part(world: World) -> None:
    world.replica("r1", engine_version="v1")
    assert placed(world.admit(1)) == [(task_id(1), "r1")]
    assert placed(world.admit(2, placement=NEXT)) == []
    world.replica("r2", engine_version="v2")
    assert placed(change(world, CANARY)) == [(task_id(2), "r2")]


def test_waiting_tasks_fit_a_replica_of_an_unusual_size_as_soon_as_it_comes(world: World) -> None:
    assert placed(world.admit(1, ctx=2_900)) == []
    assert placed(world.replica("r1", ctx_max=3_000)) == [(task_id(1), "r1")]


def test_the_record_says_whether_the_cache_is_warm(world: World) -> None:
    world.replica("r1", slots=2)
    world.replica("r2", slots=2)
    session = task_id(77)
    records = [
        each.record
        for number in (1, 2, 3)
        for each in world.admit(number, session_id=session)
        if isinstance(each, Place)
    ]
    assert [(each.replica_id, each.kv_warmth) for each in records] == [("r1", None), ("r1", True), ("r2", False)]


def test_a_session_is_still_known_after_a_takeover_while_its_task_runs(world: World) -> None:
    world.replica("r1", slots=2)
    world.replica("r2", slots=2, free_vram_mb=50)
    session = task_id(77)
    assert placed(world.admit(1, session_id=session)) == [(task_id(1), "r2")]
    world.settle()
    world.claim("r2")
    world.replica("r1", slots=2, free_vram_mb=900)
    world.take_over()
    (effect,) = (each for each in world.admit(2, session_id=session) if isinstance(each, Place))
    assert (effect.record.replica_id, effect.record.kv_warmth) == ("r2", True)


def lost_after_its_claim(world: World, **changes: object) -> str:
    """A task of class a that has lost its replica, while the others are busy."""
    world.replica("r1", determinism_class="a")
    world.admit(1, **changes)
    world.settle()
    world.claim("r1")
    world.settle()
    world.lose("r1")
    world.settle()
    return task_id(1)


def where(world: World, number: int) -> str:
    return world.runs[task_id(number)][0].replica_id


def test_a_strict_task_is_repeated_by_a_replica_of_the_class_that_began_it(world: World) -> None:
    lost_after_its_claim(world)
    world.replica("r2", determinism_class="b", free_vram_mb=9_000)
    world.settle()
    assert where(world, 1) == "r2", "there is none of its class: the comparison decides"
    world.claim("r2")
    world.settle()
    world.lose("r2")
    world.settle()
    world.replica("r3", determinism_class="a")
    world.settle()
    assert where(world, 1) == "r3"


def test_a_strict_task_waits_for_a_busy_replica_of_its_class_and_holds_up_nobody(world: World) -> None:
    world.replica("r4", determinism_class="a")
    world.admit(4)
    world.settle()
    lost_after_its_claim(world)
    world.settle()
    assert where(world, 4) == "r4"
    world.claim("r4")
    world.settle()
    world.replica("r2", determinism_class="b")
    world.admit(2)
    world.settle()
    assert (where(world, 1), where(world, 2)) == ("", "r2"), "another task takes what it does not want"
    world.finish("r4", task_id(4))
    world.settle()
    assert where(world, 1) == "r4"


def test_a_waiting_strict_task_goes_anywhere_once_its_class_is_gone(world: World) -> None:
    world.replica("r4", determinism_class="a")
    world.admit(4)
    world.settle()
    lost_after_its_claim(world)
    world.claim("r4")
    world.replica("r2", determinism_class="b")
    world.settle()
    assert where(world, 1) == ""
    world.lose("r4")
    world.settle()
    assert where(world, 1) == "r2"


@pytest.mark.parametrize("failover", ["resume", "restart"])
def test_a_sampled_task_goes_on_with_any_replica(failover: str, world: World) -> None:
    lost_after_its_claim(world, determinism="best_effort", failover=failover)
    world.replica("r3", determinism_class="a")
    world.replica("r2", determinism_class="b", free_vram_mb=9_000)
    world.settle()
    assert where(world, 1) in ("r2", "r3")
    assert world.core.jobs[task_id(1)].shape.determinism_class == ""


def test_only_a_newcomer_goes_ahead_of_its_record_and_only_once(world: World) -> None:
    def ahead(effects: Sequence[object]) -> list[str]:
        return [each.ahead for each in effects if isinstance(each, Place)]

    world.replica("r1", slots=3, takes_ahead=True)
    assert ahead(world.admit(1)) == ["node-1"]
    placed = world.pending.pop()
    assert isinstance(placed, Place)
    world.tell(WriteFailed(at_ms=world.now, ticket=placed.ticket, task_id=task_id(1), ref=placed.ref))
    assert ahead(world.tick(2_000)) == [""], "the first placement may be there"
    world.admit(2)
    world.take_over()
    assert ahead(world.pending) == ["", ""], "an earlier scheduler may have placed them"
    world.replica("r2", takes_ahead=False)
    world.replica("r1", slots=0)
    assert ahead(world.admit(3)) == [""], "for a node that does not know this"
