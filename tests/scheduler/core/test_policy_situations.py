"""What a pool's policy does to tasks: who makes room or is turned away, who is late, what a change changes."""

from collections.abc import Iterator

import pytest

from llorch_scheduler.core.effects import Audit, End, Place, TellLoad
from llorch_scheduler.core.events import Tick
from llorch_scheduler.core.tenant_books import BOOKS_MAX
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.policy import (
    AdmissionSpec,
    BreakerSpec,
    DeadlineSpec,
    FairnessSpec,
    FullPolicy,
    QueueSpec,
    TenantLimits,
    TenantSpec,
)
from llorch_shared.wire.registry import Appointment, AppointmentRequest, ReplicaState
from llorch_shared.wire.task import PlacementOverrides, Priority, TaskState
from scheduler.core_world import World, task_id

BATCH = Priority.BATCH
CAPPED = "capped"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()


def ends(effects: list[object]) -> list[tuple[str, TaskState, ErrorCode | None, str | None]]:
    return [
        (each.record.task_id, each.record.state, error.code if error else None, error.policy_label if error else None)
        for each in effects
        if isinstance(each, End)
        for error in [each.record.error]
    ]


def placed(effects: list[object]) -> list[str]:
    return [effect.record.task_id for effect in effects if isinstance(effect, Place)]


def serve(world: World, number: int, slot_ms: int, **fields: object) -> None:
    """A task that holds the only slot for so long."""
    world.admit(number, **fields)
    world.settle()
    world.claim()
    world.settle()
    world.now += slot_ms
    world.finish("r1", task_id(number))
    world.settle()


def audits(world: World, event: AuditEvent) -> list[dict[str, object]]:
    return [dict(each.record.detail) for each in world.told if isinstance(each, Audit) and each.record.event is event]


def test_drop_lru_ends_the_oldest_batch_task_for_a_newcomer(world: World) -> None:
    world.respec(queue=QueueSpec(capacity=1, full_policy=FullPolicy.DROP_LRU))
    world.admit(1, priority=BATCH)
    world.admit(2)
    dropped = world.admit(3)
    assert ends(dropped) == [(task_id(1), TaskState.DROPPED, ErrorCode.QUEUE_FULL_DROP_LRU, "drop-lru")]
    world.settle()
    assert ends(world.admit(4))[0][0] == task_id(2), "then the oldest of all"
    (end,) = [each for each in world.pending if isinstance(each, End)]
    assert end.record.error is not None
    assert end.record.error.retriable
    assert end.record.error.retry_after_ms is not None


def test_shedding_ends_the_newest_of_a_lower_class_or_refuses_the_newcomer(world: World) -> None:
    world.respec(queue=QueueSpec(capacity=1, full_policy=FullPolicy.SHED_LOW_PRIORITY))
    world.admit(1, priority=BATCH)
    world.admit(2)
    assert ends(world.admit(3)) == [(task_id(1), TaskState.DROPPED, ErrorCode.QUEUE_FULL_DROP_LRU, "shed-low-priority")]
    world.settle()
    assert ends(world.admit(4)) == [(task_id(4), TaskState.DROPPED, ErrorCode.ADMISSION_REJECT, "shed-low-priority")]


def test_a_tenant_that_fills_its_own_places_is_refused_alone(world: World) -> None:
    world.respec(queue=QueueSpec(tenant_capacity=2))
    for number in (1, 2):
        world.admit(number, tenant="greedy")
    assert ends(world.admit(3, tenant="greedy")) == [
        (task_id(3), TaskState.DROPPED, ErrorCode.ADMISSION_REJECT, "tenant-capacity")
    ]
    assert ends(world.admit(4, tenant="modest")) == []


def capped(**limits: object) -> AdmissionSpec:
    return AdmissionSpec(fairness=FairnessSpec(tenants=(TenantSpec(id=CAPPED, **limits),)))  # type: ignore[arg-type]


def test_a_tenant_over_its_quota_waits_and_holds_up_nobody(world: World) -> None:
    world.respec(admission=capped(max_concurrent=1))
    world.replica("r1", slots=4)
    started = [number for number in (1, 2, 3) if placed(world.admit(number, tenant=CAPPED))]
    assert started == [1]
    assert placed(world.admit(4, tenant="other")) == [task_id(4)]
    world.settle()
    world.claim()
    world.finish("r1", task_id(1))
    world.deliver_live()
    world.deliver_live()
    world.settle()
    assert world.state(2) == "placed"


def test_starts_over_a_rate_wait_for_the_clock(world: World) -> None:
    world.respec(admission=capped(rps=2.0))
    world.replica("r1", slots=8)
    assert [len(placed(world.admit(number, tenant=CAPPED))) for number in (1, 2, 3, 4)] == [1, 1, 0, 0]
    assert placed(world.tick(450)) == []
    assert placed(world.tick(50)) == [task_id(3)]
    assert placed(world.tick(500)) == [task_id(4)]


def test_a_raised_quota_applies_to_what_waits_already(world: World) -> None:
    world.respec(admission=capped(max_concurrent=1))
    world.replica("r1", slots=4)
    for number in (1, 2, 3):
        world.admit(number, tenant=CAPPED)
    assert placed(world.respec(admission=capped(max_concurrent=3))) == [task_id(2), task_id(3)]


def test_a_new_weight_counts_for_what_waits_already(world: World) -> None:
    for number in range(1, 13):
        world.admit(number, tenant="a" if number % 2 else "b")
    world.respec(admission=AdmissionSpec(fairness=FairnessSpec(tenants=(TenantSpec(id="b", weight=5),))))
    chosen = placed(world.replica("r1", slots=6))
    assert len([task for task in chosen if int(task[-12:]) % 2 == 0]) == 5


def test_a_task_that_came_past_the_gateways_is_refused_when_it_cannot_be_in_time(world: World) -> None:
    world.replica("r1")
    for number in range(1, 8):
        serve(world, number, 10_000)
    assert ends(world.admit(8, deadline_ms=2_000)) == [], "gateways judge their own"
    assert ends(world.admit(9, deadline_ms=2_000, channel="nats")) == [
        (task_id(9), TaskState.EXPIRED, ErrorCode.DEADLINE_UNMET, None)
    ]
    world.respec(deadlines=DeadlineSpec(min_on_time_probability=0))
    assert ends(world.admit(10, deadline_ms=2_000, channel="nats")) == []


def test_a_takeover_does_not_judge_again_what_was_admitted(world: World) -> None:
    world.admit(1, deadline_ms=1, channel="nats")
    world.take_over()
    assert world.core.jobs[task_id(1)].record.task_id == task_id(1)


def overloaded(world: World) -> None:
    """One slot of 10 s tasks, taken, and one that waits with too little time left when its turn comes."""
    world.replica("r1")
    for number in range(1, 6):
        serve(world, number, 10_000)
    world.admit(6)
    world.settle()
    world.claim()
    world.settle()
    world.admit(7, deadline_ms=14_000)


def test_in_lasting_overload_a_task_that_can_no_longer_be_in_time_ends(world: World) -> None:
    overloaded(world)
    assert ends(world.tick(3_900)) == []
    evicted = [end for _ in range(4) for end in ends(world.tick(1_000))]
    assert evicted == [(task_id(7), TaskState.EXPIRED, ErrorCode.DEADLINE_UNMET, None)]


def test_with_expiry_it_waits_until_its_time_is_up(world: World) -> None:
    world.respec(deadlines=DeadlineSpec(evict="expiry"))
    overloaded(world)
    assert [end for _ in range(13) for end in ends(world.tick(1_000))] == []
    assert [end[0] for end in ends(world.tick(1_000))] == [task_id(7)]


def test_a_burst_of_seconds_evicts_nobody(world: World) -> None:
    world.respec(deadlines=DeadlineSpec(overload_after_ms=60_000))
    overloaded(world)
    assert [end for _ in range(13) for end in ends(world.tick(1_000))] == []


def test_the_breaker_opens_is_audited_refuses_batch_from_the_bus_and_closes(world: World) -> None:
    world.respec(breaker=BreakerSpec(start_ms=1_000, hold_ms=2_000))
    world.replica("r1")
    world.admit(1)
    for number in range(2, 8):
        world.admit(number)
    world.told.clear()
    for _ in range(8):
        world.tick(1_000)
    (opened, *_) = audits(world, AuditEvent.BREAKER)
    assert opened["refuses"] == ["batch"]
    assert "1000 ms" in str(opened["reason"])
    load = world.loads[-1]
    assert load.classes["batch"].shed
    assert load.classes["batch"].shed_for_ms > 0
    assert ends(world.admit(20, priority=BATCH, channel="nats")) == [
        (task_id(20), TaskState.DROPPED, ErrorCode.ADMISSION_REJECT, "circuit-breaker")
    ]
    for number in range(2, 8):
        world.cancel(task_id(number))
    for _ in range(60):
        world.tick(1_000)
    assert audits(world, AuditEvent.BREAKER)[-1]["level"] == 0
    assert ends(world.admit(21, priority=BATCH, channel="nats")) == []


def test_a_full_queue_gives_appointments_and_keeps_the_places(world: World) -> None:
    world.respec(queue=QueueSpec(capacity=8))
    world.replica("r1")
    for number in range(1, 5):
        serve(world, number, 1_000)
    for number in range(5, 14):
        world.admit(number)
    world.settle()
    ask = AppointmentRequest(
        task_id=task_id(100), pool_id="p1", priority=Priority.INTERACTIVE, tenant="t", refused=True
    )
    told = world.core.appoint(ask, world.now)
    assert (told.admit, told.promised) == (False, True)
    assert 1_000 <= told.retry_after_ms <= 60_000
    world.tick(1_000)
    assert world.loads[-1].classes["interactive"].promised
    assert world.core.appoint(ask, world.now).retry_after_ms <= told.retry_after_ms
    for number in range(5, 9):
        world.claim()
        world.settle()
        world.finish("r1", task_id(number))
        world.settle()
    world.now += told.retry_after_ms
    again = AppointmentRequest(task_id=ask.task_id, pool_id="p1", priority=Priority.INTERACTIVE, tenant="t")
    assert world.core.appoint(again, world.now).admit


def test_a_tenant_at_its_bound_gets_appointments_of_its_own_and_others_need_none(world: World) -> None:
    world.respec(queue=QueueSpec(capacity=64, tenant_capacity=4))
    world.replica("r1")
    for number in range(1, 5):
        serve(world, number, 1_000)
    for number in range(5, 10):
        world.admit(number)
    world.settle()

    def ask(number: int, tenant: str = "default", *, refused: bool = False) -> Appointment:
        question = AppointmentRequest(
            task_id=task_id(number),
            pool_id="p1",
            priority=Priority.INTERACTIVE,
            tenant=tenant,
            tenant_refused=refused,
        )
        return world.core.appoint(question, world.now)

    told = ask(100, refused=True)
    assert (told.admit, told.promised, told.tenant_bound) == (False, True, True)
    assert 1_000 <= told.retry_after_ms <= 60_000
    world.tick(1_000)
    line = world.loads[-1].classes["interactive"]
    assert not line.promised
    assert line.flows["default"].promised
    assert not ask(101).admit, "the next free place of this tenant is kept"
    assert ask(102, "another").admit
    for number in range(5, 8):
        world.claim()
        world.settle()
        world.finish("r1", task_id(number))
        world.settle()
    world.now += told.retry_after_ms
    assert ask(100).admit
    world.admit(100)
    world.tick(3_600_000)
    world.tick(1_000)
    assert not any(flow.promised for flow in world.loads[-1].classes["interactive"].flows.values())
    assert world.core.pools["p1"].tenant_books.get(("default", Priority.INTERACTIVE)) is None


def test_without_room_for_another_book_a_tenant_is_told_its_pace(world: World) -> None:
    world.respec(queue=QueueSpec(capacity=64, tenant_capacity=1))
    for number in range(BOOKS_MAX):
        world.core.pools["p1"].tenant_books.open((f"t{number}", Priority.INTERACTIVE))
    question = AppointmentRequest(
        task_id=task_id(1), pool_id="p1", priority=Priority.INTERACTIVE, tenant="t", tenant_refused=True
    )
    told = world.core.appoint(question, world.now)
    assert (told.admit, told.promised) == (False, False)
    assert told.retry_after_ms >= 1_000


def test_a_placement_tells_its_chance_its_cache_and_what_was_told(world: World) -> None:
    world.replica("r1")
    (first,) = [each for each in world.admit(1, session_id=task_id(500)) if isinstance(each, Place)]
    assert (first.record.on_time_probability, first.record.kv_warmth) == (1.0, None)
    world.settle()
    world.claim()
    world.settle()
    world.admit(2, session_id=task_id(500))
    world.now += 300
    world.finish("r1", task_id(1))
    world.deliver_live()
    (second,) = [each for each in world.pending if isinstance(each, Place)]
    assert second.record.kv_warmth is True
    assert second.detail["waited_ms"] == 300
    assert second.detail["queue_position"] == second.record.queue_position


def test_figures_tell_shares_deadlines_and_the_error_of_what_was_foretold(world: World) -> None:
    world.replica("r1")
    for number in range(1, 6):
        serve(world, number, 100, tenant="a" if number % 2 else "b")
    (told,) = [each for each in world.core.handle(Tick(at_ms=world.now + 2_000)) if isinstance(each, TellLoad)]
    assert told.figures.deadlines_met == {Priority.INTERACTIVE: (5, 5)}
    assert told.figures.shares is not None
    assert sum(share for _, _, share in told.figures.shares) == pytest.approx(1)
    assert {tenant for tenant, _, _ in told.figures.shares} == {"a", "b"}


def test_a_kv_cache_over_the_tenants_quota_is_refused_rather_than_left_to_wait(world: World) -> None:
    world.respec(admission=AdmissionSpec(fairness=FairnessSpec(default=TenantLimits(kv_mb=1))))
    world.replica("r1", kv_bytes_per_token=1 << 20, free_vram_mb=100_000)
    assert ends(world.admit(1)) == [(task_id(1), TaskState.DROPPED, ErrorCode.ADMISSION_REJECT, "kv-quota")]


def test_a_task_whose_record_stands_makes_no_room_for_a_newcomer(world: World) -> None:
    world.respec(queue=QueueSpec(capacity=1, full_policy=FullPolicy.DROP_LRU))
    world.replica("r1", takes_ahead=False)
    world.admit(1, priority=BATCH)
    world.perform(world.pending.pop(), fault="half")
    world.admit(2, priority=BATCH)
    world.admit(3, priority=BATCH)
    assert [task for task, *_ in ends(world.admit(4, priority=BATCH))] == [task_id(2)]
    world.settle()
    world.tick(2_000)
    world.settle()
    assert world.state(1) == "placed"


def test_a_task_from_the_bus_that_requires_a_device_nobody_has_is_refused(world: World) -> None:
    wish = PlacementOverrides(require_device_mask="cuda:1")
    assert ends(world.admit(1, channel="nats", placement=wish)) == [], "a replica on it may come"
    world.replica("r1", device="cuda:0")
    assert ends(world.admit(2, channel="nats", placement=wish)) == [
        (task_id(2), TaskState.FAILED, ErrorCode.INVALID_PARAMS, None)
    ]
    world.replica("r2", device="cuda:1", state=ReplicaState.BACKOFF)
    assert ends(world.admit(3, channel="nats", placement=wish)) == []
    assert ends(world.admit(4, placement=wish)) == [], "the gateway has looked already"


def test_a_pool_that_loads_tells_how_long(world: World) -> None:
    world.replica("r1", state=ReplicaState.STARTING)
    world.tick(1_000)
    assert 0 < world.loads[-1].loading_ms <= 30_000
    world.now += 8_000
    world.replica("r1", state=ReplicaState.READY)
    world.tick(1_000)
    assert world.loads[-1].loading_ms == 0
    world.replica("r1", state=ReplicaState.STARTING)
    world.tick(1_000)
    assert 7_000 <= world.loads[-1].loading_ms <= 9_000
