"""The catalog over HTTP and on the bus: who may change it, what it tells, and what tasks feel of it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_gateway import catalog_api
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Message
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.catalog import (
    VERIFY_DECODER,
    CatalogEntry,
    CatalogList,
    ModelState,
    VerifyAnswer,
    VerifyModel,
    VerifyResult,
)
from llorch_shared.wire.desired import DRAIN_DECODER
from llorch_shared.wire.task import TaskAccepted
from support.asgi import Reply
from support.bus_worlds import becomes_true
from support.gateways import Cluster, Door, settle
from support.tokens import bearer, write_tokens

ALICE, STATIC = bearer("alice-token"), bearer("static")
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
async def door(cluster: Cluster, tmp_path: Path) -> Door:
    write_tokens(tmp_path / "tokens.toml", alice="blue")
    return await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))


def model(**changes: Any) -> bytes:
    return msgspec.json.encode({"id": "words", "digest": DIGEST, "source_url": "mock:words", **changes})


async def enter(door: Door, headers: Mapping[str, str] | None = None, **changes: Any) -> Reply:
    return await door.post("/v1/catalog/models", model(**changes), **STATIC, **(headers or {}))


async def set_state(door: Door, state: str, headers: Mapping[str, str] = STATIC, **more: Any) -> Reply:
    return await door.post("/v1/catalog/models/words/state", msgspec.json.encode({"state": state, **more}), **headers)


async def test_a_model_is_entered_once_read_listed_and_forgotten(door: Door) -> None:
    replies = [await enter(door, tags=["stable"]) for _ in range(2)]
    assert [reply.status for reply in replies] == [201, 201]
    first = replies[0].json(CatalogEntry)
    assert replies[1].json(CatalogEntry) == first
    assert (first.state, first.warnings) == (ModelState.ACTIVE, ("the model is not signed",))
    conflict = await enter(door, digest=f"sha256:{'b' * 64}")
    assert conflict.status == 409
    found = await door.get("/v1/catalog/models/words", **ALICE)
    assert found.json(CatalogEntry) == first
    same = await door.get("/v1/catalog/models/words", **ALICE, if_none_match=found.headers["etag"])
    assert (same.status, same.body) == (304, b"")
    for name in ("b", "c"):
        await enter(door, id=name)
    pages = [await door.get(f"/v1/catalog/models?limit=2{more}", **ALICE) for more in ("", "&cursor=c", "&tag=stable")]
    assert [[one.id for one in page.json(CatalogList).models] for page in pages] == [["b", "c"], ["words"], ["words"]]
    assert [page.json(CatalogList).cursor for page in pages] == ["c", None, None]
    again = await door.get("/v1/catalog/models?limit=2", **ALICE, if_none_match=pages[0].headers["etag"])
    assert again.status == 304
    rendered = (await door.get("/metrics", **STATIC)).body.decode()
    assert 'model_state{model_id="b",state="Active"} 1.0' in rendered
    assert "catalog_entries_total 3.0" in rendered
    gone = [await door.request("DELETE", "/v1/catalog/models/b", headers=STATIC) for _ in range(2)]
    assert [reply.status for reply in gone] == [204, 404]
    again = await door.get("/v1/catalog/models?limit=2", **ALICE, if_none_match=pages[0].headers["etag"])
    assert again.status == 200


async def test_there_is_a_most_of_models_and_of_what_one_says(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_api, "MODELS_MAX", 1)
    assert (await enter(door)).status == 201
    await settle()
    assert [(await enter(door, id=name)).status for name in ("words", "other")] == [201, 409]
    large = [{"signer": "s", "algo": "x", "signature": "a" * 4096} for _ in range(16)]
    assert (await enter(door, signatures=large)).status == 413


async def test_a_token_of_one_tenant_changes_nothing_in_the_catalog(cluster: Cluster, door: Door) -> None:
    await enter(door)
    refused = [
        await door.post("/v1/catalog/models", model(id="mine"), **ALICE),
        await door.request("DELETE", "/v1/catalog/models/words", headers=ALICE),
        await door.post("/v1/catalog/models/words/verify", **ALICE),
        await set_state(door, "Retired", ALICE),
    ]
    assert [reply.status for reply in refused] == [403] * 4
    assert (await cluster.bus.stream_state(streams.CATALOG)).messages == 1


async def test_under_a_strict_policy_an_unsigned_model_does_not_enter(door: Door) -> None:
    reply = await enter(door, {"x_trust_policy": "strict"})
    assert (reply.status, reply.error.code) == (400, ErrorCode.UNTRUSTED_ARTIFACT)
    assert (await enter(door, {"x_trust_policy": "loose"})).status == 400
    assert (await enter(door, {"x_trust_policy": "permissive"})).status == 201


async def test_a_retired_model_takes_no_tasks_and_its_pools_rest_until_it_is_active_again(
    cluster: Cluster, door: Door
) -> None:
    await enter(door)
    assert (await door.post_task(STATIC)).status == 202
    assert (await set_state(door, "Retired", deadline_ms=7_000)).status == 202

    async def refused() -> bool:
        reply = await door.post_task(STATIC)
        return (reply.status, reply.error.code) == (403, ErrorCode.MODEL_DEPRECATED)

    await becomes_true(refused)
    drain = await cluster.bus.last(streams.SPEC, subjects.spec(subjects.drain_key("p1")))
    assert drain is not None
    assert DRAIN_DECODER.decode(drain.data).deadline_ms == 7_000
    assert (await set_state(door, "Canary")).status == 409
    assert (await set_state(door, "Active")).status == 202
    woken = await cluster.bus.last(streams.SPEC, subjects.spec(subjects.drain_key("p1")))
    assert woken is not None
    assert woken.deleted

    async def admitted() -> bool:
        return (await door.post_task(STATIC)).status == 202

    await becomes_true(admitted)
    assert (await door.post_task(STATIC, model_ref="catalog:words")).status == 202

    async def told() -> bool:
        records = [AUDIT_DECODER.decode(one.data) for one in await cluster.bus.replay(streams.AUD, "llorch.aud.>")]
        changes = [one for one in records if one.event is AuditEvent.CATALOG_CHANGED]
        return [one.detail["change"] for one in changes] == ["created", "state", "state"]

    await becomes_true(told)


async def test_a_retirement_is_on_the_record_when_its_pools_have_been_told(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes up for a gateway that was killed in between goes by the record."""
    await enter(door)
    written: list[str] = []
    store, store_batch = door.bus.store, door.bus.store_batch

    async def stored(subject: str, *given: Any, **more: Any) -> Any:
        written.append(subject)
        return await store(subject, *given, **more)

    async def stored_batch(messages: Any, **more: Any) -> None:
        written.extend(subject for subject, _ in messages)
        await store_batch(messages, **more)

    monkeypatch.setattr(door.bus, "store", stored)
    monkeypatch.setattr(door.bus, "store_batch", stored_batch)
    assert (await set_state(door, "Retired")).status == 202
    record = subjects.audit(AuditEvent.CATALOG_CHANGED, "words")
    async with asyncio.timeout(15):
        while record not in written:
            await asyncio.sleep(0.005)
    drain = subjects.spec(subjects.drain_key("p1"))
    assert written.index(subjects.catalog(subjects.model_key("words"))) < written.index(drain) < written.index(record)


async def test_a_deprecated_model_is_used_by_old_sessions_and_by_operators_who_say_so(
    cluster: Cluster, door: Door
) -> None:
    await enter(door)
    old, new = "0" * 8 + "-0000-4000-8000-" + "0" * 12, "1" * 8 + "-0000-4000-8000-" + "0" * 12
    made = await door.request("PUT", f"/v1/sessions/{old}", b"{}", {**STATIC, "content-type": "application/json"})
    assert made.status in (200, 201)
    assert (await set_state(door, "Deprecated")).status == 202

    async def refused() -> bool:
        return (await door.post_task(STATIC, session_id=new)).status == 403

    await becomes_true(refused)
    assert (await door.post_task(STATIC, session_id=old)).status == 202
    reply = await door.post_task(ALICE, override=True)
    assert (reply.status, reply.error.code) == (403, ErrorCode.INVALID_PARAMS)
    taken = await door.post_task(STATIC, override=True)
    assert taken.status == 202
    task = taken.json(TaskAccepted).task_id

    async def told() -> bool:
        record = await cluster.bus.last(streams.AUD, subjects.audit("admitted", task))
        if record is None:
            return False
        said = AUDIT_DECODER.decode(record.data)
        assert said.identity.startswith("token:")
        return (said.detail["override"], said.detail["model_ref"]) == (True, "mock:words")

    await becomes_true(told)


async def test_verifying_asks_the_nodes_that_hold_the_model(cluster: Cluster, door: Door) -> None:
    await enter(door)
    nobody = await door.post("/v1/catalog/models/words/verify", **STATIC)
    assert (nobody.status, nobody.error.code) == (503, ErrorCode.POOL_UNAVAILABLE)
    asked: list[VerifyModel] = []

    async def answer(message: Message) -> tuple[bytes, dict[str, str]]:
        asked.append(VERIFY_DECODER.decode(message.data))
        return msgspec.json.encode(VerifyAnswer(started=True)), {}

    await cluster.bus.serve(subjects.provision_verify("node"), answer)
    await settle()
    reply = await door.post("/v1/catalog/models/words/verify", **STATIC)
    assert (reply.status, reply.json()) == (202, {"status": "started"})
    [wish] = asked
    assert (wish.digest, wish.model_ref, wish.result) == (DIGEST, "mock:words", VerifyResult.WARN)
    assert (await door.post("/v1/catalog/models/none/verify", **STATIC)).status == 404


async def test_bus_clients_have_the_same_operations(cluster: Cluster, door: Door) -> None:
    async def ask(verb: str, **fields: Any) -> Message:
        return await cluster.bus.request(subjects.api(f"catalog.{verb}"), msgspec.json.encode(fields))

    made = await ask("create", **msgspec.json.decode(model()), trust_policy="permissive")
    assert msgspec.json.decode(made.data, type=CatalogEntry).id == "words"
    assert (await ask("get", model_id="words")).headers["ETag"]
    listed = msgspec.json.decode((await ask("list")).data, type=CatalogList)
    assert [one.id for one in listed.models] == ["words"]
    await ask("state", model_id="words", state="Retired")
    assert (await ask("delete", model_id="words")).data == b""
