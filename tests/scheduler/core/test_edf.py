"""Inside a flow: who came back, then earliest deadline, then admission. EDF against every possible order."""

import random
from itertools import permutations

import pytest

from llorch_scheduler.core.job import Job
from scheduler.queue_world import BATCH, FAR, numbers, policy, queue_of, starts, waiting


def late(order: tuple[Job, ...] | list[Job]) -> int:
    """Tasks of a single slot that are not done by their deadline."""
    now, count = 0.0, 0
    for job in order:
        now += job.cost_ms
        count += now > job.due_ms
    return count


def test_edf_meets_every_deadline_that_some_order_meets() -> None:
    feasible = 0
    for seed in range(400):
        dice = random.Random(seed)
        jobs = [
            waiting(number, cost_ms=dice.randint(1, 50), due_ms=dice.randint(1, 180))
            for number in range(dice.randint(2, 6))
        ]
        order = starts(queue_of(jobs), len(jobs))
        assert sorted(numbers(order)) == numbers(jobs)
        if any(late(each) == 0 for each in permutations(jobs)):
            feasible += 1
            assert late(order) == 0, seed
    assert 80 < feasible < 320


def test_equal_deadlines_go_as_admitted() -> None:
    queue = queue_of([waiting(number, due_ms=500) for number in (3, 1, 2)])
    queue.push(waiting(4, due_ms=499), 0)
    assert numbers(starts(queue, 9)) == [4, 1, 2, 3]


def test_who_came_back_goes_first_whatever_the_deadlines() -> None:
    queue = queue_of([waiting(1, due_ms=10), waiting(2, due_ms=FAR)])
    queue.push(waiting(8, due_ms=FAR, came_back=True), 0)
    queue.push(waiting(7, due_ms=FAR, came_back=True), 0)
    assert numbers(starts(queue, 9)) == [7, 8, 1, 2]


def test_order_fifo_looks_at_no_deadline() -> None:
    queue = queue_of([waiting(1, due_ms=900), waiting(2, due_ms=5)], pool=policy(order="fifo"))
    assert numbers(starts(queue, 9)) == [1, 2]


@pytest.mark.parametrize(("order", "expected"), [("fifo", [1, 2, 3]), ("edf", [3, 2, 1])])
def test_a_changed_order_holds_for_what_waits_already(order: str, expected: list[int]) -> None:
    before = "edf" if order == "fifo" else "fifo"
    jobs = [waiting(number, due_ms=1_000 - number) for number in (1, 2, 3)]
    queue = queue_of(jobs, pool=policy(order=before))
    queue.configure(policy(order=order), 10)
    assert numbers(starts(queue, 9, at_ms=10)) == expected
    assert len(queue) == 0


def test_a_batch_tasks_deadline_does_not_count_in_another_class() -> None:
    queue = queue_of([waiting(1, "a", BATCH, due_ms=1), waiting(2, "a", due_ms=FAR)])
    assert numbers(starts(queue, 9)) == [2, 1]
