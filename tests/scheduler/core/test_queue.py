"""A pool's queue by situations: shapes, soft preemption, what is remembered, what is told."""

import gc
import tracemalloc

import msgspec
import pytest

from llorch_scheduler.core.contest import LOOKED_AT_MAX, SHAPES_MAX
from llorch_scheduler.core.idle import IDLE_MAX
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.queue import Pick, PoolQueue
from llorch_scheduler.core.shape import Shape
from llorch_shared.queueing import NOBODY
from llorch_shared.wire.policy import PreemptionSpec, PrioritySpec, TenantLimits
from llorch_shared.wire.spec import PoolSpec, TimeoutSpec
from llorch_shared.wire.task import Priority
from scheduler.queue_world import (
    BATCH,
    FAR,
    INTERACTIVE,
    Slots,
    everything,
    numbers,
    policy,
    queue_of,
    start,
    starts,
    waiting,
)


def on(device: str) -> Shape:
    return Shape(device=device)


def soft(in_row: int = 8, mode: str = "soft") -> PoolSpec:
    return policy(preemption=msgspec.convert({"mode": mode, "soft_max_in_row": in_row}, PreemptionSpec))


def test_an_empty_queue_has_nobody() -> None:
    queue = PoolQueue()
    assert queue.pick(everything, 0) is None
    assert queue.wake_ms() is None
    assert len(queue) == 0


def test_a_pick_keeps_its_place_until_it_is_taken() -> None:
    queue = queue_of([waiting(1), waiting(2)])
    first = queue.pick(everything, 0)
    assert queue.pick(everything, 0) == first
    assert first is not None
    queue.took(first, 0)
    assert len(queue) == 1
    with pytest.raises(ValueError, match="does not wait here"):
        queue.took(first, 0)


def test_a_queue_that_runs_empty_again_and_again_leaves_nothing_to_the_garbage_collector() -> None:
    """As a pool with free slots does with every task."""
    queue = queue_of([])
    gc.collect()
    gc.disable()
    try:
        for number in range(200):
            queue.push(waiting(number), number)
            pick = queue.pick(everything, number)
            assert pick is not None
            queue.took(pick, number)
            queue.ended(pick.job, 5.0, 1.0, number)
            del pick
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_discarded_task_is_gone_and_one_that_returned_stands_once() -> None:
    one, two = waiting(1), waiting(2)
    queue = queue_of([one, two])
    assert queue.discard(one)
    assert not queue.discard(one)
    queue.push(one, 0)
    assert numbers(starts(queue, 9)) == [1, 2]


def test_a_task_whose_replicas_are_busy_holds_up_nobody() -> None:
    queue = queue_of([waiting(1, shape=on("cuda:0")), waiting(2, shape=on("cuda:1")), waiting(3)])
    assert start(queue, is_open=lambda shape: shape.device == "cuda:1") is not None
    assert numbers([job for job in [start(queue, is_open=lambda shape: not shape.device)] if job]) == [3]
    assert start(queue, is_open=lambda shape: shape.device == "cuda:1") is None
    assert numbers(starts(queue, 9)) == [1]


def test_of_the_shapes_that_can_be_served_the_earliest_deadline_goes_first() -> None:
    queue = queue_of(
        [
            waiting(1, shape=on("a"), due_ms=50),
            waiting(2, shape=on("b"), due_ms=40),
            waiting(3, shape=on("c"), due_ms=30),
            waiting(4, shape=on("b"), due_ms=60),
        ]
    )
    job = start(queue, is_open=lambda shape: shape.device != "c")
    assert job is not None
    assert job.order[1] == 2
    assert numbers(starts(queue, 9)) == [3, 1, 4]


def test_a_tenant_that_was_held_up_by_its_shape_catches_up_but_not_without_end() -> None:
    spec = policy(timeouts=TimeoutSpec(wall_ms=1_000))
    queue = queue_of([waiting(number, "held", shape=on("cuda:9")) for number in range(100)], pool=spec)
    for number in range(100, 300):
        queue.push(waiting(number, "free"), 0)
    for _ in range(100):
        job = start(queue, is_open=lambda shape: not shape.device)
        assert job is not None
        queue.ended(job, 100, 0, 0)
    catching_up = [job.record.tenant for job in starts(queue, 40)]
    assert catching_up[:10] == ["held"] * 10
    assert catching_up[10:].count("held") in (15, 16), "equal shares afterwards"


def test_more_shapes_than_there_are_lines_for_share_one_and_all_get_their_turn() -> None:
    count = SHAPES_MAX + 40
    jobs = [waiting(number, f"t{number % 7}", shape=on(f"cuda:{number}")) for number in range(count)]
    queue = queue_of(jobs)
    assert len(queue.classes[INTERACTIVE].contests) == SHAPES_MAX + 1
    last = jobs[-1].shape
    behind = LOOKED_AT_MAX * 7
    assert count - SHAPES_MAX < behind
    assert start(queue, is_open=lambda shape: shape == last) is jobs[-1]
    assert queue.discard(jobs[-2])
    assert sorted(numbers(starts(queue, count))) == list(range(count - 2))


def test_an_urgent_task_goes_before_the_batch_task_whose_turn_it_is() -> None:
    queue = queue_of([waiting(1, "a", cost_ms=1_000), waiting(2, "a", BATCH, cost_ms=1_000)], pool=soft())
    assert numbers(starts(queue, 1)) == [1]
    urgent = waiting(3, "b", cost_ms=100, due_ms=900)
    queue.push(urgent, 0)
    assert queue.pick(everything, 0) == Pick(urgent, passed_over=BATCH)


@pytest.mark.parametrize(
    ("due_ms", "at_ms", "why"),
    [(1_200, 0, "it can wait for the batch task"), (900, 850, "it is late whatever happens"), (FAR, 0, "no deadline")],
)
def test_who_need_not_or_cannot_be_in_time_passes_nobody(due_ms: int, at_ms: int, why: str) -> None:
    queue = queue_of([waiting(1, "a", cost_ms=1_000), waiting(2, "a", BATCH, cost_ms=1_000)], pool=soft())
    starts(queue, 1)
    queue.push(waiting(3, "b", cost_ms=100, due_ms=due_ms), 0)
    pick = queue.pick(everything, at_ms)
    assert pick is not None, why
    assert pick.job.record.priority is BATCH, why


def test_without_soft_preemption_nobody_passes() -> None:
    queue = queue_of([waiting(1, "a", cost_ms=1_000), waiting(2, "a", BATCH)], pool=soft(mode="disabled"))
    starts(queue, 1)
    queue.push(waiting(3, "b", due_ms=101), 0)
    assert numbers(starts(queue, 2)) == [2, 3]


def test_an_urgent_task_of_any_tenant_is_found_behind_hopeless_ones() -> None:
    queue = queue_of([waiting(1, "a", cost_ms=1_000), waiting(2, "a", BATCH, cost_ms=1_000)], pool=soft())
    starts(queue, 1)
    for number in range(10, 40):
        queue.push(waiting(number, f"hopeless{number}", due_ms=50), 0)
    queue.push(waiting(3, "z", due_ms=500), 0)
    assert numbers(starts(queue, 1)) == [3]


def test_the_one_that_must_start_first_passes_first() -> None:
    queue = queue_of([waiting(1, "a", cost_ms=9_000), waiting(2, "a", BATCH, cost_ms=9_000)], pool=soft())
    starts(queue, 1)
    for number, due_ms in ((3, 500), (4, 300), (5, 400)):
        queue.push(waiting(number, f"t{number}", due_ms=due_ms), 0)
    assert numbers(starts(queue, 3)) == [4, 5, 3]


def test_a_class_is_passed_over_a_bounded_number_of_times_in_a_row() -> None:
    queue = queue_of(pool=soft(in_row=3))
    for number in range(60):
        queue.push(waiting(number, f"t{number}", cost_ms=100, due_ms=150), 0)
        queue.push(waiting(100 + number, "b", BATCH, cost_ms=100), 0)
    log = "".join("b" if job.record.priority is BATCH else "i" for job in starts(queue, 60))
    turn = log.index("b")
    assert log[turn:].startswith("b")
    assert all(len(part) <= 8 + 3 for part in log.split("b"))


def test_passing_is_paid_for_so_shares_hold_in_the_long_run() -> None:
    """Interactive tasks that are always urgent, at equal weights: half of the slot time still goes to batch."""
    preemption = PreemptionSpec(soft_max_in_row=4)
    queue = queue_of(pool=policy(classes=[PrioritySpec(name=BATCH, weight=8)], preemption=preemption))
    slots = Slots(queue)
    number = 0
    for _ in range(400):
        number += 2
        queue.push(waiting(number, "u", cost_ms=100, due_ms=slots.now + 10_000_000), slots.now)
        queue.push(waiting(number + 1, "b", BATCH, cost_ms=100), slots.now)
    for number in range(2_000, 2_050):
        queue.push(waiting(number, "v", cost_ms=100, due_ms=20_000), 0)
    slots.run(30_000)
    batch = slots.work[BATCH, "b"]
    assert abs(batch / slots.work.total() - 0.5) < 0.03


def test_for_hard_preemption_the_most_urgent_task_is_told() -> None:
    queue = queue_of([waiting(1, "a", due_ms=5_000), waiting(2, "b", due_ms=700), waiting(3, "c", BATCH, due_ms=150)])
    assert queue.urgent(everything, 0, 100) is None
    job = queue.urgent(everything, 0, 1_000)
    assert job is not None
    assert job.order[1] == 2
    assert queue.urgent(lambda shape: False, 0, 1_000) is None
    assert len(queue) == 3


def test_who_returns_is_first_in_its_flow_and_gets_back_what_it_did_not_use() -> None:
    queue = queue_of([waiting(number, "ab"[number % 2], cost_ms=1_000) for number in range(10)])
    lost = start(queue)
    assert lost is not None
    assert lost.record.tenant == "a"
    queue.returned(lost, 200, used_ms=200)
    lost.order = (0, 1)
    queue.push(lost, 200)
    assert start(queue, 200).record.tenant == "b"  # type: ignore[union-attr]
    assert start(queue, 200) is lost


def test_what_nobody_took_can_end_and_return_without_effect() -> None:
    queue = queue_of([waiting(1)])
    queue.ended(waiting(9), 100, 5, 0)
    queue.returned(waiting(9), 0)
    assert numbers(starts(queue, 2)) == [1]


def test_tasks_found_running_are_charged_once() -> None:
    queue = PoolQueue()
    found = [waiting(number, "a", cost_ms=100) for number in range(3)]
    for job in [*found, *found]:
        queue.held(job, 0)
    for number in range(10, 30):
        queue.push(waiting(number, "ab"[number % 2]), 0)
    assert [job.record.tenant for job in starts(queue, 4)] == list("bbba")
    for job in found:
        queue.ended(job, 100, 0, 0)


def test_tenants_that_came_and_went_leave_nothing_behind() -> None:
    queue = PoolQueue()
    for number in range(3_000):
        queue.push(waiting(number, f"t{number}"), number)
        assert len(starts(queue, 1, at_ms=number)) == 1
    assert not queue.classes[INTERACTIVE].flows
    assert len(queue._tenants) == 0
    assert not queue._charges


def test_idle_tenants_beside_a_busy_one_are_forgotten_as_virtual_time_passes() -> None:
    queue = PoolQueue()
    number = 0
    for round_ in range(200):
        for each in range(20):
            number += 1
            queue.push(waiting(number, f"t{round_}-{each}"), 0)
        for _ in range(2):
            number += 1
            queue.push(waiting(number, "busy"), 0)
        starts(queue, 21)
    assert len(queue.classes[INTERACTIVE].flows) < 200


def test_idle_tenants_ahead_of_virtual_time_are_bounded() -> None:
    queue = queue_of([waiting(0, "slow", shape=on("cuda:7"))])
    for number in range(1, IDLE_MAX + 2_000):
        queue.push(waiting(number, f"t{number}"), 0)
        job = start(queue, is_open=lambda shape: not shape.device)
        assert job is not None
        queue.ended(job, 100, 0, 0)
    assert len(queue.classes[INTERACTIVE].flows) <= IDLE_MAX + 1


def test_what_stands_before_a_task_is_counted() -> None:
    queue = queue_of(
        [
            waiting(1, "a", cost_ms=10, due_ms=100),
            waiting(2, "a", cost_ms=20, due_ms=200),
            waiting(3, "a", cost_ms=30, due_ms=300),
            waiting(4, "b", cost_ms=40),
            waiting(5, "c", BATCH, cost_ms=50),
        ],
        pool=policy(tenants={"a": 5}),
    )
    job = next(job for job in queue.classes[INTERACTIVE].jobs() if job.order[1] == 2)
    ahead = queue.ahead_of(job)
    assert (ahead.flow_tasks, ahead.flow_weight, ahead.flows_weight) == (1, 5, 6)
    assert (ahead.class_tasks, ahead.class_work_ms, ahead.class_weight) == (3, 80, 8)
    assert (ahead.other_tasks, ahead.other_work_ms, ahead.other_weight) == (1, 50, 1)
    newcomer = queue.ahead_of_newcomer(INTERACTIVE, "a", 200)
    assert (newcomer.flow_tasks, newcomer.class_tasks) == (2, 4)
    assert queue.ahead_of_newcomer(BATCH, "z", FAR) is NOBODY


def test_the_backlog_is_told_with_its_longest_flows() -> None:
    jobs = [waiting(100 * flow + each, f"t{flow}", cost_ms=10) for flow in range(100) for each in range(flow % 7 + 1)]
    queue = queue_of(jobs, pool=policy(tenants={"t6": 3}))
    load = queue.class_loads()["interactive"]
    assert load.queued == len(jobs)
    assert load.work_ms == 10 * len(jobs)
    assert load.flows_weight == 102
    assert len(load.flows) == 64
    assert load.flows["t6"].weight == 3
    assert load.flows["t6"].queued == 7
    assert min(flow.queued for flow in load.flows.values()) >= 3
    assert queue.class_loads()["batch"].queued == 0
    assert all(list(flow.due_ms) == sorted(flow.due_ms) for flow in load.flows.values())
    assert all(len(flow.due_ms) == min(9, flow.queued) for flow in load.flows.values())


def test_the_pace_of_a_flow_that_waits_is_measured() -> None:
    queue = queue_of([waiting(number) for number in range(50)])
    for at_ms in range(0, 10_000, 250):
        job = start(queue, at_ms)
        assert job is not None
        queue.ended(job, 200, 0, at_ms)
    assert queue.class_loads()["interactive"].flows["a"].pace_ms == 250


def test_a_queued_task_takes_few_bytes_beside_its_job() -> None:
    jobs = [waiting(number, f"t{number % 500}", due_ms=10_000 + number) for number in range(20_000)]
    queue = PoolQueue()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for job in jobs:
        queue.push(job, 0)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used / len(jobs) < 288


def test_equal_histories_give_equal_decisions() -> None:
    def history() -> list[int]:
        queue = queue_of(pool=policy(tenants={"t1": 4, "t3": 2}))
        log: list[Job] = []
        for number in range(500):
            priority = (INTERACTIVE, BATCH)[number % 3 == 0]
            queue.push(waiting(number, f"t{number % 5}", priority, cost_ms=1 + number * 37 % 91), number)
            if number % 3:
                log += starts(queue, 1, at_ms=number)
        return numbers(log)

    assert history() == history()


def test_who_goes_at_once_pays_and_earns_as_if_it_had_stood_in_line() -> None:
    def history(*, at_once: bool) -> tuple[list[int], list[tuple[str, Priority, float]], int]:
        """Tasks that find an empty queue and run on, then a crowd that shows what each flow has paid."""
        queue = queue_of(pool=policy(tenants={"t1": 4, "t3": 2}))
        direct = 0
        for number in range(300):
            job = waiting(number, f"t{number % 5}", (INTERACTIVE, BATCH)[number % 3 == 0], cost_ms=1 + number * 37 % 91)
            if at_once and queue.goes_at_once(job):
                queue.took_at_once(job, number)
                direct += 1
            else:
                queue.push(job, number)
                assert start(queue, number) is job
            if number % 4:
                queue.ended(job, float(number * 53 % 120), 0.0, number)
        for number in range(300, 400):
            queue.push(waiting(number, f"t{number % 5}", (INTERACTIVE, BATCH)[number % 2]), number)
        return numbers(starts(queue, 100, at_ms=400)), list(queue.shares()), direct

    order, shares, direct = history(at_once=True)
    assert (order, shares) == history(at_once=False)[:2]
    assert direct > 200


@pytest.mark.parametrize(
    ("pool", "queued"),
    [
        (policy(), [waiting(1, "other")]),
        (policy(tenants={"a": TenantLimits(max_concurrent=8)}), []),
        (policy(classes=[PrioritySpec(name=INTERACTIVE, rate_limit_rps=5)]), []),
    ],
    ids=["somebody waits", "its tenant has a quota", "its class has a rate"],
)
def test_who_may_have_to_wait_does_not_go_at_once(pool: PoolSpec, queued: list[Job]) -> None:
    queue = queue_of([waiting(0)], pool=pool)
    assert start(queue) is not None
    for job in queued:
        queue.push(job, 0)
    assert not queue.goes_at_once(waiting(2))
