"""Pages of a stream as it is stored: whose it is, in which order, and where the next one begins."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_gateway import stored_events_api
from llorch_gateway.stored_events_api import place
from llorch_shared import streams, subjects
from llorch_shared.wire.frames import StoredEvents
from llorch_shared.wire.task import TaskState
from support.client import task_request
from support.gateways import STARTED, Cluster, Door, end, run_record, tokens
from support.tokens import bearer, write_tokens

ALICE, BOB = bearer("alice-token"), bearer("bob-token")


async def page(door: Door, task: str, cursor: str | None = None) -> StoredEvents:
    query = f"?cursor={cursor}" if cursor else ""
    reply = await door.get(f"/v1/tasks/{task}/events{query}")
    assert reply.status == 200, reply.body
    found = reply.json(StoredEvents)
    assert isinstance(found, StoredEvents)
    return found


def indices(found: StoredEvents) -> list[int]:
    return [msgspec.json.decode(event.data)["i"] for event in found.events if event.event == "token"]


async def test_what_is_stored_comes_page_by_page_and_how_it_ended_beside_it(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_events_api, "PAGE_BYTES", 100)
    task = await door.submit()
    waits = await page(door, task)
    assert (waits.events, waits.more, waits.end) == ((), False, None)
    await cluster.record(run_record(task, TaskState.RUNNING))
    await cluster.publish("bus", task, STARTED, *(tokens(index, index) for index in range(3)))
    seen, cursor, pages = [], waits.cursor, 0
    while True:
        one = await page(door, task, cursor)
        seen += indices(one)
        cursor, pages = one.cursor, pages + 1
        assert one.end is None
        if not one.more:
            break
    assert seen == [0, 1, 2]
    assert pages > 1
    await cluster.publish("bus", task, b"no frame", tokens(3, 4), end(5))
    await cluster.record(run_record(task, TaskState.DONE, tokens_out=5, finish_reason="stop"))
    monkeypatch.undo()
    rest = await page(door, task, cursor)
    assert [event.id for event in rest.events] == ["1-3", "1-4", "1-5"]
    assert rest.end is not None
    assert (rest.end.event, rest.end.id, rest.more) == ("end", "1-5", False)
    assert (await page(door, task, rest.cursor)).events == ()


async def test_a_place_in_another_life_of_the_log_is_none(cluster: Cluster, door: Door) -> None:
    task = task_request().task_id
    await cluster.record(run_record(task, TaskState.RUNNING))
    await cluster.publish("bus", task, STARTED, tokens(0, 2))
    assert indices(await page(door, task, place("another", 99))) == [0, 1, 2]


async def test_a_log_that_began_anew_behind_a_standing_connection_is_read_from_its_beginning(
    cluster: Cluster, door: Door
) -> None:
    task = task_request().task_id
    await cluster.record(run_record(task, TaskState.RUNNING))
    await cluster.publish("bus", task, STARTED, tokens(0, 2))
    cursor = (await page(door, task)).cursor
    assert (await page(door, task, cursor)).events == ()
    cluster.server.streams[streams.TOK].life = "another"
    anew = await page(door, task, cursor)
    assert indices(anew) == [0, 1, 2]
    assert (await page(door, task, anew.cursor)).events == ()


async def test_a_tenant_reads_its_own_tasks_only(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    write_tokens(file, alice="blue", bob="red")
    shared = await cluster.gateway(token="static", tokens_file=str(file))
    task = task_request().task_id
    await cluster.record(run_record(task, TaskState.RUNNING, tenant="blue"))
    await cluster.publish("bus", task, STARTED, tokens(0, 1))
    seen = {}
    for name, headers in (("alice", ALICE), ("bob", BOB)):
        seen[name] = (await shared.get(f"/v1/tasks/{task}/events", **headers)).status
    assert seen == {"alice": 200, "bob": 404}


@pytest.mark.parametrize("cursor", ["1", "0000000.1", "0000000g.1", "00000000.", "00000000.-1", "x" * 200])
async def test_a_cursor_of_another_form_is_refused(door: Door, cursor: str) -> None:
    reply = await door.get(f"/v1/tasks/{task_request().task_id}/events?cursor={cursor}")
    assert reply.status == 400
    assert "cursor" in reply.error.message


async def test_an_answer_of_the_largest_messages_fits_into_one_of_the_bus(cluster: Cluster, door: Door) -> None:
    task = task_request().task_id
    await cluster.record(run_record(task, TaskState.RUNNING))
    large = tokens(0, 9_300)
    assert 500_000 < len(large) <= 512 * 1024
    await cluster.publish("bus", task, tokens(0, 2_000), large)
    asked: dict[str, Any] = {"task_id": task}
    reply = await cluster.bus.request(subjects.api("tasks.events"), msgspec.json.encode(asked), timeout_s=15)
    assert "Nats-Service-Error-Code" not in reply.headers
    assert len(msgspec.json.decode(reply.data, type=StoredEvents).events) == 11_302
