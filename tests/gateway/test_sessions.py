"""Sessions at a gateway: what has no account costs nothing, what has one is reserved before it is queued."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_shared import session_account, streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.port import Unanswered
from llorch_shared.errors import PolicyLabel
from llorch_shared.session_account import Used
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.session import (
    SESSION_DECODER,
    SESSION_ENDED_DECODER,
    SESSION_QUESTION_DECODER,
    SessionEnded,
    SessionInfo,
    SessionPolicy,
    SessionQuestion,
    SessionRecord,
    SessionSeen,
    SessionsSpec,
)
from support.asgi import Reply
from support.gateways import Cluster, Door, cluster_of, pool_spec, settle
from support.tokens import bearer, write_tokens

SESSION = "7c1d3c1e-64a0-4e1a-9f53-0b8f3f0f6a02"
PATH = f"/v1/sessions/{SESSION}"
BUDGET = "x-budget-tokens-remaining"


async def put(door: Door, session_id: str = SESSION, headers: dict[str, str] | None = None, **wanted: Any) -> Reply:
    sent = {"content-type": "application/json", **(headers or {})}
    reply = await door.request("PUT", f"/v1/sessions/{session_id}", msgspec.json.encode(wanted), headers=sent)
    await settle()
    return reply


async def account(cluster: Cluster, tenant: str = "default") -> SessionRecord:
    message = await cluster.bus.last(streams.SES, subjects.session(tenant, SESSION))
    assert message is not None
    return SESSION_DECODER.decode(message.data)


async def policy(cluster: Cluster, **changes: Any) -> None:
    spec = SessionsSpec(default=SessionPolicy(**changes))
    await cluster.bus.store(subjects.spec(subjects.SESSION_POLICY_KEY), msgspec.json.encode(spec))
    await settle()


async def pay(cluster: Cluster, task: str, tokens: int) -> None:
    """As its node does it."""
    message = await cluster.bus.last(streams.SES, subjects.session("default", SESSION))
    assert message is not None
    used = Used(task, tokens, 7, tokens + 1, "p1", "p1-node-0")
    paid = session_account.settle(SESSION_DECODER.decode(message.data), used, 10)
    await cluster.bus.store(message.subject, msgspec.json.encode(paid), expect_seq=message.seq)
    await settle()


async def test_a_session_without_an_account_leaves_no_trace(cluster: Cluster, door: Door) -> None:
    reply = await door.post_task(session_id=SESSION)
    assert (reply.status, BUDGET in reply.headers) == (202, False)
    assert set(reply.json()) == {"task_id", "queue_position", "predicted_start_ms", "backoff_ms", "correlation_id"}
    assert (await cluster.bus.stream_state(streams.SES)).messages == 0
    assert (await door.get(PATH)).status == 404


async def test_a_budget_is_told_reserved_and_refused(cluster: Cluster, door: Door) -> None:
    made = (await put(door, tokens_budget=50)).json(SessionInfo)
    assert (made.tokens_budget_remaining, made.turns, made.turns_max, made.kv_warmth) == (50, 0, 8, False)
    assert 0 < made.ttl_ms_remaining <= 600_000
    task = str(uuid.uuid4())
    reply = await door.post_task(session_id=SESSION, task_id=task, max_tokens=30)
    assert (reply.status, reply.headers[BUDGET], reply.json()["tokens_budget_remaining"]) == (202, "20", 20)
    assert (await door.post_task(session_id=SESSION, task_id=task, max_tokens=30)).headers[BUDGET] == "20"
    stream = door.stream(task)
    await stream.until(lambda seen: bool(seen.body))
    assert stream.headers[BUDGET] == "20"
    refused = await door.post_task(session_id=SESSION, max_tokens=21)
    assert (refused.status, refused.error.policy_label) == (429, PolicyLabel.SESSION_BUDGET)
    assert int(refused.headers["retry-after"]) >= 1
    await pay(cluster, task, 25)
    assert (await door.post_task(session_id=SESSION, max_tokens=21)).headers[BUDGET] == "4"
    refused = await door.post_task(session_id=SESSION, max_tokens=26)
    assert (refused.status, refused.error.retriable) == (400, False)
    assert len(await cluster.admissions()) == 2


async def test_a_tenants_policy_keeps_the_account_of_every_session(cluster: Cluster, door: Door) -> None:
    await policy(cluster, cost_budget=0.0001)
    reply = await door.post_task(session_id=SESSION, max_tokens=10)
    assert reply.headers["x-budget-cost-remaining"] == "0.000080000"
    assert (await put(door, cost_budget=1)).status == 400, "nobody asks for more than the policy permits"
    assert (await account(cluster)).limits.nano == 100_000


@pytest.mark.parametrize("kept", [False, True])
async def test_a_tenant_has_no_more_accounts_than_its_policy_permits(cluster: Cluster, door: Door, kept: bool) -> None:
    await policy(cluster, accounts_max=1, every_session=kept)
    assert (await put(door)).status == 200
    another = str(uuid.uuid4())
    refused = await put(door, another)
    assert (refused.status, refused.error.policy_label) == (429, PolicyLabel.SESSION_ACCOUNTS)
    assert int(refused.headers["retry-after"]) >= 1
    assert (await door.post_task(session_id=another)).status == (429 if kept else 202)
    assert (await put(door, turns_max=3)).status == 200, "the one it has may be changed"
    assert (await cluster.bus.stream_state(streams.SES)).messages == 1


async def test_what_finds_no_place_gives_back_what_was_reserved() -> None:
    async with cluster_of(pool_spec(capacity=1)) as cluster:
        door = await cluster.gateway()
        await put(door, tokens_budget=50)
        first, second = str(uuid.uuid4()), str(uuid.uuid4())
        assert (await door.post_task(session_id=SESSION, task_id=first, max_tokens=10)).status == 202
        refused = await door.post_task(session_id=SESSION, task_id=second, max_tokens=10)
        assert (refused.status, refused.error.policy_label) == (429, PolicyLabel.REJECT)
        record = await account(cluster)
        assert (set(record.open), record.turns) == ({first}, 1)


async def test_an_id_that_is_found_to_be_anothers_gives_back_what_was_reserved(
    cluster: Cluster, tmp_path: Path
) -> None:
    write_tokens(tmp_path / "tokens.toml", alice="blue", bob="red")
    here, elsewhere = [await cluster.gateway(tokens_file=str(tmp_path / "tokens.toml")) for _ in range(2)]
    alice, bob, task = bearer("alice-token"), bearer("bob-token"), str(uuid.uuid4())
    payload = {"session_id": SESSION, "task_id": task, "max_tokens": 10}
    assert (await put(here, headers=bob, tokens_budget=50)).status == 200
    assert (await elsewhere.post_task(alice, **payload)).status == 202
    refused = await here.post_task(bob, **payload)
    assert refused.status == 404, "the schedulers know nothing of it, and the queue has it"
    record = await account(cluster, "red")
    assert (record.open, record.turns) == ({}, 0)


async def test_what_was_accepted_before_the_budget_is_the_same_task_when_it_is_sent_again(door: Door) -> None:
    task = str(uuid.uuid4())
    assert (await door.post_task(session_id=SESSION, task_id=task, max_tokens=10)).status == 202
    await put(door, tokens_budget=5)
    assert (await door.post_task(session_id=SESSION, task_id=task, max_tokens=10)).status == 202
    assert (await door.post_task(session_id=SESSION, max_tokens=10)).status == 400


async def test_what_may_be_queued_keeps_what_was_reserved(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(door, tokens_budget=50)
    store = MemoryBus.store

    async def silent(bus: MemoryBus, subject: str, data: bytes, **more: Any) -> Any:
        if subject.startswith("llorch.adm."):
            raise Unanswered("no ack")
        return await store(bus, subject, data, **more)

    monkeypatch.setattr(MemoryBus, "store", silent)
    monkeypatch.setattr("llorch_gateway.enqueue.PUBLISH_WITHIN_S", 0.1)
    task = str(uuid.uuid4())
    assert (await door.post_task(session_id=SESSION, task_id=task, max_tokens=10)).status == 503
    assert set((await account(cluster)).open) == {task}


async def test_gateways_share_one_account(cluster: Cluster) -> None:
    await policy(cluster, tokens_budget=100, turns_max=100)
    doors = [await cluster.gateway() for _ in range(3)]
    asked = [doors[number % 3].post_task(session_id=SESSION, max_tokens=10) for number in range(14)]
    replies = await asyncio.gather(*asked)
    assert sorted(reply.status for reply in replies) == [202] * 10 + [429] * 4
    assert sorted(int(reply.headers[BUDGET]) for reply in replies if reply.status == 202) == list(range(0, 100, 10))


async def test_a_session_that_was_deleted_takes_nothing_more(cluster: Cluster, door: Door) -> None:
    forgotten: list[SessionQuestion] = []

    async def seen(message: Any) -> tuple[bytes, dict[str, str]]:
        forgotten.append(SESSION_QUESTION_DECODER.decode(message.data))
        return msgspec.json.encode(SessionSeen(found=False)), {}

    await cluster.bus.serve(subjects.session_seen(subjects.shard_of("p1")), seen)
    await put(door, turns_max=3)
    assert (await door.request("DELETE", PATH)).status == 204
    assert [question.forget for question in forgotten] == [True]
    assert (await door.get(PATH)).status == 404
    refused = await door.post_task(session_id=SESSION)
    assert (refused.status, refused.error.policy_label) == (400, PolicyLabel.SESSION_ENDED)
    assert (await put(door)).status == 400
    assert (await door.request("DELETE", PATH)).status == 204
    assert (await door.request("DELETE", f"/v1/sessions/{uuid.uuid4()}")).status == 404


async def test_a_session_without_an_account_is_what_schedulers_remember(cluster: Cluster, door: Door) -> None:
    async def seen(message: Any) -> tuple[bytes, dict[str, str]]:
        return msgspec.json.encode(SessionSeen(found=True, turns=2, left_ms=9_000, warm=True)), {}

    await cluster.bus.serve(subjects.session_seen(subjects.shard_of("p1")), seen)
    told = (await door.get(PATH)).json()
    assert told == {"session_id": SESSION, "ttl_ms_remaining": 9_000, "turns": 2, "kv_bytes": 0, "kv_warmth": True}


async def test_a_deletion_is_told_to_engines_and_kept_for_those_that_are_away(cluster: Cluster, door: Door) -> None:
    known = {subjects.shard_of("p1"): SessionSeen(found=True, left_ms=9_000, tenants=("default", "red"))}
    told: list[SessionEnded] = []

    async def seen(message: Any) -> tuple[bytes, dict[str, str]]:
        asked = SESSION_QUESTION_DECODER.decode(message.data).session_id
        answer = known[subjects.shard_of("p1")] if asked == SESSION else SessionSeen(found=False)
        return msgspec.json.encode(answer), {}

    await cluster.bus.serve(subjects.session_seen(subjects.shard_of("p1")), seen)
    await cluster.bus.subscribe(
        subjects.SESSION_ENDED, lambda message: told.append(SESSION_ENDED_DECODER.decode(message.data))
    )
    assert (await door.request("DELETE", PATH.upper().replace("/V1/SESSIONS", "/v1/sessions"))).status == 204
    for tenant in ("default", "red"):
        stored = await cluster.bus.last(streams.SES, subjects.session_deleted(tenant, SESSION))
        assert stored is not None
        assert SESSION_ENDED_DECODER.decode(stored.data).at_ms > 0
    unknown = str(uuid.uuid4())
    assert (await door.request("DELETE", f"/v1/sessions/{unknown}")).status == 404
    assert await cluster.bus.last(streams.SES, subjects.session_deleted("default", unknown)) is None
    await put(door)
    assert (await door.request("DELETE", PATH)).status == 204
    assert [(ended.session_id, ended.tenant) for ended in told] == [(SESSION, ""), (unknown, ""), (SESSION, "default")]


async def test_a_deletion_is_kept_for_the_tenants_of_every_shard(cluster: Cluster, door: Door) -> None:
    second = msgspec.structs.replace(pool_spec(), id="p2")
    await cluster.bus.store(subjects.spec(subjects.pool_key("p2")), msgspec.json.encode(second))
    await settle()
    for pool, tenant in (("p1", "default"), ("p2", "red")):
        answer = msgspec.json.encode(SessionSeen(found=True, left_ms=9_000, tenants=(tenant,)))

        async def seen(_: Any, answer: bytes = answer) -> tuple[bytes, dict[str, str]]:
            return answer, {}

        await cluster.bus.serve(subjects.session_seen(subjects.shard_of(pool)), seen)
    assert (await door.request("DELETE", PATH)).status == 204
    for tenant in ("default", "red"):
        assert await cluster.bus.last(streams.SES, subjects.session_deleted(tenant, SESSION)) is not None


async def test_anothers_session_is_not_there(cluster: Cluster, tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens.toml", alice="blue", bob="red")
    door = await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))
    alice, bob, static = bearer("alice-token"), bearer("bob-token"), bearer("static")
    assert (await put(door, headers=alice, tokens_budget=40)).status == 200
    assert (await door.get(PATH, **bob)).status == 404
    assert (await door.request("DELETE", PATH, headers=bob)).status == 404
    assert (await door.post_task(bob, session_id=SESSION)).status == 202, "an id is its tenant's own"
    assert (await put(door, headers=bob, tokens_budget=7)).json(SessionInfo).tokens_budget_remaining == 7
    assert (await door.get(PATH, **alice)).json(SessionInfo).tokens_budget_remaining == 40
    assert (await door.get(PATH, **static)).status == 200


async def test_what_happens_to_an_account_is_on_record(cluster: Cluster, door: Door) -> None:
    await put(door, tokens_budget=50)
    await door.post_task(session_id=SESSION, max_tokens=30)
    wanted = {"session_opened", "session_reserved"}
    async with asyncio.timeout(15):
        while True:
            kept = [AUDIT_DECODER.decode(m.data) for m in await cluster.bus.replay(streams.AUD, "llorch.aud.>")]
            if wanted <= {str(record.event) for record in kept}:
                break
            await asyncio.sleep(0.01)
    assert all(each.detail["session_id"] == SESSION for each in kept)


async def test_an_admission_costs_one_question_more_with_an_account_and_none_without(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    store, last = MemoryBus.store, MemoryBus.last

    async def counted_store(bus: MemoryBus, subject: str, data: bytes, **more: Any) -> Any:
        asked.append(f"store {subject.split('.')[1]}")
        return await store(bus, subject, data, **more)

    async def counted_last(bus: MemoryBus, stream: str, subject: str) -> Any:
        asked.append(f"last {stream}")
        return await last(bus, stream, subject)

    monkeypatch.setattr(MemoryBus, "store", counted_store)
    monkeypatch.setattr(MemoryBus, "last", counted_last)
    assert (await door.post_task(session_id=SESSION)).status == 202
    assert asked == ["store adm"]
    await put(door, tokens_budget=1_000)
    asked.clear()
    assert (await door.post_task(session_id=SESSION)).status == 202
    assert asked == ["store SES", "store adm"]
