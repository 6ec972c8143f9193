"""What one token may use, and how much of a client's slowness a gateway bears."""

import asyncio
import contextlib
import math
from pathlib import Path

import msgspec
import pytest

from llorch_gateway.server import HttpServer
from llorch_shared.errors import ErrorCode, PolicyLabel
from support.asgi import AsgiClient, Reply
from support.client import task_request
from support.gateways import STARTED, Cluster, Door, end, tokens
from support.tokens import bearer, write_tokens

ALICE, BOB = bearer("alice-token"), bearer("bob-token")
PAGE = "https://app.example"


async def limited(cluster: Cluster, folder: Path, more: str, **changes: object) -> Door:
    write_tokens(folder / "tokens.toml", more, alice="blue", bob="red")
    settings = {"tokens_file": str(folder / "tokens.toml"), **changes}
    return await cluster.gateway(token="static", **settings)


def is_limit(reply: Reply, label: PolicyLabel) -> bool:
    error = reply.error
    assert error.retry_after_ms is not None
    assert reply.headers["x-backoff-ms"] == str(error.retry_after_ms)
    assert reply.headers["retry-after"] == str(max(1, math.ceil(error.retry_after_ms / 1000)))
    return (reply.status, error.code, error.policy_label, error.retriable) == (
        429,
        ErrorCode.ADMISSION_REJECT,
        label,
        True,
    )


async def test_a_token_over_its_rate_is_told_when_to_come_back_and_nobody_else_is(
    cluster: Cluster, tmp_path: Path
) -> None:
    door = await limited(cluster, tmp_path, "requests_per_s = 0.001\nburst = 3")
    for _ in range(2):
        await door.submit(ALICE)
    assert (await door.get("/v1/capabilities", **ALICE)).status == 200
    before = await cluster.stored()
    refused = await door.post_task(ALICE)
    assert is_limit(refused, PolicyLabel.RATE_LIMIT)
    assert 900_000 < (refused.error.retry_after_ms or 0) <= 1_000_001
    assert await cluster.stored() == before
    assert (await door.get("/v1/capabilities", **ALICE)).status == 429
    assert (await door.get("/healthz", **ALICE)).status == 200
    door.gateway.tokens.look()
    assert (await door.post_task(ALICE)).status == 429, "a token file read again does not begin anew"
    assert (await door.post_task(BOB)).status == 202
    for _ in range(5):
        assert (await door.post_task(bearer("static"))).status == 202
    assert b'requests_limited_total{reason="rate-limit"} 3.0' in (await door.get("/metrics", **BOB)).body


async def test_a_token_has_so_many_streams_open_and_gets_a_place_when_one_ends(
    cluster: Cluster, tmp_path: Path
) -> None:
    door = await limited(cluster, tmp_path, "streams_max = 2")
    tasks = [await door.submit(ALICE) for _ in range(3)]
    ending, leaving = (door.stream(task, headers=ALICE) for task in tasks[:2])
    for one in (ending, leaving):
        await one.until(lambda seen: bool(seen.body))
    for _ in range(2):
        assert is_limit(await door.stream(tasks[2], headers=ALICE).end(), PolicyLabel.STREAM_LIMIT)
    assert not [seat for seat in door.gateway.backend.router.seats if seat.channel.task == tasks[2]]
    other = await door.submit(BOB)
    assert (await unopened(door, "not-a-uuid")).status == 400
    await cluster.publish(door.lane, tasks[0], STARTED, tokens(0, 0), end(1))
    await ending.end()
    third = door.stream(tasks[2], headers=ALICE)
    await third.until(lambda seen: bool(seen.body))
    await leaving.leave()
    again = door.stream(tasks[1], headers=ALICE)
    await again.until(lambda seen: bool(seen.body))
    await door.stream(other, headers=BOB).leave()
    assert b'requests_limited_total{reason="stream-limit"} 2.0' in (await door.get("/metrics", **BOB)).body


async def unopened(door: Door, task: str) -> Reply:
    return await door.stream(task, headers=BOB).end()


async def test_streams_that_were_never_opened_use_no_place(cluster: Cluster, tmp_path: Path) -> None:
    door = await limited(cluster, tmp_path, "streams_max = 1")
    for _ in range(3):
        assert (await unopened(door, "5f9d1c1e-0d0b-4f7e-9a57-3f6f0c0b9a01")).status == 404
    task = await door.submit(BOB)
    reading = door.stream(task, headers=BOB)
    await reading.until(lambda seen: bool(seen.body))


async def test_a_body_that_never_comes_whole_is_answered_408(cluster: Cluster) -> None:
    door = await cluster.gateway(body_read_ms=100)
    server = HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=16)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
    async with asyncio.timeout(15):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408"), "answered, and the connection is closed"
    assert b"did not arrive within 0.1 s" in answer
    writer.close()
    await server.stop()


@pytest.mark.parametrize("sent", [b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"])
async def test_a_connection_whose_next_request_does_not_come_is_closed(door: Door, sent: bytes) -> None:
    """With half of its headers sent, and idle after an answer."""
    server = HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=16, header_read_s=0.2)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    async with asyncio.timeout(15):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200") == sent.endswith(b"\r\n\r\n")
    writer.close()
    await server.stop()


async def test_headers_beyond_every_bound_are_refused(door: Door) -> None:
    server = HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=16)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 100_000 + b"\r\n\r\n")
    answer = b""
    async with asyncio.timeout(15):
        with contextlib.suppress(ConnectionError):
            answer = await reader.readline()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431"), "or reset, since it was not read to its end"
    writer.close()
    await server.stop()


async def test_every_answer_may_be_kept_by_nobody_and_guessed_at_by_nobody(cluster: Cluster) -> None:
    door = await cluster.gateway(token="static")
    task = await door.submit(bearer("static"))
    replies = [await door.get(path) for path in ("/healthz", "/v1/capabilities", "/nothing")]
    replies += [await door.get(path, **bearer("static")) for path in (f"/v1/tasks/{task}", "/readyz", "/openapi", "/x")]
    replies.append(await door.post("/v1/tasks", msgspec.json.encode(task_request()), **bearer("static")))
    reading = door.stream(task, headers=bearer("static"))
    await reading.until(lambda seen: bool(seen.body))
    for reply in (*replies, reading):
        assert (reply.headers["x-content-type-options"], reply.headers["cache-control"]) == ("nosniff", "no-store")
        assert "access-control-allow-origin" not in reply.headers


async def test_no_web_page_may_call_until_its_origin_is_listed(cluster: Cluster) -> None:
    closed, opened = await cluster.gateway(token="static"), await cluster.gateway(token="static", cors_origins=(PAGE,))
    asks = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-llorch-priority",
    }
    refused = await closed.request("OPTIONS", "/v1/tasks", headers=asks)
    assert (refused.status, "access-control-allow-origin" in refused.headers) == (401, False)
    preflight = await opened.request("OPTIONS", "/v1/tasks", headers=asks)
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
    assert preflight.headers["access-control-allow-headers"] == "authorization,x-llorch-priority"
    for path in ("/v1/capabilities", "/v1/tasks/nothing/stream"):
        answer = await opened.get(path, origin=PAGE, **bearer("static"))
        assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (PAGE, "origin")
    stranger = await opened.get("/v1/capabilities", origin="https://evil.example", **bearer("static"))
    assert "access-control-allow-origin" not in stranger.headers
    any_page = await cluster.gateway(token="static", cors_origins=("*",))
    wrong = await AsgiClient(any_page.gateway.front).get("/v1/capabilities", origin=PAGE)
    assert (wrong.status, wrong.headers["access-control-allow-origin"]) == (401, PAGE)
