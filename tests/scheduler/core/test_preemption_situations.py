"""Hard preemption, one situation at a time: who is asked to make way, when, and what becomes of both tasks."""

from collections.abc import Iterator
from typing import Any

import pytest

from llorch_scheduler.core.effects import End, Place, Preempt, Preempted
from llorch_scheduler.core.job import Phase
from llorch_shared.wire.policy import HardRequirements, PreemptionSpec
from llorch_shared.wire.task import Determinism, Failover, Priority, TaskState, Workload
from scheduler.core_world import World, task_id

STOPPABLE = ("interruptible_decode",)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.respec(preemption=PreemptionSpec(mode="hard"))
    yield world
    world.check()


def run_batch(world: World, *numbers: int, **fields: Any) -> None:
    """Batch tasks that run, in this order."""
    for number in numbers:
        world.now += 10
        world.admit(number, priority=Priority.BATCH, **fields)
        world.settle()
        for replica in list(world.replicas):
            world.claim(replica)
        world.settle()
        assert world.state(number) == "running"


def asked(world: World) -> list[str]:
    """Tasks that were asked to stop and have not answered."""
    return [effect.request.task_id for effect in world.pending if isinstance(effect, Preempt)]


def urgent(world: World, number: int, budget_ms: int = 900, **fields: Any) -> None:
    world.admit(number, deadline_ms=budget_ms, **fields)


def test_a_batch_task_makes_way_and_resumes_when_the_urgent_one_has_ended(world: World) -> None:
    world.replica("r1", features=STOPPABLE)
    run_batch(world, 1)
    urgent(world, 2)
    (effect,) = [each for each in world.pending if isinstance(each, Preempt)]
    assert (effect.node_id, effect.request.task_id, effect.request.urgent_task_id) == ("node-1", task_id(1), task_id(2))
    assert effect.request.run_seq == world.runs[task_id(1)][1]
    world.settle()
    assert [(each.record.task_id, each.urgent_task_id) for each in world.told if isinstance(each, Preempted)] == [
        (task_id(1), task_id(2))
    ]
    world.claim()
    world.settle()
    assert (world.state(2), world.state(1)) == ("running", "placed")
    world.finish("r1", task_id(2))
    world.deliver_live()
    (place,) = [effect for effect in world.pending if isinstance(effect, Place)]
    assert (place.record.task_id, place.record.attempt, place.record.preemptions) == (task_id(1), 2, 1)
    assert place.resumed
    world.settle()
    world.claim()
    world.finish("r1", task_id(1))
    world.settle()
    world.check_finished()


def test_nobody_is_stopped_while_waiting_costs_nothing_yet(world: World) -> None:
    world.replica("r1", features=STOPPABLE)
    run_batch(world, 1)
    urgent(world, 2, 60_000)
    assert asked(world) == []
    cost_ms = int(world.core.jobs[task_id(2)].cost_ms)
    world.tick(60_000 - cost_ms - world.limits.preempt_lead_ms - 100)
    assert asked(world) == []
    world.tick(200)
    assert asked(world) == [task_id(1)]


def test_the_last_started_of_the_stoppable_ones_is_stopped(world: World) -> None:
    world.replica("r1", slots=4, features=STOPPABLE)
    run_batch(world, 1, 2)
    run_batch(world, 3, determinism=Determinism.BEST_EFFORT)
    run_batch(world, 5, failover=Failover.FAIL)
    urgent(world, 4)
    assert asked(world) == [task_id(2)]


def test_a_task_with_inputs_is_not_asked_to_stop(world: World) -> None:
    both = (Workload.COMPLETION, Workload.EMBEDDING)
    world.respec(preemption=PreemptionSpec(mode="hard"), workloads=both)
    world.replica("r1", slots=1, features=STOPPABLE, workloads=both)
    run_batch(world, 1, workload=Workload.EMBEDDING, prompt=None, inputs=("a", "b"))
    urgent(world, 2)
    assert asked(world) == []


@pytest.mark.parametrize(
    ("features", "priority", "policy"),
    [
        ((), Priority.BATCH, PreemptionSpec(mode="hard")),
        (STOPPABLE, Priority.INTERACTIVE, PreemptionSpec(mode="hard")),
        (STOPPABLE, Priority.BATCH, PreemptionSpec(mode="soft")),
        (STOPPABLE, Priority.BATCH, PreemptionSpec(mode="disabled")),
        (
            STOPPABLE,
            Priority.BATCH,
            PreemptionSpec(mode="hard", hard_requirements=HardRequirements(protect_priorities=(Priority.BATCH,))),
        ),
        (
            STOPPABLE,
            Priority.BATCH,
            PreemptionSpec(mode="hard", hard_requirements=HardRequirements(max_preemptions_per_min=0)),
        ),
        (
            STOPPABLE,
            Priority.BATCH,
            PreemptionSpec(mode="hard", hard_requirements=HardRequirements(engine_capability="time_travel")),
        ),
    ],
    ids=["not shown by the engine", "same class", "soft", "disabled", "protected", "none per minute", "other ability"],
)
def test_nobody_is_stopped(world: World, features: tuple[str, ...], priority: Priority, policy: PreemptionSpec) -> None:
    world.respec(preemption=policy)
    world.replica("r1", features=features)
    world.admit(1, priority=priority)
    world.settle()
    world.claim()
    world.settle()
    urgent(world, 2)
    world.tick()
    assert asked(world) == []


def test_no_more_are_stopped_in_any_minute_than_the_pool_allows(world: World) -> None:
    world.respec(preemption=PreemptionSpec(mode="hard", hard_requirements=HardRequirements(max_preemptions_per_min=1)))
    world.replica("r1", slots=2, features=STOPPABLE)
    run_batch(world, 1, 2)
    urgent(world, 3)
    assert asked(world) == [task_id(2)]
    world.settle()
    urgent(world, 4, 90_000)
    cost_ms = int(world.core.jobs[task_id(4)].cost_ms)
    world.tick(59_000)
    assert asked(world) == []
    world.tick(90_000 - 59_000 - cost_ms - 500)
    assert asked(world) == [task_id(1)]


def test_it_is_told_how_many_could_be_stopped(world: World) -> None:
    world.replica("r1", slots=4, features=STOPPABLE)
    run_batch(world, 1, 2)
    run_batch(world, 3, determinism=Determinism.BEST_EFFORT)
    world.tick(1_000)
    assert world.loads[-1].preemptible == 2
    few = HardRequirements(max_preemptions_per_min=1)
    for policy, told in (
        (PreemptionSpec(mode="hard", hard_requirements=few), 1),
        (PreemptionSpec(mode="soft"), 0),
        (PreemptionSpec(mode="hard", hard_requirements=HardRequirements(protect_priorities=(Priority.BATCH,))), 0),
        (PreemptionSpec(mode="hard", hard_requirements=HardRequirements(engine_capability="time_travel")), 0),
    ):
        world.respec(preemption=policy)
        world.tick(1_000)
        assert world.loads[-1].preemptible == told
    world.respec(preemption=PreemptionSpec(mode="hard", hard_requirements=few))
    run_batch(world, 4)
    urgent(world, 5)
    world.tick(1_000)
    assert len(asked(world)) == 1
    assert world.loads[-1].preemptible == 0, "the one of this minute is asked already"


@pytest.mark.parametrize(("features", "taken"), [(STOPPABLE, True), ((), False)])
def test_a_deadline_is_feasible_when_a_task_would_be_stopped_for_it(
    world: World, features: tuple[str, ...], taken: bool
) -> None:
    world.replica("r1", features=features)
    run_batch(world, 1)
    world.now += 1_000
    world.finish("r1", task_id(1))
    world.settle()
    run_batch(world, 2)
    cost_ms = round(world.core.jobs[task_id(2)].cost_ms)
    for number in (3, 4, 5):
        world.admit(number)
    effects = world.admit(6, channel="nats", deadline_ms=round(1.6 * cost_ms))
    assert (world.core.jobs[task_id(6)].phase is Phase.QUEUED) == taken
    assert any(isinstance(each, End) for each in effects) != taken


def test_one_waiting_task_has_one_victim_and_one_that_does_not_answer_is_forgotten(world: World) -> None:
    world.replica("r1", slots=2, features=STOPPABLE)
    run_batch(world, 1, 2)
    urgent(world, 3, 8_000)
    cost_ms = int(world.core.jobs[task_id(3)].cost_ms)
    world.now += 8_000 - cost_ms - world.limits.preempt_lead_ms
    world.tick()
    world.tick()
    assert asked(world) == [task_id(2)]
    world.pending.clear()
    world.tick(world.limits.preempt_ms)
    assert not world.core.pools["p1"].victims
    world.admit(4, deadline_ms=900)
    assert asked(world) == [task_id(1)], "the silent one is not asked again"


def test_preempted_attempts_are_not_counted_as_lost() -> None:
    world = World()
    world.respec(preemption=PreemptionSpec(mode="hard"))
    world.replica("r1", features=STOPPABLE)
    run_batch(world, 1)
    for number in range(2, 8):
        world.now += 1_000
        urgent(world, number)
        world.settle()
        world.claim()
        world.finish("r1", task_id(number))
        world.settle()
        world.claim()
        world.settle()
        assert world.state(1) == "running"
    record, _ = world.runs[task_id(1)]
    assert (record.attempt, record.preemptions) == (7, 6)
    world.lose("r1")
    world.settle()
    assert world.state(1) == "placed", "one attempt was lost, and three may be"


def test_a_victim_that_ends_by_itself_makes_room_all_the_same(world: World) -> None:
    world.replica("r1", features=STOPPABLE)
    run_batch(world, 1)
    urgent(world, 2)
    (effect,) = [each for each in world.pending if isinstance(each, Preempt)]
    world.pending.clear()
    world.finish("r1", task_id(1))
    world.settle()
    assert not world.stop(effect.request)
    assert (world.state(1), world.state(2)) == ("done", "placed")
    assert not world.core.pools["p1"].victims


def test_a_cancelled_victim_ends_and_does_not_come_back(world: World) -> None:
    world.replica("r1", features=STOPPABLE)
    run_batch(world, 1)
    urgent(world, 2)
    world.cancel(task_id(1))
    world.settle()
    assert world.state(1) == "cancelled"
    assert [each for each in world.pending if isinstance(each, End)] == []


def test_a_preempted_task_survives_a_takeover(world: World) -> None:
    world.replica("r1", features=STOPPABLE)
    run_batch(world, 1)
    urgent(world, 2)
    (effect,) = [each for each in world.pending if isinstance(each, Preempt)]
    assert world.stop(effect.request)
    world.take_over()
    world.settle()
    world.claim()
    world.settle()
    running = [number for number in (1, 2) if world.runs.get(task_id(number), (None,))[0].state is TaskState.RUNNING]
    assert len(running) == 1
