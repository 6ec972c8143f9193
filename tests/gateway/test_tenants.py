"""A token of a tenant: what it sees of another's tasks is what it sees of tasks that are not there."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.port import Unanswered
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.registry import PoolHealth
from llorch_shared.wire.run import Located, TaskView
from llorch_shared.wire.task import Priority, TaskState
from support.asgi import Reply
from support.gateways import STARTED, Cluster, Door, end, pool_spec, replica, run_record, tokens
from support.tokens import bearer, write_tokens

ALICE, BOB, STATIC = bearer("alice-token"), bearer("bob-token"), bearer("static")


@pytest.fixture
async def door(cluster: Cluster, tmp_path: Path) -> Door:
    write_tokens(tmp_path / "tokens.toml", alice="blue", bob="red", carol="blue")
    return await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))


async def asked(door: Door, task: str, headers: dict[str, str]) -> list[Reply]:
    """Every operation on a task that only reads it, and a cancel."""
    ways = (("GET", ""), ("GET", "/stream"), ("POST", "/cancel"), ("DELETE", ""))
    return [await door.request(method, f"/v1/tasks/{task}{path}", headers=headers) for method, path in ways]


def unlike(reply: Reply, task: str) -> tuple[int, str]:
    """What of an answer does not name the task asked for."""
    return reply.status, reply.body.decode().replace(task, "ID")


@pytest.mark.parametrize("where", ["queued here", "queued elsewhere", "running", "done"])
async def test_anothers_task_is_told_from_none_by_nothing(cluster: Cluster, door: Door, where: str) -> None:
    if where == "queued elsewhere":
        task = str(uuid.uuid4())
        cluster.queued[task] = Located(
            found=True, pool_id="p1", lane="bus", tenant="blue", priority=Priority.BATCH, queue_position=7
        )
    else:
        task = await door.submit(ALICE)
    if where in ("running", "done"):
        state = TaskState.RUNNING if where == "running" else TaskState.DONE
        await cluster.record(run_record(task, state, lane=door.lane, tenant="blue"))
    await door.audited()
    before = await cluster.stored()
    none = str(uuid.uuid4())
    theirs = [unlike(reply, task) for reply in await asked(door, task, BOB)]
    assert theirs == [unlike(reply, none) for reply in await asked(door, none, BOB)]
    assert {status for status, _ in theirs} == {404}
    assert await cluster.stored() == before
    for headers in (ALICE, bearer("carol-token"), STATIC):
        assert (await door.get(f"/v1/tasks/{task}", **headers)).json(TaskView).task_id == task


async def test_its_own_stream_and_cancel_are_its_tenants(cluster: Cluster, door: Door) -> None:
    task = await door.submit(ALICE)
    reading = [door.stream(task, headers=headers) for headers in (ALICE, bearer("carol-token"), STATIC)]
    for one in reading:
        await one.until(lambda seen: bool(seen.body))
    assert (await door.stream(task, headers=BOB).end()).status == 404
    await cluster.publish(door.lane, task, STARTED, tokens(0, 2), end(3))
    assert [(await one.end()).names[-1] for one in reading] == ["end 1-3"] * 3
    await cluster.record(run_record(task, TaskState.DONE, lane=door.lane, tenant="blue"))
    assert (await door.request("DELETE", f"/v1/tasks/{task}", headers=ALICE)).status == 204


@pytest.mark.parametrize("known", ["queued here", "queued elsewhere", "running"])
async def test_anothers_task_id_admits_nobody(cluster: Cluster, door: Door, known: str, tmp_path: Path) -> None:
    await cluster.add_pool(pool_spec("p2", model="mock:other"), replica("p2", model_ref="mock:other"))
    elsewhere = await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))
    task = await (elsewhere if known == "queued elsewhere" else door).submit(ALICE)
    cluster.queued[task] = Located(found=True, pool_id="p1", lane="x", tenant="blue", priority=Priority.INTERACTIVE)
    if known == "running":
        await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane, tenant="blue"))
    for model in ("mock:words", "mock:other"):
        refused = await door.post_task(BOB, task_id=task, model_ref=model)
        assert (refused.status, refused.error.code) == (400, ErrorCode.INVALID_PARAMS)
        assert "in use" in refused.error.message
    assert len(await cluster.admissions()) == 1
    assert (await door.post_task(ALICE, task_id=task)).status == 202


async def test_while_nobody_can_tell_whose_an_id_is_it_is_admitted_and_nothing_is_shown_of_it(
    cluster: Cluster, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.add_pool(pool_spec("p2", model="mock:other"), replica("p2", model_ref="mock:other"))
    elsewhere = await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))
    task = await elsewhere.submit(ALICE)
    request = MemoryBus.request

    async def silent(bus: MemoryBus, subject: str, data: bytes, **more: Any) -> Any:
        if subject.endswith(".locate"):
            raise Unanswered("no scheduler is in office")
        return await request(bus, subject, data, **more)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryBus, "request", silent)
        assert (await door.post_task(BOB, task_id=task, model_ref="mock:other")).status == 202
    cluster.queued[task] = Located(found=True, pool_id="p1", lane="x", tenant="blue", priority=Priority.INTERACTIVE)
    assert [reply.status for reply in await asked(door, task, BOB)] == [404] * 4


async def test_who_is_not_bound_is_admitted_without_a_question(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, subjects_asked = MemoryBus.request, list[str]()

    async def noted(bus: MemoryBus, subject: str, data: bytes, **more: Any) -> Any:
        subjects_asked.append(subject)
        return await request(bus, subject, data, **more)

    monkeypatch.setattr(MemoryBus, "request", noted)
    assert (await door.post_task(STATIC)).status == 202
    assert subjects_asked == []
    assert (await door.post_task(ALICE)).status == 202
    assert len(subjects_asked) == 1


async def test_a_pools_health_names_tasks_only_to_who_sees_all(cluster: Cluster, door: Door) -> None:
    task = str(uuid.uuid4())
    await cluster.register(replica(active=(task,)))
    for headers, shown in ((ALICE, ()), (STATIC, (task,))):
        health = (await door.get("/v1/pools/p1/health", **headers)).json(PoolHealth)
        assert health.replicas[0].active == shown
        assert health.metrics["active_leases"] == 1
