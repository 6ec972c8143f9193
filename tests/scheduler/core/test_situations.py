"""The scheduler's core, one situation at a time. Every test ends with the invariants checked by the world's fixture."""

from collections.abc import Iterator
from itertools import pairwise

import msgspec
import pytest

from llorch_scheduler.core.effects import Ack, Disown, End, Place, PlaceAgain, Requeue
from llorch_scheduler.core.events import PoolRemoved
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.terminal_frames import Sent, counted
from llorch_shared.errors import ErrorCode, invalid
from llorch_shared.wire.registry import ReplicaState
from llorch_shared.wire.session import SessionTerms
from llorch_shared.wire.task import PlacementOverrides, Priority, TaskState
from scheduler.core_world import World, task_id


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()


def placed(effects: list[object]) -> list[str]:
    return [effect.record.task_id for effect in effects if isinstance(effect, Place)]


def test_a_task_waits_until_a_replica_reports_and_is_placed_there(world: World) -> None:
    assert world.admit(1) == []
    (effect,) = world.replica("r1")
    assert isinstance(effect, Place)
    assert (effect.record.replica_id, effect.record.attempt, effect.expect_seq) == ("r1", 1, 0)
    world.settle()
    assert world.state(1) == "placed"
    assert not world.admissions


def test_no_more_than_the_slots_are_placed_and_an_ending_makes_room(world: World) -> None:
    world.replica("r1", slots=2)
    assert [len(placed(world.admit(n))) for n in (1, 2, 3)] == [1, 1, 0]
    world.settle()
    world.claim()
    world.finish("r1", task_id(1))
    world.deliver_live()
    world.deliver_live()
    assert [effect.record.task_id for effect in world.pending if isinstance(effect, Place)] == [task_id(3)]


def test_classes_share_by_weight_and_each_is_first_come_first_served(world: World) -> None:
    for number in range(1, 19):
        world.admit(number, priority=Priority.BATCH if number % 2 else Priority.INTERACTIVE)
    chosen = placed(world.replica("r1", slots=9))
    interactive = [task_id(number) for number in range(2, 18, 2)]
    assert [task for task in chosen if task in interactive] == interactive
    assert [task for task in chosen if task not in interactive] == [task_id(1)]


def test_messages_that_come_again_out_of_order_are_placed_in_admission_order(world: World) -> None:
    for number in (1, 2, 3):
        world.admit(number)
    world.admissions = dict(reversed(world.admissions.items()))
    world.take_over()
    assert placed(world.replica("r1", slots=3)) == [task_id(n) for n in (1, 2, 3)]


def test_the_replica_with_most_free_memory_then_fewest_tasks_then_least_name_is_picked(world: World) -> None:
    world.replica("r3", slots=4, free_vram_mb=100)
    world.replica("r2", slots=4, free_vram_mb=100)
    world.replica("r1", slots=1, free_vram_mb=50)
    chosen = [effect.record.replica_id for n in range(1, 5) for effect in world.admit(n) if isinstance(effect, Place)]
    assert chosen == ["r2", "r3", "r2", "r3"]


def test_the_decision_says_why(world: World) -> None:
    world.replica("r1", slots=1, free_vram_mb=10)
    world.replica("r2", slots=1, free_vram_mb=20)
    world.replica("r3", state=ReplicaState.STARTING)
    (effect,) = world.admit(1)
    assert isinstance(effect, Place)
    log = effect.log
    assert (log.selected, log.candidates_considered, log.filters_applied) == ("r2", 3, ("ready:1",))
    assert (log.tie_breakers_applied, log.decision_reason) == (("free_vram_mb",), "free_vram_mb")
    assert not log.pinned
    assert not log.fallback_used


def test_a_task_that_requires_a_busy_device_does_not_hold_up_the_others(world: World) -> None:
    world.replica("r1", slots=1, device="cuda:0")
    world.replica("r2", slots=1, device="cuda:1")
    wants = PlacementOverrides(require_device_mask="cuda:0")
    assert placed(world.admit(1, placement=wants)) == [task_id(1)]
    assert placed(world.admit(2, placement=wants)) == []
    assert placed(world.admit(3)) == [task_id(3)]


def test_a_task_no_replica_can_serve_lets_others_pass_and_is_tried_again_when_one_changes(world: World) -> None:
    world.replica("r1", slots=2, ctx_max=256)
    assert placed(world.admit(1, ctx=512)) == []
    assert placed(world.admit(2, ctx=128)) == [task_id(2)]
    assert placed(world.replica("r1", ctx_max=1024)) == [task_id(1)]


def test_a_cancel_while_queued_ends_the_task_and_a_second_one_does_nothing(world: World) -> None:
    world.admit(1)
    (effect,) = world.cancel(task_id(1))
    assert isinstance(effect, End)
    assert (effect.record.state, effect.record.finish_reason) == (TaskState.CANCELLED, "cancelled")
    assert world.cancel(task_id(1)) == []
    world.settle()
    assert world.replica("r1") == []
    world.check_finished()


def test_a_cancel_that_comes_before_its_task_is_remembered(world: World) -> None:
    world.replica("r1")
    assert world.cancel(task_id(1)) == []
    (effect,) = world.admit(1)
    assert isinstance(effect, End)


def test_a_cancel_that_loses_against_a_placement_leaves_the_task_to_the_node(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    assert world.cancel(task_id(1)) == []
    world.settle()
    world.claim()
    world.settle()
    assert world.finals == {task_id(1): [TaskState.CANCELLED]}
    world.check_finished()


def test_a_cancelled_task_whose_replica_is_lost_ends_instead_of_coming_back(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.cancel(task_id(1))
    (effect,) = world.lose("r1")
    assert isinstance(effect, End)
    assert effect.record.state is TaskState.CANCELLED


def test_a_deadline_that_passes_in_the_queue_expires_the_task(world: World) -> None:
    world.admit(1, deadline_ms=1_000)
    assert not any(isinstance(effect, End) for effect in world.tick(999))
    ends = [effect for effect in world.tick(1) if isinstance(effect, End)]
    assert [(end.record.state, end.record.error and end.record.error.code) for end in ends] == [
        (TaskState.EXPIRED, ErrorCode.DEADLINE_UNMET)
    ]
    world.settle()
    world.check_finished()


def test_an_invalid_task_ends_with_its_problem_and_never_waits(world: World) -> None:
    world.replica("r1")
    problem = invalid("no").body
    (effect,) = world.admit(1, problem=problem)
    assert isinstance(effect, End)
    assert (effect.record.state, effect.record.error) == (TaskState.FAILED, problem)
    world.settle()
    world.check_finished()


def test_a_second_admission_of_a_known_task_is_given_back_at_once(world: World) -> None:
    world.admit(1)
    (effect,) = world.admit(1, priority=Priority.BATCH)
    assert isinstance(effect, Ack)
    assert world.redeliver(next(iter(world.admissions))) == []


def test_a_claimed_task_of_a_lost_replica_comes_back_first_with_another_attempt(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.claim()
    world.settle()
    world.admit(2)
    (effect,) = world.lose("r1")
    assert isinstance(effect, Requeue)
    assert (effect.record.attempt, effect.record.replica_id) == (2, "")
    world.settle()
    assert placed(world.replica("r1", slots=2, incarnation="i2")) == [task_id(1)]


def test_an_attempt_that_died_is_remembered_for_the_session_that_pays_for_it(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.claim()
    world.settle()
    job = world.core.jobs[task_id(1)]
    job.record = msgspec.structs.replace(job.record, session=SessionTerms(session_id="s"), lost=(7,))
    (effect,) = world.lose("r1")
    assert isinstance(effect, Requeue)
    assert (effect.record.attempt, effect.record.lost) == (2, (7, 1))


def test_the_end_of_a_task_charges_the_attempts_that_died() -> None:
    world = World(limits=Limits(attempts_max=1))
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.claim()
    world.settle()
    (effect,) = world.lose("r1")
    assert isinstance(effect, End)
    run, sent = effect.record, Sent(9, None, {1: 40, 2: 5, 3: 7})
    assert (counted(run, sent).tokens_out, counted(run, sent).decode_ms) == (9, 0), "no session pays for it"
    paid = msgspec.structs.replace(run, session=SessionTerms(session_id="s"), attempt=3, lost=(1,), decode_ms=100)
    assert (counted(paid, sent).decode_ms, counted(paid, sent).lost) == (147, ())


def test_an_unclaimed_task_of_a_lost_replica_comes_back_without_using_up_an_attempt(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    (effect,) = world.lose("r1")
    assert isinstance(effect, Requeue)
    assert effect.record.attempt == 1


def test_a_new_incarnation_gives_back_what_the_old_one_had_claimed(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.claim()
    world.settle()
    (effect,) = world.engine_restarts("r1", "i2")
    assert isinstance(effect, Requeue)
    assert effect.reason == "engine_restarted"


def test_a_task_that_a_replica_no_longer_lists_is_taken_back_only_after_a_while(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.claim()
    world.settle()
    world.replicas["r1"].held.clear()
    assert world.replica("r1") == []
    world.now += world.limits.missing_ms - 1
    assert world.replica("r1") == []
    world.now += 1
    (effect,) = world.replica("r1")
    assert isinstance(effect, Requeue)
    assert effect.reason == "not_listed"


def test_a_task_that_its_node_gave_back_is_placed_again_at_once_and_only_once(world: World) -> None:
    world.replica(slots=1)
    world.admit(1)
    world.settle()
    world.claim()
    world.replica()
    world.settle()
    assert world.give_back("r1", task_id(1))
    world.settle()
    assert world.state(1) == "placed"
    assert not world.replicas["r1"].placements, "its slot is not free before the replica says so"
    world.replica()
    world.settle()
    ((record, _),) = world.replicas["r1"].placements
    assert (record.task_id, record.attempt) == (task_id(1), 2)
    world.tick(world.limits.missing_ms)
    world.replica()
    world.settle()
    assert len(world.replicas["r1"].placements) == 1
    assert world.runs[task_id(1)][0].attempt == 2


def test_a_task_that_lost_all_its_attempts_fails() -> None:
    world = World(limits=Limits(attempts_max=1))
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.claim()
    world.settle()
    (effect,) = world.lose("r1")
    assert isinstance(effect, End)
    assert effect.record.error is not None
    assert (effect.record.state, effect.record.error.code) == (TaskState.FAILED, ErrorCode.WORKER_RESET)


def test_a_placement_that_a_living_replica_leaves_lying_goes_elsewhere(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    effects = world.tick(world.limits.claim_ms)
    (effect,) = [each for each in effects if isinstance(each, Requeue)]
    assert (effect.reason, effect.record.attempt) == ("not_claimed", 2)


def test_a_slot_whose_engine_is_still_busy_with_a_moved_task_is_not_free(world: World) -> None:
    world.replica("r1")
    world.replicas["r1"].held["somebody-elses"] = 1
    world.replica("r1")
    assert placed(world.admit(1)) == []


def test_a_placement_that_could_not_be_written_keeps_its_place_and_is_tried_after_a_pause(world: World) -> None:
    world.replica("r1", takes_ahead=False)
    world.admit(1)
    world.admit(2)
    world.perform(world.pending.pop(), fault="half")
    assert world.pending == []
    assert not placed(world.tick(world.limits.pause_ms - 1))
    assert placed(world.tick(1)) == [task_id(1)]
    world.settle()
    assert world.state(1) == "placed"


def test_a_takeover_publishes_standing_placements_again_and_gives_a_missing_replica_time(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.replicas["r1"].alive = False
    world.take_over()
    assert [type(effect) for effect in world.pending] == [PlaceAgain]
    assert not any(isinstance(effect, Requeue) for effect in world.tick(world.limits.absent_ms - 1))
    assert any(isinstance(effect, Requeue) for effect in world.tick(1_001))


def test_a_floor_never_passes_an_unfinished_run(world: World) -> None:
    world.replica("r1", slots=2)
    world.admit(1)
    world.admit(2)
    world.settle()
    world.claim()
    world.claim()
    world.settle()
    world.finish("r1", task_id(1))
    world.settle()
    world.write_floor()
    assert world.floor_written == world.runs[task_id(2)][1]
    world.finish("r1", task_id(2))
    world.settle()
    world.write_floor()
    assert world.floor_written == world.seq + 1


def test_a_removed_pool_keeps_its_tasks_and_places_none(world: World) -> None:
    world.tell(PoolRemoved(at_ms=world.now, pool_id="p1"))
    world.admit(1)
    assert world.replica("r1") == []
    assert world.core.locate(task_id(1)).found


def test_a_located_task_knows_its_position_and_when_it_will_start(world: World) -> None:
    world.replica("r1")
    for number in (1, 2, 3):
        world.admit(number)
    world.settle()
    assert [world.core.locate(task_id(n)).queue_position for n in (2, 3)] == [0, 1]
    assert world.core.locate(task_id(3)).predicted_start_ms > 0
    assert not world.core.locate(task_id(9)).found


def test_the_load_is_told_at_most_every_100_ms_and_at_least_every_second(world: World) -> None:
    world.replica("r1")
    told = [len(world.loads)]
    for later in (100, 50, 500, 450, 1_000):
        world.tick(later)
        told.append(len(world.loads))
    assert [after - before for before, after in pairwise(told)] == [1, 0, 0, 1, 1]


def test_slot_time_is_learned_from_placement_to_the_final_record(world: World) -> None:
    world.replica("r1")
    world.admit(1)
    world.settle()
    world.claim()
    world.settle()
    world.now += 400
    world.finish("r1", task_id(1))
    world.settle()
    assert world.core.pools["p1"].forecast.service.mean_ms == 400


def disowned(world: World) -> list[tuple[str, str, ErrorCode]]:
    told = [effect.record for effect in world.told if isinstance(effect, Disown)]
    return [(record.task_id, record.lane, record.error.code) for record in told if record.error is not None]


@pytest.mark.parametrize("waits", [True, False])
def test_a_bus_client_is_refused_the_id_of_another_tenants_task(world: World, waits: bool) -> None:
    if not waits:
        world.replica("r1")
    world.admit(1, tenant="acme")
    effects = world.admit(1, tenant="other", channel="nats")
    assert disowned(world) == [(task_id(1), "bus-other", ErrorCode.INVALID_PARAMS)]
    assert [effect for effect in effects if not isinstance(effect, Disown)] == [
        Ack(task_id=task_id(1), ref=list(world.admissions)[-1])
    ]
    world.replica("r1")
    world.settle()
    assert world.runs[task_id(1)][0].tenant == "acme"


def test_who_comes_through_a_gateway_and_is_too_late_for_its_id_is_told(world: World) -> None:
    world.admit(1, tenant="acme", channel="nats")
    world.admit(1, tenant="other")
    assert disowned(world) == [(task_id(1), "gw-1", ErrorCode.INVALID_PARAMS)]


@pytest.mark.parametrize(("tenant", "channel"), [("acme", "nats"), ("other", "http")])
def test_who_may_send_a_task_again_is_not_refused(world: World, tenant: str, channel: str) -> None:
    """A gateway has looked whose the id is, where its caller is bound to a tenant."""
    world.admit(1, tenant="acme")
    world.admit(1, tenant=tenant, channel=channel)
    assert disowned(world) == []


@pytest.mark.parametrize("final", [True, False])
def test_who_waited_under_an_id_that_another_tenants_task_has_is_told(world: World, final: bool) -> None:
    """That one waited in a queue that is not pulled here, so its record is the first that is heard of it."""
    world.replica("r1", takes_ahead=False)
    world.admit(1, tenant="acme", channel="nats")
    theirs = msgspec.structs.replace(world.core.jobs[task_id(1)].record, tenant="other", lane="gw-2", channel="http")
    state = TaskState.CANCELLED if final else TaskState.PLACED
    assert world.cas(msgspec.structs.replace(theirs, state=state, replica_id="r9", pool_id="p9"), 0)
    world.perform(world.pending.pop(0))
    assert disowned(world) == [(task_id(1), "bus-acme", ErrorCode.INVALID_PARAMS)]
    assert not world.admissions
    world.deliver_live()
    assert len(disowned(world)) == 1
