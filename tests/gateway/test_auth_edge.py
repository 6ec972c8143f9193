"""Who gets in over HTTP, and who does not (AUTH-1001..1008)."""

import hashlib
import logging

import msgspec
import pytest

from llorch_shared.errors import ErrorCode
from support.asgi import AsgiClient
from support.client import task_request
from support.gateways import Cluster, Door

TOKEN = "correct-horse"
LAN = "192.168.1.20"


async def test_with_a_token_everybody_needs_it_everywhere_but_at_healthz(cluster: Cluster) -> None:
    door = await cluster.gateway(token=TOKEN)
    for path in ("/v1/capabilities", "/metrics", "/readyz", "/openapi", "/nothing", "/v1/tasks/x/stream"):
        missing = await door.get(path)
        assert (missing.status, missing.error.code) == (401, ErrorCode.MISSING_TOKEN)
        assert missing.headers["www-authenticate"].startswith("Bearer")
        assert missing.headers["x-correlation-id"]
    assert (await door.get("/healthz")).status == 200
    assert (await door.get("/v1/capabilities", authorization=f"Bearer {TOKEN}")).status == 200
    assert (await door.get("/v1/capabilities", authorization=f"bearer {TOKEN}")).status == 200


async def test_a_token_may_come_as_an_api_key_and_a_bearer_token_wins_over_it(cluster: Cluster) -> None:
    door = await cluster.gateway(token=TOKEN)
    assert (await door.get("/v1/capabilities", x_api_key=TOKEN)).status == 200
    assert (await door.get("/v1/capabilities", x_api_key=" ")).error.code is ErrorCode.MISSING_TOKEN
    for sent in ({"x_api_key": "wrong"}, {"x_api_key": TOKEN, "authorization": "Bearer wrong"}):
        assert (await door.get("/v1/capabilities", **sent)).error.code is ErrorCode.BAD_TOKEN


@pytest.mark.parametrize("sent", ["Bearer wrong", f"Bearer {TOKEN}x", "Bearer \xe9"])
async def test_a_wrong_token_is_refused_from_anywhere(cluster: Cluster, sent: str) -> None:
    door = await cluster.gateway(token=TOKEN, auth_optional=True)
    for peer in ("127.0.0.1", LAN):
        reply = await AsgiClient(door.gateway.front, peer=peer).get("/v1/capabilities", authorization=sent)
        assert (reply.status, reply.error.code) == (401, ErrorCode.BAD_TOKEN)


async def test_a_refused_submit_leaves_no_trace_and_is_not_even_read(cluster: Cluster) -> None:
    door = await cluster.gateway(token=TOKEN)
    before = await cluster.stored()
    assert (await door.post("/v1/tasks", b"{}")).status == 401
    assert await cluster.stored() == before


async def test_auth_optional_frees_loopback_and_only_loopback(cluster: Cluster) -> None:
    door = await cluster.gateway(token=TOKEN, auth_optional=True)
    assert (await door.get("/v1/capabilities")).status == 200
    stranger = AsgiClient(door.gateway.front, peer=LAN)
    assert (await stranger.get("/v1/capabilities")).error.code is ErrorCode.MISSING_TOKEN
    proxied = await door.get("/v1/capabilities", x_forwarded_for=LAN)
    assert proxied.error.code is ErrorCode.MISSING_TOKEN


async def test_without_a_token_only_loopback_is_served(cluster: Cluster, door: Door) -> None:
    assert (await door.get("/v1/capabilities")).status == 200
    stranger = await AsgiClient(door.gateway.front, peer=LAN).get("/v1/capabilities")
    assert (stranger.status, stranger.error.code) == (403, ErrorCode.NON_LOOPBACK_WITHOUT_TOKEN)
    proxied = await door.get("/v1/capabilities", forwarded=f"for={LAN}")
    assert proxied.status == 403
    trusting = await cluster.gateway(trust_proxy_auth=True)
    assert (await trusting.get("/v1/capabilities", x_forwarded_for=LAN)).status == 200


async def test_logs_tell_callers_apart_and_never_show_a_token(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    door = await cluster.gateway(token=TOKEN, auth_optional=True)
    await door.submit()
    reply = await door.post(
        "/v1/tasks", msgspec.json.encode(task_request()), authorization=f"Bearer {TOKEN}", x_correlation_id="c-77"
    )
    assert reply.status == 202
    admitted = [record for record in caplog.records if getattr(record, "action", "") == "admit"]
    fingerprint = hashlib.sha256(TOKEN.encode()).hexdigest()[:6]
    assert [record.__dict__["identity"] for record in admitted] == ["localhost", f"token:{fingerprint}"]
    assert admitted[1].__dict__["correlation_id"] == "c-77"
    assert {"queue_position", "predicted_start_ms", "pool_id", "task_id"} <= set(admitted[1].__dict__)
    shown = "".join(str(record.__dict__) for record in caplog.records)
    assert TOKEN not in shown
    assert "Say something." not in shown
