"""The HTTP client against a gateway that breaks its connections, refuses, or is not there."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llorch_ctl.exits import Exit, Problem
from llorch_ctl.gateway_client import ApiProblem, GatewayClient, gateway_url
from llorch_shared.settings import GatewaySettings, Secret, Settings
from llorch_shared.wire.frames import End, Started, encode_end, encode_started, encode_token
from support.nats_server import free_port

TASK = "0d7ecc1e-1fd6-4b8e-9f4a-1d2f7e0a3b5c"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[GatewayClient]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    open_now: list[TestServer | GatewayClient] = []

    async def start(handler: Handler) -> GatewayClient:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        client = GatewayClient(str(server.make_url("")), Secret("s3cret"))
        open_now.extend((server, client))
        return client

    yield start
    for one in reversed(open_now):
        await (one.__aexit__() if isinstance(one, GatewayClient) else one.close())


async def test_a_broken_stream_goes_on_where_it_was(serve: Serve) -> None:
    asked: list[str | None] = []

    async def three_pieces(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Last-Event-ID"))
        assert request.headers["Authorization"] == "Bearer s3cret"
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        if len(asked) == 1:
            await answer.write(b"retry: 1\n\n" + encode_started(Started(queue_position=0, predicted_start_ms=0)))
            await answer.write(encode_token(1, 0, "a") + encode_token(1, 1, "b") + encode_token(1, 2, "c")[:-9])
        elif len(asked) == 2:
            await answer.write(encode_token(1, 1, "b") + encode_token(1, 2, "c"))
        else:
            end = End(tokens_out=3, decode_ms=1, decode_time_ms=1, finish_reason="stop")
            await answer.write(encode_end(1, end))
            return answer
        assert request.transport is not None
        request.transport.close()
        return answer

    client = await serve(three_pieces)
    events = [event.id or event.event async for event in client.stream(TASK)]
    assert events == ["started", "1-0", "1-1", "1-2", "1-3"]
    assert asked == [None, "1-1", "1-2"]


async def test_a_stream_read_to_its_end_before_is_over(serve: Serve) -> None:
    async def over(request: web.Request) -> web.StreamResponse:
        assert request.headers["Last-Event-ID"] == "1-7"
        return web.Response(status=204)

    client = await serve(over)
    assert [event async for event in client.stream(TASK, after="1-7")] == []


async def test_a_full_queue_is_a_refusal_for_now(serve: Serve) -> None:
    body = {"code": "ADMISSION_REJECT", "message": "full", "retriable": True, "retry_after_ms": 1500}

    async def full(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=429)

    client = await serve(full)
    with pytest.raises(ApiProblem, match="full") as problem:
        await client.show(TASK)
    assert problem.value.exit_code == Exit.REFUSED
    assert "1.5 s" in problem.value.fix


async def test_an_answer_that_is_not_ours_is_told(serve: Serve) -> None:
    async def other(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>hello</html>")

    client = await serve(other)
    with pytest.raises(Problem, match="something else than a llama-orch gateway"):
        await client.capabilities()


async def test_nobody_there_is_unreachable() -> None:
    async with GatewayClient(f"http://127.0.0.1:{free_port()}", Secret("")) as client:
        with pytest.raises(Problem, match="nobody answers") as problem:
            await client.show(TASK)
        assert problem.value.exit_code == Exit.UNREACHABLE
        with pytest.raises(Problem, match="nobody answers"):
            _ = [event async for event in client.stream(TASK)]


@pytest.mark.parametrize(
    ("addr", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:81", "http://127.0.0.1:81"),
        ("[::]:80", "http://[::1]:80"),
    ],
)
def test_a_wildcard_address_is_reached_on_loopback(addr: str, url: str) -> None:
    assert gateway_url(Settings(gateway=GatewaySettings(addr=addr))) == url
