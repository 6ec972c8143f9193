"""Lists of tasks and of the audit record: filters, pages, whose they are, and that a page reads a bounded part."""

import asyncio
import uuid
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_gateway import audit_api, listing, lists
from llorch_gateway.call import Call
from llorch_gateway.core.listing import InQueue, InRuns, Wanted, parse_place, queues_from
from llorch_gateway.listing import Listing
from llorch_gateway.operations import Answer, Ask
from llorch_shared import subjects
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.wire.audit import AuditEvent, AuditList, AuditRecord
from llorch_shared.wire.run import TaskList, TaskView
from llorch_shared.wire.task import Priority, TaskState
from support.asgi import Reply
from support.gateways import Cluster, Door, pool_spec, replica, run_record, settle
from support.tokens import bearer, write_tokens

SESSION = str(uuid.uuid4())
ALICE, BOB, STATIC = bearer("alice-token"), bearer("bob-token"), bearer("static")


def test_a_cursor_is_a_place() -> None:
    for place in (InQueue("small-1", Priority.BATCH, 12), InRuns(7)):
        assert parse_place(str(place)) == place


def test_queues_are_read_in_their_order_and_from_where_the_last_page_ended() -> None:
    both = (Priority.INTERACTIVE, Priority.BATCH)
    everything = [InQueue(pool, priority, 1) for pool in ("a", "b") for priority in both]
    assert queues_from({"b", "a"}, Wanted(), None) == everything
    behind = InQueue("a", Priority.BATCH, 9)
    assert queues_from({"b", "a"}, Wanted(), behind) == [behind, *everything[2:]]
    assert queues_from({"b"}, Wanted(), behind) == everything[2:]
    assert queues_from({"b", "a"}, Wanted(pool="b"), None) == everything[2:]
    assert queues_from({"b", "a"}, Wanted(state=TaskState.DONE), None) == []
    assert queues_from({"b", "a"}, Wanted(), InRuns(3)) == []


async def walk(door: Door, path: str, query: str = "", headers: dict[str, str] | None = None) -> list[Reply]:
    """All pages of a list."""
    replies: list[Reply] = []
    cursor: str | None = ""
    while cursor is not None:
        more = f"&cursor={cursor}" if cursor else ""
        reply = await door.request("GET", f"{path}?{query}{more}", headers=headers or {})
        assert reply.status == 200, reply.body
        replies.append(reply)
        cursor = msgspec.json.decode(reply.body)["cursor"]
        assert len(replies) < 100
    return replies


async def tasks_of(door: Door, query: str = "", headers: dict[str, str] | None = None) -> list[TaskView]:
    return [view for reply in await walk(door, "/v1/tasks", query, headers) for view in reply.json(TaskList).tasks]


async def test_what_waits_comes_first_then_what_was_changed_last(cluster: Cluster, door: Door) -> None:
    await cluster.add_pool(pool_spec("p2", model="mock:other"), replica("p2", model_ref="mock:other"))
    ran = [str(uuid.uuid4()) for _ in range(4)]
    for task in ran:
        await cluster.record(run_record(task, TaskState.DONE, session_id=SESSION))
    await cluster.record(run_record(ran[1], TaskState.CANCELLED, session_id=SESSION))
    waits = [await door.submit(session_id=SESSION), await door.submit(priority=Priority.BATCH), await door.submit()]
    other = await door.submit(model_ref="mock:other")
    everything = [waits[0], waits[2], waits[1], other, ran[1], ran[3], ran[2], ran[0]]
    for limit in (1, 3, 500):
        assert [view.task_id for view in await tasks_of(door, f"limit={limit}")] == everything
    first = (await tasks_of(door))[0]
    assert (first.state, first.pool_id, first.session_id, first.tenant) == (TaskState.QUEUED, "p1", SESSION, "default")
    assert first.queue_position is not None
    for query, wanted in (
        ("state=done", [ran[3], ran[2], ran[0]]),
        ("state=queued", [waits[0], waits[2], waits[1], other]),
        (f"session={SESSION.upper()}", [waits[0], ran[1], ran[3], ran[2], ran[0]]),
        ("pool=p2", [other]),
        ("pool=p1&state=cancelled", [ran[1]]),
        ("pool=none", []),
        ("tenant=nobody", []),
    ):
        assert [view.task_id for view in await tasks_of(door, query)] == wanted, query


async def test_a_page_reads_a_bounded_part_and_the_next_one_goes_on(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "READ_BYTES", 400)
    monkeypatch.setattr(listing, "READS_MAX", 3)
    ran = [str(uuid.uuid4()) for _ in range(30)]
    for number, task in enumerate(ran):
        await cluster.record(run_record(task, TaskState.FAILED if number == 2 else TaskState.DONE))
    waits = [await door.submit() for _ in range(5)]
    pages = await walk(door, "/v1/tasks")
    assert len(pages) > 3
    seen = [view.task_id for reply in pages for view in reply.json(TaskList).tasks]
    assert seen == [*waits, *reversed(ran)]
    sparse = await walk(door, "/v1/tasks", "state=failed")
    assert len(sparse) > 1
    assert [view.task_id for reply in sparse for view in reply.json(TaskList).tasks] == [ran[2]]


async def test_a_tenant_with_many_lists_waits_behind_its_own() -> None:
    go: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("blue", "red", "green")}
    begun: list[str] = []

    async def slow(ask: Ask) -> Answer:
        begun.append(ask.call.tenant)
        await go[ask.call.tenant].wait()
        return Answer({"tasks": []})

    turns = lists.Turns().of({"listTasks": slow})

    def ask(tenant: str) -> asyncio.Task[Answer]:
        call = Call(correlation_id="c", identity="token:abc", channel="http", tenant=tenant, bound=True)
        return asyncio.create_task(_of(turns["listTasks"](Ask(call, {}))))

    blue = [ask("blue") for _ in range(lists.WAITING_MAX // 4 + 1)]
    await settle()
    assert begun == ["blue"], "one turn is left for others"
    with pytest.raises(OrchError) as refused:
        await ask("blue")
    assert refused.value.status == 503
    red = ask("red")
    await settle()
    assert begun == ["blue", "red"]
    leaves, green = ask("green"), ask("green")
    await settle()
    go["red"].set()
    leaves.cancel()
    await red
    await settle()
    assert begun == ["blue", "red", "green"]
    go["green"].set()
    await green
    go["blue"].set()
    await asyncio.gather(*blue)
    assert begun.count("blue") == len(blue)


async def test_lists_have_their_turn_and_those_that_would_wait_too_long_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lists, "WAITING_MAX", 3)
    go, under_way = asyncio.Event(), 0

    async def slow(_ask: Ask) -> Answer:
        nonlocal under_way
        under_way += 1
        await go.wait()
        return Answer({"tasks": []}, headers=(("ETag", "x"),))

    turns = lists.Turns().of({"listTasks": slow, "getTask": slow})
    ask = Ask(Call(correlation_id="c", identity="localhost", channel="http", tenant="default"), {})
    asked = [asyncio.create_task(_of(turns["listTasks"](ask))) for _ in range(lists.AT_ONCE + 3)]
    await settle()
    assert under_way == lists.AT_ONCE
    with pytest.raises(OrchError) as refused:
        await turns["listTasks"](ask)
    assert (refused.value.status, refused.value.body.retriable) == (503, True)
    asked.append(asyncio.create_task(_of(turns["getTask"](ask))))
    await settle()
    assert under_way == lists.AT_ONCE + 1, "what is no list waits for none"
    go.set()
    answers = await asyncio.gather(*asked)
    assert {(answer.encoded(), answer.headers) for answer in answers} == {(b'{"tasks":[]}', (("ETag", "x"),))}


async def _of(answer: Awaitable[Answer]) -> Answer:
    return await answer


async def test_others_have_their_turn_while_a_page_of_small_records_is_read(cluster: Cluster, door: Door) -> None:
    for _ in range(600):
        await cluster.record(run_record(str(uuid.uuid4()), TaskState.DONE))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    await Listing(door.bus, door.gateway.backend.snapshot).page(Wanted(state=TaskState.FAILED), None)
    running.cancel()
    assert turns > 600 / lists.STEP


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "cursor=here", "cursor=q.p1.urgent.3", "state=odd", "pool=P!"]
)
async def test_a_wrong_question_is_refused_by_name(door: Door, query: str) -> None:
    reply = await door.request("GET", f"/v1/tasks?{query}")
    assert (reply.status, reply.error.code) == (400, ErrorCode.INVALID_PARAMS)
    assert query.partition("=")[0] in reply.error.message


@pytest.fixture
async def shared(cluster: Cluster, tmp_path: Path) -> Door:
    """A gateway with the tenants `blue` (Alice) and `red` (Bob)."""
    file = tmp_path / "tokens.toml"
    write_tokens(file, alice="blue", bob="red")
    return await cluster.gateway(token="static", tokens_file=str(file))


async def test_a_tenant_lists_its_own(cluster: Cluster, shared: Door) -> None:
    mine, theirs = await shared.submit(ALICE), await shared.submit(BOB)
    ran = str(uuid.uuid4())
    await cluster.record(run_record(ran, TaskState.DONE, tenant="blue"))
    for query in ("", "tenant=blue", "limit=1"):
        assert [view.task_id for view in await tasks_of(shared, query, ALICE)] == [mine, ran]
        assert [view.task_id for view in await tasks_of(shared, "", BOB)] == [theirs]
    assert await tasks_of(shared, "tenant=blue", BOB) == []
    assert {view.task_id for view in await tasks_of(shared, "", STATIC)} == {mine, theirs, ran}
    assert [view.tenant for view in await tasks_of(shared, "tenant=red", STATIC)] == ["red"]


async def happened(cluster: Cluster, task: str, *events: AuditEvent, tenant: str = "blue") -> None:
    for event in events:
        record = AuditRecord(event=event, task_id=task, at_ms=10, actor="test", tenant=tenant)
        await cluster.bus.store(subjects.audit(event, task), msgspec.json.encode(record))


async def records(door: Door, query: str = "", headers: dict[str, str] | None = None) -> list[tuple[str, str]]:
    replies = await walk(door, "/v1/audit", query, headers)
    return [(str(one.event), one.task_id) for reply in replies for one in reply.json(AuditList).records]


async def test_the_audit_record_is_listed_in_its_order(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    await happened(cluster, one, AuditEvent.ADMITTED, AuditEvent.PLACED)
    await happened(cluster, two, AuditEvent.ADMITTED)
    await happened(cluster, one, AuditEvent.DONE)
    await cluster.bus.store(subjects.audit(AuditEvent.DONE, two), b"no record")
    everything = [("admitted", one), ("placed", one), ("admitted", two), ("done", one)]
    assert await records(door) == everything
    assert await records(door, "limit=1") == everything
    assert await records(door, f"task={one}") == [each for each in everything if each[1] == one]
    assert await records(door, "event=admitted") == [("admitted", one), ("admitted", two)]
    assert await records(door, f"event=done&task={two}") == []
    assert await records(door, "until_ms=5") == []
    assert await records(door, f"from_ms={2**52}") == []
    assert await records(door, f"from_ms=5&until_ms={2**52}") == everything
    monkeypatch.setattr(audit_api, "READ_BYTES", 1)
    monkeypatch.setattr(audit_api, "READS_MAX", 2)
    assert await records(door) == everything


async def test_a_tenant_reads_what_concerns_its_tasks(cluster: Cluster, shared: Door) -> None:
    task = str(uuid.uuid4())
    await cluster.record(run_record(task, TaskState.DONE, tenant="blue"))
    await happened(cluster, task, AuditEvent.ADMITTED)
    await happened(cluster, task, AuditEvent.RUNNING, tenant="")
    await happened(cluster, "p1", AuditEvent.POOL_CHANGED, tenant="")
    assert await records(shared, "", ALICE) == [("admitted", task)]
    assert await records(shared, f"task={task}", ALICE) == [("admitted", task), ("running", task)]
    assert await records(shared, "", BOB) == []
    await happened(cluster, task, AuditEvent.DONE, tenant="red")
    assert await records(shared, f"task={task}", ALICE) == [("admitted", task), ("running", task)]
    for other in (task, "p1"):
        assert (await shared.request("GET", f"/v1/audit?task={other}", headers=BOB)).status == 404
    assert len(await records(shared, "", STATIC)) == 4


async def test_on_the_bus_the_lists_are_the_same(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    answers: list[Any] = []
    for twin, payload in (("tasks.list", {"state": "queued"}), ("audit.list", {"limit": 5})):
        answer = await cluster.bus.request(f"llorch.api.{twin}", msgspec.json.encode(payload), timeout_s=15)
        answers.append(msgspec.json.decode(answer.data))
    assert [view["task_id"] for view in answers[0]["tasks"]] == [task]
    assert "records" in answers[1]
