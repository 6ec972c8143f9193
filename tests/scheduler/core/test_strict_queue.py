"""Lines and queues by themselves: order, tombstones, bounds of memory."""

from llorch_scheduler.core.estimate import SlotTime
from llorch_scheduler.core.events import AdmissionRef, TaskArrived
from llorch_scheduler.core.job import Job, arrived
from llorch_scheduler.core.strict_queue import Line, PoolQueue
from llorch_shared.wire.task import Priority
from scheduler.core_world import request, task_id


def job(number: int, priority: Priority = Priority.INTERACTIVE) -> Job:
    event = TaskArrived(
        at_ms=0,
        ref=AdmissionRef("s", number),
        task_id=task_id(number),
        pool_id="p1",
        priority=priority,
        tenant="t",
        lane="gw-1",
        correlation_id="c",
        channel="http",
        admitted_ms=0,
        request=request(number),
    )
    return arrived(event, position=0, predicted_ms=0)


def test_heads_come_in_order_whatever_the_order_of_arrival() -> None:
    line = Line()
    jobs = [job(number) for number in range(1, 51)]
    for each in [*jobs[25:], *reversed(jobs[:25])]:
        line.push(each)
    seen = []
    while (head := line.head()) is not None:
        seen.append(head)
        line.discard(head)
    assert seen == jobs


def test_a_job_that_left_and_came_back_stands_once() -> None:
    line, one = Line(), job(1)
    line.push(one)
    line.discard(one)
    line.push(one)
    assert len(line) == 1
    assert line.head() is one
    line.discard(one)
    assert line.head() is None
    assert not line.discard(one)


def test_cancelled_entries_do_not_pile_up() -> None:
    line = Line()
    first = job(1)
    line.push(first)
    for number in range(2, 10_000):
        each = job(number)
        line.push(each)
        line.discard(each)
    assert len(line._tail) + len(line._early) < 200
    assert line.head() is first


def test_a_task_set_aside_still_counts_and_returns_to_its_place() -> None:
    queue = PoolQueue()
    first, second = job(1), job(2)
    queue.push(first)
    queue.push(second)
    queue.set_aside(first)
    assert len(queue) == 2
    assert queue.head([]) is second
    queue.bring_back()
    assert queue.head([]) is first
    assert queue.discard(first)
    assert len(queue) == 1


def test_a_newcomer_waits_behind_its_class_and_the_classes_before() -> None:
    queue = PoolQueue()
    for number in (1, 2, 3):
        queue.push(job(number))
    queue.push(job(4, Priority.BATCH))
    assert queue.ahead_of_newcomer(Priority.INTERACTIVE) == 3
    assert queue.ahead_of_newcomer(Priority.BATCH) == 4


def test_the_mean_starts_at_the_first_sample_and_moves_a_fifth_of_the_way() -> None:
    mean = SlotTime()
    mean.add(1_000)
    assert mean.mean_ms == 1_000
    mean.add(2_000)
    assert mean.mean_ms == 1_200
