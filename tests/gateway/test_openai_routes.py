"""Completions of OpenAI's clients at one gateway's door: when a response begins, and how it ends without an end."""

from typing import Any

import msgspec
import pytest

from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.frames import encode_error
from llorch_shared.wire.openai import OpenAiErrorBody
from llorch_shared.wire.task import REQUEST_DECODER
from llorch_shared.wire.version import VERSION_HEADER
from support.asgi import Reply
from support.gateways import POOL, STARTED, Cluster, Door, end, pool_spec, replica, settle, tokens

CHAT = "/v1/chat/completions"
WISH: dict[str, Any] = {"model": "mock:words", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
JSON = {"content-type": "application/json"}


async def ask(cluster: Cluster, door: Door, **fields: Any) -> tuple[Reply, str]:
    """A request on its way, and the task that it has become."""
    reply = door.open("POST", CHAT, msgspec.json.encode({**WISH, **fields}), JSON)
    before = len(await cluster.admissions())
    while len(stored := await cluster.admissions()) == before:
        await settle()
    assert stored[-1].headers[VERSION_HEADER] == "3"
    request = REQUEST_DECODER.decode(stored[-1].data)
    while not door.gateway.backend.router.seats:
        await settle()
    return reply, request.task_id


async def test_a_stream_begins_with_its_first_token(cluster: Cluster, door: Door) -> None:
    reply, task = await ask(cluster, door, stream=True)
    await cluster.publish(door.lane, task, STARTED)
    await settle()
    assert reply.status == 0, "the engine may still refuse the prompt"
    await cluster.publish(door.lane, task, tokens(0, 2), end(3))
    await reply.end()
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert reply.headers["x-llorch-task-id"] == task
    assert reply.headers["x-request-id"] == reply.headers["x-correlation-id"]
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert b"event:" not in reply.body
    assert b"retry:" not in reply.body


@pytest.mark.parametrize("stream", [True, False])
async def test_what_goes_wrong_before_the_first_token_has_its_status(
    cluster: Cluster, door: Door, stream: bool
) -> None:
    reply, task = await ask(cluster, door, stream=stream)
    error = ErrorBody(code=ErrorCode.INVALID_PARAMS, message="the prompt has 9 tokens, the task's ctx is 8")
    await cluster.publish(door.lane, task, STARTED, encode_error(1, 0, error))
    await reply.end()
    assert reply.status == 400
    told = reply.json(OpenAiErrorBody).error
    assert (told.code, told.type, told.message) == (error.code, "invalid_request_error", error.message)
    assert reply.headers["x-should-retry"] == "false"


async def test_a_whole_answer_holds_everything(cluster: Cluster, door: Door) -> None:
    reply, task = await ask(cluster, door)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 2), end(3, reason="length"))
    await reply.end()
    answer = reply.json()
    assert (reply.status, answer["id"]) == (200, f"chatcmpl-{task}")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3
    assert not door.gateway.backend.router.seats


@pytest.mark.parametrize("stream", [True, False])
async def test_a_gateway_that_stops_says_so_to_who_has_no_answer_yet(
    cluster: Cluster, door: Door, stream: bool
) -> None:
    reply, task = await ask(cluster, door, stream=stream)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 2))
    if stream:
        await reply.until(lambda seen: bool(seen.body))
    await door.gateway.stop_serving()
    await reply.end()
    if stream:
        last = reply.body.removesuffix(b"\n\n").rpartition(b"data: ")[2]
        assert reply.status == 200
    else:
        last = reply.body
        assert reply.status == 503
        assert (reply.headers["x-should-retry"], reply.headers["retry-after"]) == ("true", "1")
    error = msgspec.json.decode(last, type=OpenAiErrorBody).error
    assert (error.code, error.type) == (ErrorCode.POOL_UNAVAILABLE, "server_error")


async def test_errors_before_a_task_are_in_openais_shape(cluster: Cluster, door: Door) -> None:
    await cluster.add_pool(pool_spec("empty", model="mock:none"))
    cases: list[tuple[int, dict[str, Any], dict[str, str]]] = [
        (404, {**WISH, "model": "nobody"}, JSON),
        (400, {**WISH, "n": 2}, JSON),
        (415, WISH, {"content-type": "text/plain"}),
        (503, {**WISH, "model": "mock:none"}, JSON),
        (400, WISH, {**JSON, "x-llorch-priority": "urgent"}),
    ]
    for status, wish, headers in cases:
        reply = await door.request("POST", CHAT, msgspec.json.encode(wish), headers)
        assert reply.status == status, reply.body
        told = reply.json(OpenAiErrorBody).error
        assert reply.headers["x-should-retry"] == ("true" if told.retriable else "false")
    assert await cluster.admissions() == []


async def test_models_by_both_names(cluster: Cluster, door: Door) -> None:
    await cluster.add_pool(pool_spec("h", model="hf:org/repo/m.gguf"), replica("h"))
    listed = (await door.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["hf:org/repo/m.gguf", "mock:words"]
    for name in ("hf:org/repo/m.gguf", "h"):
        assert (await door.get(f"/v1/models/{name}")).json() == listed["data"][0]
    assert (await door.get(f"/v1/models/{POOL}")).json()["ready"] is True
    assert (await door.get("/v1/models/nobody")).status == 404


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_says_what_its_session_has_left(cluster: Cluster, door: Door, stream: bool) -> None:
    session = "0b9c6a52-9a53-4a5e-8d0a-5f1c3a8e7d11"
    made = await door.request("PUT", f"/v1/sessions/{session}", b'{"tokens_budget": 100}', JSON)
    assert made.status == 200
    reply, task = await ask(cluster, door, stream=stream, llorch={"session": session})
    await cluster.publish(door.lane, task, STARTED, tokens(0, 2), end(3))
    await reply.end()
    assert (reply.status, reply.headers["x-budget-tokens-remaining"]) == (200, "91")
