"""The edges of HTTP: routes equal the table, one envelope for every refusal, a correlation id on everything."""

import uuid

import pytest
from litestar import Litestar

from llorch_gateway.http_errors import error_reply
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.errors import ERRORS, ErrorCode, OrchError, PolicyLabel, Refused
from llorch_shared.http_api import OPERATIONS, Liveness, Operation, Plane, Readiness
from llorch_shared.wire.anthropic import AnthropicErrorBody
from llorch_shared.wire.openai import OpenAiErrorBody
from llorch_shared.wire.registry import Capabilities, PoolHealth
from support.gateways import Cluster, Door, cluster_of, load_report, pool_spec, replica

STREAM = {("GET", "/v1/tasks/{id}/stream")}
"""Answered before Litestar; so is a submission, whose route is there for its path's other methods."""


OTHERS = (OpenAiErrorBody, AnthropicErrorBody)
VENDORS = {(each.method, each.path) for each in OPERATIONS if each.error_body in OTHERS}
"""What other vendors' clients ask, in their own shapes."""


def concrete(operation: Operation, task: str) -> str:
    path = operation.path.replace("{plane}", "data.json")
    return path.replace("{id}", "p1" if "/pools/" in path else task)


async def test_litestar_serves_the_rest_of_the_table_and_nothing_else(door: Door) -> None:
    control = door.gateway.front.control
    assert isinstance(control, Litestar)
    served = {
        (method, route.path_format)
        for route in control.routes
        for method in getattr(route, "methods", ())
        if method in ("GET", "POST", "DELETE", "PUT", "PATCH")
    }
    assert served == {(operation.method, operation.path) for operation in OPERATIONS} - STREAM - VENDORS


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.operation_id)
async def test_every_operation_answers_with_a_status_of_its_table_row(door: Door, operation: Operation) -> None:
    task = str(uuid.uuid4())
    reply = await door.request(operation.method, concrete(operation, task), headers={"x-correlation-id": "mine"})
    assert reply.status in {answer.status for answer in operation.replies} | set(operation.error_codes())
    assert reply.headers["x-correlation-id"] == "mine"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.operation_id)
async def test_another_method_is_refused_with_what_is_allowed(door: Door, operation: Operation) -> None:
    reply = await door.request("PATCH", concrete(operation, str(uuid.uuid4())))
    error = reply.json(operation.error_body).error if operation.error_body in OTHERS else reply.error
    assert (reply.status, error.code) == (405, ErrorCode.INVALID_PARAMS)
    allowed = sorted(other.method for other in OPERATIONS if other.path == operation.path)
    assert reply.headers["allow"] == ", ".join(allowed)


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/v1", "/v1/tasks/a/b", "/v1/tasks/a/b/stream", "/v1/tasksx/stream", "/v1/poolsx", "//"]
)
async def test_an_unknown_path_gets_the_envelope(door: Door, path: str) -> None:
    reply = await door.get(path)
    assert (reply.status, reply.error.code) == (404, ErrorCode.INVALID_PARAMS)
    uuid.UUID(reply.headers["x-correlation-id"])


@pytest.mark.parametrize("sent", ["", "with space", "x" * 129, "semi;colon", "n\xe9"])
async def test_a_correlation_id_of_another_form_is_replaced(door: Door, sent: str) -> None:
    reply = await door.get("/healthz", x_correlation_id=sent)
    assert uuid.UUID(reply.headers["x-correlation-id"]).version == 4


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_becomes_its_status_with_the_headers_of_that_status(code: ErrorCode) -> None:
    status, headers, body = error_reply(OrchError(code, "why"), "c-1")
    names = dict(headers)
    assert status == ERRORS[code].status
    assert names[b"x-correlation-id"] == b"c-1"
    assert b'"code":"%b"' % code.encode() in body
    assert (b"www-authenticate" in names) == (status == 401)
    assert (b"retry-after" in names) == (status in (429, 503))
    assert (b"x-backoff-ms" in names) == (status == 429)


@pytest.mark.parametrize(("wait_ms", "seconds"), [(0, b"1"), (1, b"1"), (1000, b"1"), (1001, b"2"), (2500, b"3")])
def test_retry_after_is_whole_seconds_and_at_least_one(wait_ms: int, seconds: bytes) -> None:
    _, headers, _ = error_reply(Refused("full", policy_label=PolicyLabel.REJECT, retry_after_ms=wait_ms), "c")
    assert dict(headers)[b"retry-after"] == seconds
    assert dict(headers)[b"x-backoff-ms"] == str(wait_ms).encode()


async def test_health_tells_that_the_process_lives_and_readiness_why_it_is_not_ready(
    cluster: Cluster, door: Door
) -> None:
    assert (await door.get("/healthz")).json(Liveness) == Liveness()
    ready = await door.get("/readyz")
    assert (ready.status, ready.json(Readiness)) == (200, Readiness(ready=True, instance=door.lane))
    assert isinstance(door.bus, MemoryBus)
    door.bus.break_connection()
    away = await door.get("/readyz")
    assert (away.status, away.json(Readiness).reasons) == (503, ("the bus is not connected",))
    assert (await door.get("/healthz")).status == 200


async def test_capabilities_tell_what_is_served_and_on_what(cluster: Cluster, door: Door) -> None:
    await cluster.add_pool(pool_spec("p2", model="mock:starting"))
    await cluster.report(load_report(slots_free=3))
    told = (await door.get("/v1/capabilities")).json(Capabilities)
    [engine] = told.engines
    assert (engine.engine, engine.ctx_max, engine.concurrency) == ("mock", 4096, 4)
    first, second = engine.pools
    assert (first.pool_id, first.ready, first.device, first.slots_total, first.slots_free) == ("p1", True, "cpu", 4, 3)
    assert (second.pool_id, second.ready, second.slots_total) == ("p2", False, 0)


async def test_pool_health_tells_replicas_load_and_the_last_error() -> None:
    async with cluster_of(pool_spec(), replica(), replica(number=1, last_error="CUDA error 79", live=False)) as cluster:
        door = await cluster.gateway()
        await cluster.report(load_report(queued={"interactive": 5}, running=2))
        health = (await door.get("/v1/pools/p1/health")).json(PoolHealth)
        assert (health.live, health.ready, health.draining, health.last_error) == (True, True, False, "CUDA error 79")
        assert health.metrics["queue_depth_interactive"] == 5
        assert len(health.replicas) == 2
        assert (await door.get("/v1/pools/unknown/health")).status == 404
        assert (await door.get("/v1/pools/Not%20A%20Name/health")).status == 400


async def test_the_contracts_are_served(door: Door) -> None:
    assert (await door.get("/openapi")).json() == {plane.value: f"/openapi/{plane}.json" for plane in Plane}
    document = (await door.get("/openapi/data.json")).json()
    assert set(document["paths"]) == {operation.path for operation in OPERATIONS if operation.plane is Plane.DATA}
    assert (await door.get("/openapi/other.json")).status == 404


async def test_a_fault_of_ours_is_an_internal_error_that_shows_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_args: object, **_more: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(MemoryBus, "last", broken)
    for method, path in (("GET", f"/v1/tasks/{uuid.uuid4()}"), ("GET", f"/v1/tasks/{uuid.uuid4()}/stream")):
        reply = await door.request(method, path)
        assert (reply.status, reply.error.code) == (500, ErrorCode.INTERNAL)
        assert b"swordfish" not in reply.body


async def test_a_stream_has_no_other_parameter(door: Door) -> None:
    reply = await door.get(f"/v1/tasks/{await door.submit()}/stream?after=&colour=blue")
    assert (reply.status, reply.error.code) == (400, ErrorCode.INVALID_PARAMS)
    assert "colour" in reply.error.message


@pytest.mark.parametrize("after", ["", "soon", "%201", "1-", "-1", "1&after=x"])
async def test_a_wrong_cursor_is_refused_even_beside_a_right_one(door: Door, after: str) -> None:
    path = f"/v1/tasks/{uuid.uuid4()}/stream?after={after}"
    reply = await door.request("GET", path, headers={"last-event-id": "1-2"})
    assert (reply.status, reply.error.code) == (400, ErrorCode.INVALID_PARAMS)
    assert "after" in reply.error.message
