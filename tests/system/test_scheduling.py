"""The policy as its users meet it: who makes way, who waits, who goes on, and what they are told."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold.mock_text import text_of
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Full
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.run import RUN_DECODER, RunRecord
from llorch_shared.wire.task import Priority, TaskRequest, TaskState
from support.client import Refusal, Transcript, task_request
from support.system import PATIENT, System, mock_pool

pytestmark = pytest.mark.system

BATCH = Priority.BATCH
INTERACTIVE = Priority.INTERACTIVE
CLOCKS_MS = 300
"""Two processes follow the clock of the bus, each as well as it can."""


@contextlib.asynccontextmanager
async def one_slot(folder: Path, **policy: Any) -> AsyncIterator[System]:
    """One slot, 100 tokens a second."""
    pool = mock_pool(replicas=1, slots=1, rate=100, **policy)
    async with System(folder, pools=[pool], settings=PATIENT) as system:
        yield system


async def publish(system: System, request: TaskRequest, tenant: str = "default") -> None:
    """As a bus client of some tenant does."""
    subject = subjects.admission("mock", request.priority, tenant)
    await system.bus.store(subject, msgspec.json.encode(request), msg_id=request.task_id)


async def occupy(system: System, **changes: Any) -> str:
    """A task that runs now."""
    accepted = await system.client().submit(task_request(max_tokens=2000, **changes))
    await system.client().read(accepted.task_id, tokens_max=1)
    return accepted.task_id


async def record_of(system: System, task_id: str) -> RunRecord:
    message = await system.bus.last(streams.RUN, subjects.run(task_id))
    assert message is not None, f"{task_id} has no run record"
    return RUN_DECODER.decode(message.data)


async def test_drop_lru_ends_the_oldest_batch_task_for_a_newcomer(tmp_path: Path) -> None:
    policy = {"queue": {"capacity": 2, "full_policy": "drop-lru"}}
    async with one_slot(tmp_path, **policy) as system:
        running = await occupy(system)
        old = [task_request(priority=BATCH, max_tokens=2) for _ in range(2)]
        late = [task_request(max_tokens=2) for _ in range(3)]
        for request in (*old, *late):
            await system.client().submit(request)
        dropped = await system.client().read(old[0].task_id)
        assert dropped.error is not None
        assert (dropped.error.code, dropped.error.policy_label) == ("QUEUE_FULL_DROP_LRU", "drop-lru")
        assert dropped.error.retriable
        assert (await system.client().get(old[0].task_id)).state is TaskState.DROPPED
        assert await system.client().cancel(running) == 204
        for request in (old[1], *late):
            assert (await system.client().read(request.task_id)).end is not None


async def test_shedding_gives_a_batch_place_to_an_interactive_task(tmp_path: Path) -> None:
    policy = {"queue": {"capacity": 2, "full_policy": "shed-low-priority"}}
    async with one_slot(tmp_path, **policy) as system:
        running = await occupy(system)
        low = [task_request(priority=BATCH, max_tokens=2) for _ in range(2)]
        high = [task_request(max_tokens=2) for _ in range(4)]
        for request in (*low, *high):
            await system.client().submit(request)
        with pytest.raises(Refusal) as caught:
            await system.client().submit(task_request(max_tokens=2))
        assert (caught.value.status, caught.value.body.policy_label) == (429, "shed-low-priority")
        for request in low:
            shed = await system.client().read(request.task_id)
            assert shed.error is not None
            assert shed.error.policy_label == "shed-low-priority"
        assert await system.client().cancel(running) == 204
        for request in high:
            assert (await system.client().read(request.task_id)).end is not None


async def test_a_tenant_fills_its_own_places_and_not_those_of_others(tmp_path: Path) -> None:
    """A bound of 10, 15 sent: exactly 5 are refused (REQUIREMENTS section 7)."""
    async with one_slot(tmp_path, queue={"capacity": 64, "tenant_capacity": 10}) as system:
        running = await occupy(system)
        refused = 0
        for _ in range(15):
            try:
                await publish(system, task_request(max_tokens=1), "greedy")
            except Full:
                refused += 1
        assert refused == 5
        modest = task_request(max_tokens=1)
        await publish(system, modest, "modest")
        assert await system.client().cancel(running) == 204
        assert (await system.client().read(modest.task_id)).end is not None


async def test_a_tenant_over_its_quota_waits_and_holds_up_nobody(tmp_path: Path) -> None:
    fairness = {"tenants": [{"id": "capped", "max_concurrent": 1}]}
    pool = mock_pool(replicas=1, slots=4, rate=100, admission={"fairness": fairness})
    async with System(tmp_path, pools=[pool]) as system:
        capped = [task_request(max_tokens=100) for _ in range(4)]
        free = [task_request(max_tokens=40) for _ in range(4)]
        for request in capped:
            await publish(system, request, "capped")
        for request in free:
            await publish(system, request, "free")
        await asyncio.gather(*(system.client().read(request.task_id) for request in (*capped, *free)))
        spans = sorted(
            (record.placed_ms, record.ended_ms)
            for record in [await record_of(system, request.task_id) for request in capped]
        )
        assert all(later[0] >= earlier[1] - CLOCKS_MS for earlier, later in itertools.pairwise(spans)), spans
        last_capped = max(end for _, end in spans)
        free_ends = [(await record_of(system, request.task_id)).ended_ms for request in free]
        assert max(free_ends) < last_capped, "the others went past"


async def test_an_earlier_deadline_goes_first_inside_one_tenants_class(tmp_path: Path) -> None:
    async with one_slot(tmp_path) as system:
        running = await occupy(system)
        budgets_ms = [90_000, 60_000, 120_000, 45_000]
        requests = [task_request(max_tokens=2, deadline_ms=budget) for budget in budgets_ms]
        for request in requests:
            await system.client().submit(request)
        assert await system.client().cancel(running) == 204
        await asyncio.gather(*(system.client().read(request.task_id) for request in requests))
        starts = {request.deadline_ms: (await record_of(system, request.task_id)).started_ms for request in requests}
        assert sorted(starts, key=starts.__getitem__) == sorted(budgets_ms)


async def test_a_deadline_that_cannot_be_met_is_refused_before_the_queue(tmp_path: Path) -> None:
    async with one_slot(tmp_path) as system:
        for _ in range(3):
            done = await system.client().submit(max_tokens=100)
            await system.client().read(done.task_id)
        running = await occupy(system)
        answers: list[tuple[int, str]] = []

        async def refused() -> bool:
            try:
                accepted = await system.client().submit(task_request(max_tokens=100, deadline_ms=200))
            except Refusal as refusal:
                answers.append((refusal.status, str(refusal.body.code)))
                return True
            await system.client().cancel(accepted.task_id)
            return False

        await system.until(refused, "a refusal by the measured backlog", 30)
        assert answers == [(400, "DEADLINE_UNMET")]
        assert await system.client().cancel(running) == 204


async def test_urgent_work_stops_a_batch_task_that_resumes_without_a_gap(tmp_path: Path) -> None:
    policy = {"preemption": {"mode": "hard"}}
    async with one_slot(tmp_path, **policy) as system:
        measured = await system.client().submit(max_tokens=100)
        await system.client().read(measured.task_id)
        long = await system.client().submit(max_tokens=500, priority=BATCH, seed=7, prompt="five seconds")
        victim = asyncio.create_task(system.client().read(long.task_id))
        other = await system.client().read(long.task_id, tokens_max=20)
        assert len(other.tokens) >= 20
        urgent = await system.client().submit(max_tokens=5, deadline_ms=3_000)
        quick = await system.client().read(urgent.task_id)
        assert quick.end is not None
        transcript: Transcript = await victim
        transcript.check()
        assert transcript.text == text_of("five seconds", 7, 500)
        said = [frame for frame in transcript.metrics if frame.preempted]
        assert len(said) == 1
        assert said[0].resume_from is not None
        resumed = [frame.attempt for frame in transcript.metrics if frame.attempt]
        assert 2 in resumed
        record = await record_of(system, long.task_id)
        assert (record.state, record.preemptions, record.attempt) == (TaskState.DONE, 1, 2)
        assert (await record_of(system, urgent.task_id)).ended_ms < record.ended_ms
        assert await system.metric("scheduler-1", "preemptions_total", mode="hard") == 1
        assert await system.metric("scheduler-1", "resumptions_total") == 1
        audits = await system.bus.replay(streams.AUD, subjects.audit(AuditEvent.PREEMPTED, long.task_id))
        (audit,) = [AUDIT_DECODER.decode(each.data) for each in audits]
        assert (audit.attempt, audit.detail["urgent_task_id"]) == (1, urgent.task_id)


async def test_a_changed_policy_applies_to_what_waits_already_and_is_audited(tmp_path: Path) -> None:
    async with one_slot(tmp_path) as system:
        running = await occupy(system)
        first = [task_request(max_tokens=2, priority=BATCH) for _ in range(6)]
        for request in first:
            await publish(system, request, "old")
        second = [task_request(max_tokens=2, priority=BATCH) for _ in range(6)]
        for request in second:
            await publish(system, request, "new")
        heavy = {"fairness": {"tenants": [{"id": "new", "weight": 100}]}}
        await system.put_pool(mock_pool(replicas=1, slots=1, rate=100, admission=heavy))

        async def audited() -> bool:
            subject = subjects.audit(AuditEvent.POOL_CHANGED, "mock")
            records = [AUDIT_DECODER.decode(m.data) for m in await system.bus.replay(streams.AUD, subject)]
            return any("admission.fairness.tenants" in str(record.detail["changes"]) for record in records)

        await system.until(audited, "the change in the audit stream", 30)
        assert await system.client().cancel(running) == 204
        await asyncio.gather(*(system.client().read(request.task_id) for request in (*first, *second)))
        ends = {
            tenant: [(await record_of(system, request.task_id)).started_ms for request in requests]
            for tenant, requests in (("old", first), ("new", second))
        }
        assert sorted(ends["new"])[-2] < sorted(ends["old"])[1], "the heavier tenant went first"


async def test_two_schedulers_share_the_pools_and_a_killed_ones_part_moves(tmp_path: Path) -> None:
    pools = [mock_pool(name, replicas=1, slots=1, rate=100) for name in ("p0", "p1", "p2", "p3")]
    assert len({subjects.shard_of(pool.id) for pool in pools}) > 1
    async with System(tmp_path, pools=pools, schedulers=2) as system:

        async def shared() -> bool:
            return all([await system.metric(f"scheduler-{n}", "scheduler_active") for n in (1, 2)])

        await system.until(shared, "both schedulers to be active", 20)
        running = [await submit_to(system, pool.id, 200) for pool in pools]
        system.kill9("scheduler-1")
        queued = [await submit_to(system, pool.id, 3) for pool in pools]
        for task in (*running, *queued):
            transcript = await system.client().read(task)
            transcript.check()
            assert transcript.end is not None
            assert (await record_of(system, task)).attempt == 1, "what ran went on"


async def submit_to(system: System, pool_id: str, tokens: int) -> str:
    placement = {"mode": "pin", "pin_pool_id": pool_id}
    return (await system.client().submit(task_request(max_tokens=tokens, placement=placement))).task_id
