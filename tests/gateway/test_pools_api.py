"""Pools and tenants through the gateway: wanted, looked at, drained, reloaded, by whom, and what is on the record."""

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from llorch_gateway import pools_api, tenants_api
from llorch_shared import streams, subjects
from llorch_shared.desired.pools import POOLS, RELOADS
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord
from llorch_shared.wire.desired import PoolDrain, PoolList, PoolReload, ReloadState, Tenant, TenantList
from llorch_shared.wire.policy import AdmissionSpec, FairnessSpec, PrioritySpec, TenantSpec
from llorch_shared.wire.registry import Capabilities, PoolHealth
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority
from llorch_shared.wire.version import VERSION_HEADER
from support.asgi import Reply
from support.gateways import Cluster, Door, pool_spec, replica, settle
from support.tokens import bearer, write_tokens

ALICE, OPERATOR = bearer("alice-token"), bearer("static")
JSON = {"content-type": "application/json"}


@pytest.fixture
async def door(cluster: Cluster, tmp_path: Path) -> Door:
    write_tokens(tmp_path / "tokens.toml", alice="blue")
    return await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))


async def ask(door: Door, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    data = b"" if body is None else msgspec.json.encode(body)
    sent = {**OPERATOR, **(JSON if data else {}), **{name.replace("_", "-"): text for name, text in headers.items()}}
    return await door.request(method, f"/v1/{path}", data, sent)


def said(reply: Reply) -> tuple[int, ErrorCode]:
    return reply.status, reply.error.code


def new_pool(**fields: Any) -> dict[str, Any]:
    return {"id": "new", "engine": "mock", "model": "mock:other", **fields}


async def audits(cluster: Cluster, door: Door, event: AuditEvent, name: str) -> list[AuditRecord]:
    await door.audited()
    return [
        AUDIT_DECODER.decode(each.data) for each in await cluster.bus.replay(streams.AUD, subjects.audit(event, name))
    ]


async def test_a_pool_is_made_read_replaced_and_removed(cluster: Cluster, door: Door) -> None:
    made = await ask(door, "POST", "pools", new_pool(provisioning={"env": {"KEY": "s3cret"}}))
    assert made.status == 201
    assert b"s3cret" not in made.body
    assert said(await ask(door, "POST", "pools", new_pool())) == (409, ErrorCode.INVALID_PARAMS)
    read = await ask(door, "GET", "pools/new")
    assert (read.headers["etag"], read.body) == (made.headers["etag"], made.body)
    wider = {**read.json(), "slots": 3}
    put = await ask(door, "PUT", "pools/new", wider, if_match=read.headers["etag"])
    assert (put.status, put.json(PoolSpec).slots) == (200, 3)
    assert put.headers["etag"] != read.headers["etag"]
    stored = (await POOLS.read(cluster.bus, "new")).value
    assert stored is not None
    assert stored.provisioning.env == {"KEY": "s3cret"}, "what was not shown is as it was"
    late = await ask(door, "PUT", "pools/new", wider, if_match=read.headers["etag"])
    assert said(late) == (412, ErrorCode.INVALID_PARAMS)
    listed = (await ask(door, "GET", "pools")).json(PoolList)
    assert [each.spec.id for each in listed.pools] == ["new", "p1"]
    assert b"s3cret" not in (await ask(door, "GET", "pools")).body
    assert (await ask(door, "DELETE", "pools/new")).status == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("DELETE", "/drain")):
        assert (await ask(door, method, f"pools/new{path}")).status == 404
    records = await audits(cluster, door, AuditEvent.POOL_CHANGED, "new")
    assert [each.detail["command"] for each in records] == ["create", "replace", "remove"]
    assert {each.channel for each in records} == {"http"}
    assert all(each.identity.startswith("token:") for each in records)


REFUSED: Final[tuple[tuple[str, str, Any, dict[str, str], int], ...]] = (
    ("POST", "pools", new_pool(slots=0), {}, 400),
    ("POST", "pools", new_pool(colour="blue"), {}, 400),
    ("POST", "pools", new_pool(provisioning={"flags": ["x" * 70_000]}), {}, 413),
    ("PUT", "pools/p1", new_pool(), {"if_match": "1"}, 400),
    ("PUT", "pools/p1", {**new_pool(), "id": "p1"}, {}, 400),
    ("PUT", "pools/p1", {**new_pool(), "id": "p1"}, {"if_match": "W/1"}, 400),
    ("PUT", "pools/new", new_pool(), {"if_match": "1"}, 404),
    ("POST", "pools/p1/drain", {}, {}, 400),
    ("POST", "pools/p1/drain", {"deadline_ms": -1}, {}, 400),
    ("POST", "pools/nobody/drain", {"deadline_ms": 1}, {}, 404),
    ("POST", "pools/p1/reload", {"new_model_ref": ""}, {}, 400),
    ("POST", "pools/nobody/reload", {"new_model_ref": "m"}, {}, 404),
    ("PUT", "tenants/acme", {"id": "other"}, {}, 400),
    ("PUT", "tenants/acme", {"id": "acme", "weight": 0}, {}, 400),
    ("DELETE", "tenants/acme", None, {}, 404),
    ("GET", "tenants/acme", None, {}, 404),
)


async def test_what_cannot_be_wanted_is_refused_and_nothing_is_written(cluster: Cluster, door: Door) -> None:
    before = (await cluster.bus.stream_state(streams.SPEC)).last_seq
    for method, path, body, headers, status in REFUSED:
        reply = await ask(door, method, path, body, **headers)
        assert said(reply) == (status, ErrorCode.INVALID_PARAMS), (method, path, reply.body)
    assert (await cluster.bus.stream_state(streams.SPEC)).last_seq == before


async def test_a_drained_pool_takes_no_tasks_until_it_is_undrained(cluster: Cluster, door: Door) -> None:
    drained = await ask(door, "POST", "pools/p1/drain", {"deadline_ms": 500})
    assert (drained.status, drained.json(PoolDrain).deadline_ms) == (202, 500)
    await settle()
    refused = await door.post_task(OPERATOR)
    assert said(refused) == (503, ErrorCode.POOL_UNREADY)
    assert "is drained" in refused.error.message
    health = (await ask(door, "GET", "pools/p1/health")).json(PoolHealth)
    assert (health.draining, health.drain) == (True, drained.json(PoolDrain))
    capability = (await ask(door, "GET", "capabilities")).json(Capabilities).engines[0].pools[0]
    assert capability.drained
    assert (await ask(door, "GET", "pools")).json(PoolList).pools[0].drained
    assert (await ask(door, "DELETE", "pools/p1/drain")).status == 204
    assert (await ask(door, "DELETE", "pools/p1/drain")).status == 204
    await settle()
    assert (await door.post_task(OPERATOR)).status == 202


async def test_another_pool_with_the_model_takes_what_a_drained_one_does_not(cluster: Cluster, door: Door) -> None:
    await cluster.add_pool(pool_spec("p2"), replica("p2"))
    await ask(door, "POST", "pools/p1/drain", {"deadline_ms": 0})
    await settle()
    assert (await door.post_task(OPERATOR)).status == 202
    assert len(await cluster.admissions("p2")) == 1


async def test_a_reload_is_under_way_once_and_health_tells_how_it_ended(cluster: Cluster, door: Door) -> None:
    asked = await ask(door, "POST", "pools/p1/reload", {"new_model_ref": "mock:other"})
    assert (asked.status, asked.json(PoolReload).state) == (202, ReloadState.UNDERWAY)
    again = await ask(door, "POST", "pools/p1/reload", {"new_model_ref": "mock:third"})
    assert said(again) == (409, ErrorCode.INVALID_PARAMS)
    assert again.error.pool_id == "p1"
    entry = await RELOADS.read(cluster.bus, "p1")
    assert entry.value is not None
    failed = msgspec.structs.replace(entry.value, state=ReloadState.FAILED, last_error="no such file")
    await RELOADS.write(cluster.bus, "p1", failed, over=entry.seq)
    await settle()
    health = (await ask(door, "GET", "pools/p1/health")).json(PoolHealth)
    assert (health.ready, health.last_error, health.reload) == (True, "no such file", failed)
    assert (await ask(door, "POST", "pools/p1/reload", {"new_model_ref": "mock:third"})).status == 202


OPERATIONS = (
    ("GET", "pools"),
    ("POST", "pools"),
    ("GET", "pools/p1"),
    ("PUT", "pools/p1"),
    ("DELETE", "pools/p1"),
    ("POST", "pools/p1/drain"),
    ("DELETE", "pools/p1/drain"),
    ("POST", "pools/p1/reload"),
    ("GET", "tenants"),
    ("GET", "tenants/blue"),
    ("PUT", "tenants/blue"),
    ("DELETE", "tenants/blue"),
)


async def test_a_token_that_is_bound_to_a_tenant_operates_nothing(cluster: Cluster, door: Door) -> None:
    before = (await cluster.bus.stream_state(streams.SPEC)).last_seq
    for method, path in OPERATIONS:
        reply = await ask(door, method, path, {} if method in ("POST", "PUT") else None, if_match="1", **ALICE)
        assert said(reply) == (403, ErrorCode.INVALID_PARAMS), path
    assert (await cluster.bus.stream_state(streams.SPEC)).last_seq == before
    await ask(door, "POST", "pools/p1/drain", {"deadline_ms": 5})
    for headers, knows in (({}, True), (ALICE, False)):
        health = (await ask(door, "GET", "pools/p1/health", **headers)).json(PoolHealth)
        assert health.drain is not None
        assert bool(health.drain.identity) is knows


async def test_what_a_newer_release_wrote_is_left_to_it(cluster: Cluster, door: Door) -> None:
    newer = {VERSION_HEADER: "99"}
    await cluster.bus.store(subjects.spec("tenant.blue"), b"{}", headers=newer)
    assert said(await ask(door, "GET", "tenants/blue")) == (503, ErrorCode.POOL_UNAVAILABLE)


async def test_who_has_no_token_does_not_say_what_nodes_run(cluster: Cluster) -> None:
    door = await cluster.gateway()
    command = new_pool(provisioning={"command": ["/bin/sh"]})
    refused = await door.post("/v1/pools", msgspec.json.encode(command))
    assert said(refused) == (403, ErrorCode.INVALID_PARAMS)
    assert (await door.post("/v1/pools", msgspec.json.encode(new_pool()))).status == 201


async def test_there_is_a_most_of_pools_and_tenants(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools_api, "POOLS_MAX", 1)
    monkeypatch.setattr(tenants_api, "TENANTS_MAX", 1)
    assert said(await ask(door, "POST", "pools", new_pool())) == (409, ErrorCode.INVALID_PARAMS)
    assert (await ask(door, "PUT", "tenants/a", {"id": "a"})).status == 200
    assert (await ask(door, "PUT", "tenants/a", {"id": "a", "weight": 2})).status == 200
    assert said(await ask(door, "PUT", "tenants/b", {"id": "b"})) == (409, ErrorCode.INVALID_PARAMS)


async def test_a_tenant_is_put_at_the_version_that_was_read(cluster: Cluster, door: Door) -> None:
    first = await ask(door, "PUT", "tenants/acme", {"id": "acme", "weight": 5})
    assert (first.status, first.json(Tenant)) == (200, Tenant(id="acme", weight=5))
    acme = {"id": "acme", "weight": 7, "tokens_per_min": 1_000}
    second = await ask(door, "PUT", "tenants/acme", acme, if_match=first.headers["etag"])
    assert second.status == 200
    late = await ask(door, "PUT", "tenants/acme", acme, if_match=first.headers["etag"])
    assert said(late) == (412, ErrorCode.INVALID_PARAMS)
    assert (await ask(door, "GET", "tenants/acme")).headers["etag"] == second.headers["etag"]
    assert len((await ask(door, "GET", "tenants")).json(TenantList).tenants) == 1
    pools = door.gateway.backend.snapshot.pools
    await settle()
    assert door.gateway.backend.snapshot.tenant_weight(pools["p1"], "acme") == 7
    own = FairnessSpec(tenants=(TenantSpec(id="acme", weight=3),))
    await cluster.add_pool(pool_spec("p2", admission=AdmissionSpec(fairness=own)))
    await settle()
    assert door.gateway.backend.snapshot.tenant_weight(pools["p2"], "acme") == 3, "the pool's own entry counts"
    assert (await ask(door, "DELETE", "tenants/acme")).status == 204
    await settle()
    assert door.gateway.backend.snapshot.tenant_weight(pools["p1"], "acme") == 1
    records = await audits(cluster, door, AuditEvent.TENANT_CHANGED, "acme")
    assert [each.detail["command"] for each in records] == ["put", "put", "remove"]


async def test_the_bus_does_the_same_and_says_so_in_the_audit(cluster: Cluster, door: Door) -> None:
    async def on_the_bus(verb: str, **fields: Any) -> tuple[Any, dict[str, str]]:
        reply = await cluster.bus.request(subjects.api(verb), msgspec.json.encode(fields), timeout_s=20)
        return (msgspec.json.decode(reply.data) if reply.data else None), dict(reply.headers)

    made, headers = await on_the_bus("pools.create", **new_pool())
    assert (made["id"], headers["ETag"].strip('"').isdigit()) == ("new", True)
    _, headers = await on_the_bus("pools.replace", pool_id="new", if_match=headers["ETag"], **new_pool(slots=2))
    read, _ = await on_the_bus("pools.get", pool_id="new")
    assert read["slots"] == 2
    await on_the_bus("pools.drain", pool_id="new", deadline_ms=5)
    body, headers = await on_the_bus("pools.reload", pool_id="new", new_model_ref="m")
    assert (headers["Nats-Service-Error-Code"], msgspec.convert(body, ErrorBody).code) == ("409", "INVALID_PARAMS")
    await on_the_bus("pools.undrain", pool_id="new")
    await on_the_bus("pools.delete", pool_id="new")
    records = await audits(cluster, door, AuditEvent.POOL_CHANGED, "new")
    assert [each.detail["command"] for each in records] == ["create", "replace", "drain", "undrain", "remove"]
    assert {(each.channel, each.identity) for each in records} == {("nats", "bus")}
    put, _ = await on_the_bus("tenants.put", tenant_id="acme", id="acme", rps=2)
    assert put["rps"] == 2


async def test_capabilities_tell_limits_that_every_pool_has(cluster: Cluster, door: Door) -> None:
    limited = AdmissionSpec(priorities=(PrioritySpec(name=Priority.BATCH, rate_limit_rps=2.5),))
    await cluster.add_pool(pool_spec(admission=limited), replica(features=("chat_template",)))
    await settle()
    (engine,) = (await ask(door, "GET", "capabilities")).json(Capabilities).engines
    assert engine.rate_limits == {"batch_rps": 2.5}
    assert engine.pools[0].features == ("chat_template",)
    await cluster.add_pool(pool_spec("p2"), replica("p2"))
    await settle()
    (engine,) = (await ask(door, "GET", "capabilities")).json(Capabilities).engines
    assert engine.rate_limits == {}
