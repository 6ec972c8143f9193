"""Who makes place in a full queue: REQUIREMENTS section 7, policy by policy."""

import random

import pytest

from llorch_scheduler.core.job import Job
from llorch_scheduler.core.queue import REFUSE, PoolQueue
from llorch_shared.wire.policy import FullPolicy, PrioritySpec, QueueSpec
from llorch_shared.wire.spec import PoolSpec
from scheduler.queue_world import BATCH, INTERACTIVE, policy, queue_of, start, waiting


def bounded(full: FullPolicy, *, interactive: int = 2, batch: int = 2, tenant: int | None = None) -> PoolSpec:
    classes = (
        PrioritySpec(name=INTERACTIVE, queue_capacity=interactive),
        PrioritySpec(name=BATCH, queue_capacity=batch),
    )
    return policy(classes=classes, queue=QueueSpec(full_policy=full, tenant_capacity=tenant))


def test_reject_leaves_it_to_the_server() -> None:
    spec = bounded(FullPolicy.REJECT, interactive=1)
    queue = queue_of([waiting(1), waiting(2), waiting(3)], pool=spec)
    assert queue.victim(waiting(4), spec) is None


def test_drop_lru_has_no_victim_while_there_is_a_place() -> None:
    spec = bounded(FullPolicy.DROP_LRU)
    queue = queue_of([waiting(1), waiting(2), waiting(3)], pool=spec)
    assert queue.victim(waiting(4), spec) is None


def test_drop_lru_ends_the_oldest_batch_task() -> None:
    spec = bounded(FullPolicy.DROP_LRU)
    oldest = waiting(2, "b", BATCH, due_ms=900)
    queue = queue_of([waiting(1), waiting(5, "a", BATCH, due_ms=1), oldest, waiting(3)], pool=spec)
    assert queue.victim(waiting(9), spec) is oldest
    assert queue.victim(waiting(9, "a", BATCH), spec) is oldest


def test_drop_lru_without_batch_ends_the_oldest_of_all() -> None:
    spec = bounded(FullPolicy.DROP_LRU)
    jobs = [waiting(number, f"t{number}", due_ms=100 - number) for number in (3, 1, 2, 4)]
    queue = queue_of(jobs, pool=spec)
    assert queue.victim(waiting(9), spec) is jobs[1]


def test_shed_ends_the_newest_of_the_lower_class() -> None:
    spec = bounded(FullPolicy.SHED_LOW_PRIORITY)
    newest = waiting(6, "b", BATCH)
    queue = queue_of([waiting(1), waiting(2), newest, waiting(5, "c", BATCH)], pool=spec)
    assert queue.victim(waiting(9), spec) is newest


def test_shed_refuses_a_newcomer_with_no_lower_class_to_take_from() -> None:
    spec = bounded(FullPolicy.SHED_LOW_PRIORITY)
    batch = queue_of([waiting(1, "a", BATCH), waiting(2, "b", BATCH)], pool=spec)
    assert batch.victim(waiting(9, "c", BATCH), spec) is REFUSE
    assert batch.victim(waiting(9, "c"), spec) is None
    interactive = queue_of([waiting(number) for number in (1, 2, 3, 4)], pool=spec)
    assert interactive.victim(waiting(9), spec) is REFUSE


def test_a_tenant_over_its_bound_is_refused_and_others_are_not() -> None:
    spec = bounded(FullPolicy.REJECT, tenant=2)
    queue = queue_of([waiting(1), waiting(2)], pool=spec)
    assert queue.victim(waiting(3), spec) is REFUSE
    assert queue.victim(waiting(3, "b"), spec) is None
    assert queue.victim(waiting(3, "a", BATCH), spec) is None


def test_who_came_back_takes_no_place_and_is_no_victim() -> None:
    spec = bounded(FullPolicy.DROP_LRU, interactive=1, batch=1)
    fresh = waiting(5, "a", BATCH)
    queue = queue_of([waiting(1, "a", BATCH, came_back=True), fresh], pool=spec)
    assert queue.victim(waiting(9), spec) is None
    other = waiting(6)
    queue.push(other, 0)
    assert queue.victim(waiting(9), spec) is fresh
    queue.discard(fresh)
    queue.push(waiting(7), 0)
    assert queue.victim(waiting(9), spec) is other


@pytest.mark.parametrize("full", [FullPolicy.DROP_LRU, FullPolicy.SHED_LOW_PRIORITY])
def test_a_changed_policy_knows_the_ages_of_what_waits_already(full: FullPolicy) -> None:
    jobs = [waiting(number, "a", BATCH) for number in (2, 1, 3, 4)]
    queue = queue_of(jobs, pool=bounded(FullPolicy.REJECT))
    spec = bounded(full)
    queue.configure(spec, 5)
    expected = 1 if full is FullPolicy.DROP_LRU else 4
    victim = queue.victim(waiting(9), spec)
    assert isinstance(victim, Job)
    assert victim.order[1] == expected


@pytest.mark.parametrize("full", [FullPolicy.DROP_LRU, FullPolicy.SHED_LOW_PRIORITY])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_the_bound_is_kept_and_victims_are_right(full: FullPolicy, seed: int) -> None:
    dice = random.Random(seed)
    spec = bounded(full, interactive=7, batch=5)
    queue = queue_of(pool=spec)
    fresh: list[Job] = []
    for number in range(1, 2_000):
        if dice.random() < 0.3:
            job = start(queue, number)
        elif dice.random() < 0.1 and fresh:
            job = dice.choice(fresh)
            queue.discard(job)
        else:
            job = None
            newcomer = waiting(
                number, dice.choice("abc"), dice.choice((INTERACTIVE, BATCH)), due_ms=dice.randint(1, 99)
            )
            _arrive(queue, spec, full, fresh, newcomer)
        if job is not None:
            fresh.remove(job)
        assert len(queue) == len(fresh) <= 12


def _arrive(queue: PoolQueue, spec: PoolSpec, full: FullPolicy, fresh: list[Job], newcomer: Job) -> None:
    victim = queue.victim(newcomer, spec)
    batch = [job for job in fresh if job.record.priority is BATCH]
    expected: object = None
    if full is FullPolicy.DROP_LRU:
        if len(fresh) >= 12:
            expected = min(batch or fresh, key=lambda job: job.order)
    elif newcomer.record.priority is BATCH:
        expected = REFUSE if len(batch) >= 5 or len(fresh) >= 12 else None
    elif len(fresh) >= 12:
        expected = max(batch, key=lambda job: job.order) if batch else REFUSE
    assert victim is expected
    if isinstance(victim, Job):
        queue.discard(victim)
        fresh.remove(victim)
    if victim is not REFUSE:
        queue.push(newcomer, 0)
        fresh.append(newcomer)
