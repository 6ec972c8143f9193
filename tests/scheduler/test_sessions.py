"""Accounts of sessions as a scheduler keeps them: nothing runs that was not reserved for, nothing stays unsettled."""

import uuid
from typing import Any

import msgspec
import pytest

from llorch_scheduler import locate, session_gate, session_keeper
from llorch_shared import session_account, streams, subjects
from llorch_shared.bus.port import Denied, Stored, Unanswered
from llorch_shared.errors import PolicyLabel
from llorch_shared.session_store import Known
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import (
    SESSION_DECODER,
    SESSION_SEEN_DECODER,
    SessionPolicy,
    SessionQuestion,
    SessionRecord,
    SessionRequest,
    SessionSeen,
)
from llorch_shared.wire.task import Priority, TaskState
from scheduler.world import Town, request, town
from support.bus_worlds import MemoryWorld, becomes_true, eventually

SESSION = "7c1d3c1e-64a0-4e1a-9f53-0b8f3f0f6a02"
FREE = SessionPolicy()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_keeper, "NODE_SETTLES_WITHIN_S", 0.05)
    monkeypatch.setattr(session_keeper, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(session_keeper, "TURN_S", 0.02)


def opened(**wanted: Any) -> SessionRecord:
    return session_account.opened(SESSION, "default", FREE, SessionRequest(**wanted), now_ms())


def held(record: SessionRecord, task_id: str, *, at_ms: int) -> SessionRecord:
    wish = session_account.Wish(task_id, "p1", 10, 1_000, "mock", "gw-1")
    return session_account.reserve(record, wish, FREE, at_ms)


async def store(place: Town, record: SessionRecord) -> None:
    await place.client.bus.store(subjects.session("default", SESSION), msgspec.json.encode(record))


async def account(place: Town) -> SessionRecord:
    message = await place.client.bus.last(streams.SES, subjects.session("default", SESSION))
    assert message is not None
    return SESSION_DECODER.decode(message.data)


async def has_settled(place: Town, *task_ids: str) -> bool:
    return set((await account(place)).settled) == set(task_ids)


async def test_a_bus_clients_task_is_reserved_for_and_settled_by_the_scheduler() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        await store(place, opened(tokens_budget=30))
        task = request(session_id=SESSION, max_tokens=16)
        await place.client.admit(task, lane="")
        await eventually(lambda: task.task_id in node.held)
        run, _ = node.held[task.task_id]
        assert run.session is not None
        assert (run.session.tokens_max, run.session.remaining.tokens_budget_remaining) == (16, 14)
        node.held[task.task_id] = (msgspec.structs.replace(run, tokens_out=9, decode_ms=4), node.held[task.task_id][1])
        assert await node.end(task.task_id)
        await becomes_true(lambda: has_settled(place, task.task_id))
        assert ((await account(place)).spent.tokens, (await account(place)).open) == (9, {})


async def test_a_bus_clients_task_over_its_budget_ends_with_the_refusal() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        await place.node()
        await store(place, opened(tokens_budget=10))
        task = request(session_id=SESSION, max_tokens=16)
        await place.client.admit(task, lane="")
        await eventually(lambda: place.client.finals.get(task.task_id) == [TaskState.FAILED])
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert run.error is not None
        assert run.error.policy_label is PolicyLabel.SESSION_BUDGET
        assert (await account(place)).turns == 0


async def test_what_a_gateway_accepted_before_its_session_had_a_budget_runs_and_is_paid_for() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        await store(place, msgspec.structs.replace(opened(tokens_budget=10), created_ms=now_ms() + 60_000))
        task = request(session_id=SESSION, max_tokens=16)
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held, 15)
        assert set((await account(place)).open) == {task.task_id}
        assert await node.end(task.task_id)
        await becomes_true(lambda: has_settled(place, task.task_id))


async def test_while_accounts_cannot_be_written_only_the_tasks_that_need_one_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_gate, "RETRY_S", 0.01)
    monkeypatch.setattr(locate, "CATCH_UP_S", 20.0)
    async with town(MemoryWorld()) as place:
        process = await place.scheduler()
        node = await place.node(slots=3)
        await store(place, opened(tokens_budget=30))
        await eventually(lambda: process.active, 15)
        bus, written = process.scheduler._bus, False
        write = bus.store

        async def refused(subject: str, *args: Any, **kwargs: Any) -> Stored:
            if subject == subjects.session("default", SESSION) and not written:
                raise Denied("no account can be written")
            return await write(subject, *args, **kwargs)

        monkeypatch.setattr(bus, "store", refused)
        first, free, second = request(session_id=SESSION, max_tokens=8), request(), request(session_id=SESSION)
        for task in (first, free, second):
            await place.client.admit(task, lane="")
        await eventually(lambda: free.task_id in node.held)
        loop = process.scheduler.terms[subjects.shard_of("p1")]
        await eventually(lambda: loop._gate.waits(first.task_id) and loop._gate.waits(second.task_id))
        assert set(node.held) == {free.task_id}
        with pytest.raises(Unanswered):
            await loop._locator.locate(first.task_id)
        written = True
        await eventually(lambda: first.task_id in node.held)
        run, _ = node.held[first.task_id]
        assert run.session is not None
        assert run.session.tokens_max == 8
        assert not loop._gate.waits(first.task_id)


async def test_what_was_reserved_for_anew_while_it_was_looked_for_is_kept() -> None:
    async with town(MemoryWorld()) as place:
        process = await place.scheduler()
        await place.node()
        await eventually(lambda: process.active, 15)
        keeper = process.scheduler.terms[min(process.shards)]._keeper
        task_id = str(uuid.uuid4())
        old = held(opened(tokens_budget=30), task_id, at_ms=now_ms() - 2 * session_keeper.NEVER_QUEUED_MS)
        await store(place, held(old, task_id, at_ms=now_ms()))
        await keeper._release_unless_queued(Known(old, 1), task_id, old.open[task_id])
        assert set((await account(place)).open) == {task_id}


async def test_what_was_reserved_and_never_queued_comes_free() -> None:
    async with town(MemoryWorld()) as place:
        await place.node()
        record = held(opened(tokens_budget=30), str(uuid.uuid4()), at_ms=now_ms() - 2 * session_keeper.NEVER_QUEUED_MS)
        young = str(uuid.uuid4())
        await store(place, held(record, young, at_ms=now_ms()))
        await place.scheduler()
        await becomes_true(lambda: _holds(place, {young}))


async def _holds(place: Town, task_ids: set[str]) -> bool:
    return set((await account(place)).open) == task_ids


async def test_an_end_that_nobody_lived_to_settle_is_settled_by_the_next_scheduler() -> None:
    async with town(MemoryWorld()) as place:
        task_id = str(uuid.uuid4())
        record = held(opened(tokens_budget=30), task_id, at_ms=now_ms())
        wish = session_account.Wish(task_id, "p1", 10, 1_000, "mock", "gw-1")
        run = RunRecord(
            task_id=task_id,
            state=TaskState.DONE,
            pool_id="p1",
            lane="gw-1",
            correlation_id="c",
            tenant="default",
            priority=Priority.BATCH,
            admitted_ms=1,
            ended_ms=now_ms(),
            incarnation="i1",
            tokens_out=7,
            decode_ms=3,
            session=session_account.terms(record, wish, FREE),
        )
        await place.client.bus.store(subjects.run(task_id), msgspec.json.encode(run))
        await store(place, record)
        await place.scheduler()
        await becomes_true(lambda: has_settled(place, task_id))
        spent = (await account(place)).spent
        assert (spent.tokens, spent.time_ms, spent.nano) == (7, 3, 14_000)


async def test_where_a_session_ran_is_told_and_forgotten_on_demand() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        task = request(session_id=SESSION)
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        run, seq = node.held[task.task_id]
        node.held[task.task_id] = (msgspec.structs.replace(run, tokens_out=2), seq)
        assert await node.end(task.task_id)
        await becomes_true(lambda: _is_warm(place))
        seen = await ask(place)
        assert (seen.turns, seen.replica_id, seen.task_id) == (1, node.replica, task.task_id)
        assert (await ask(place, tenant="")).tenants == ("default",)
        assert not (await ask(place, tenant="another")).found
        assert (await ask(place, forget=True)).found
        assert not (await ask(place)).found


async def ask(place: Town, **fields: Any) -> SessionSeen:
    question = SessionQuestion(session_id=SESSION, **{"tenant": "default", **fields})
    subject = subjects.session_seen(subjects.shard_of("p1"))
    return SESSION_SEEN_DECODER.decode((await place.client.bus.request(subject, msgspec.json.encode(question))).data)


async def _is_warm(place: Town) -> bool:
    return (await ask(place)).warm
