"""Sorted jobs in blocks against a plain sorted list."""

import random

import pytest

from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import JobList, entry_of
from scheduler.queue_world import waiting


@pytest.mark.parametrize("edf", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_line_is_a_sorted_list_whatever_comes_and_goes(seed: int, edf: bool) -> None:
    dice = random.Random(seed)
    line, naive = JobList(), list[Job]()
    grow = 0.8
    for number in range(1, 6_000):
        if number % 2_000 == 0:
            grow = 1.0 - grow
        if not naive or dice.random() < grow:
            job = waiting(
                number, due_ms=dice.randint(1, 500), cost_ms=dice.randint(1, 100), came_back=dice.random() < 0.02
            )
            line.add(entry_of(job, edf=edf))
            naive.append(job)
        else:
            job = (line.head if dice.random() < 0.5 else None) or dice.choice(naive)
            assert line.remove(job, edf=edf) == job.cost_ms
            naive.remove(job)
        if number % 50 == 0:
            _agree(line, naive, dice, edf=edf)
    _agree(line, naive, dice, edf=edf)


def _agree(line: JobList, naive: list[Job], dice: random.Random, *, edf: bool) -> None:
    ordered = sorted(naive, key=lambda job: entry_of(job, edf=edf)[:3])
    assert line.jobs() == ordered
    assert line.size == len(ordered)
    last = len(ordered) - 1
    assert line.spaced(9) == (ordered if last < 9 else [ordered[step * last // 8] for step in range(9)])
    assert line.work_ms == pytest.approx(sum(job.cost_ms for job in ordered))
    assert line.head is (ordered[0] if ordered else None)
    assert line.tail is (ordered[-1] if ordered else None)
    if ordered:
        place = dice.randrange(len(ordered))
        assert line.before(entry_of(ordered[place], edf=edf)[:3]) == place


def test_what_is_not_in_a_line_is_not_taken_from_it() -> None:
    line, one, twin = JobList(), waiting(1), waiting(1)
    line.add(entry_of(one, edf=True))
    assert line.remove(twin, edf=True) == 0
    assert line.remove(waiting(2), edf=True) == 0
    assert line.remove(one, edf=True) == one.cost_ms
    assert line.remove(one, edf=True) == 0


def test_a_line_that_was_thinned_holds_few_blocks() -> None:
    line = JobList()
    jobs = [waiting(number) for number in range(20_000)]
    for job in jobs:
        line.add(entry_of(job, edf=False))
    for job in jobs:
        if job.order[1] % 100:
            line.remove(job, edf=False)
    assert line.size == 200
    assert line._more is not None
    assert len(line._more) < 8
