"""Clients that are slow on purpose cost a bounded time and memory, on every transport: those that open connections and
ask nothing, and those that ask and take nothing."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import msgspec
import pytest

from llorch_gateway import tls
from llorch_gateway.answer_room import ANSWERS_MAX
from llorch_gateway.idle_connections import AFTER_USE_FACTOR, Connection, Idle
from llorch_gateway.server import HttpServer
from support.authority import Authority
from support.bus_worlds import eventually
from support.gateways import STARTED, Cluster, tokens

QUIET = Connection(peer=1, heard_ms=60_000)
SECURE = pytest.mark.parametrize("secure", [False, True], ids=["clear", "tls"])


def test_who_never_asked_has_a_time_and_who_did_has_more() -> None:
    idle = Idle(10)
    silent, asked, asking = QUIET, Connection(2, 60_000), Connection(3, 60_000)
    everybody = {100: silent, 200: asked, 300: asking}
    assert idle.overdue(everybody, 0) == []
    idle.begins(2)
    idle.ends(2, 5)
    idle.begins(3)
    assert idle.overdue(everybody, 9.9) == []
    assert idle.overdue(everybody, 10) == [100]
    assert idle.overdue(everybody, 5 + 10 * AFTER_USE_FACTOR) == [100, 200]
    idle.ends(3, 1_000)
    assert idle.overdue(everybody, 1_001) == [100, 200]


def test_who_says_something_just_now_has_twice_the_time_and_no_more() -> None:
    idle = Idle(10)
    talking = {100: Connection(1, 20)}
    assert [idle.overdue(talking, at) for at in (0, 10, 19.9, 20)] == [[], [], [], [100]]


def test_a_port_that_is_used_again_begins_anew() -> None:
    idle = Idle(10)
    assert idle.overdue({100: QUIET}, 0) == []
    assert idle.overdue({101: QUIET}, 12) == []
    assert idle.overdue({101: QUIET}, 22) == [101]


class Patient:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.set()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})


@contextlib.asynccontextmanager
async def serving(app: Any, folder: Path, *, secure: bool, **bounds: float) -> AsyncIterator[tuple[HttpServer, Any]]:
    """A server, and who is trusted by its clients."""
    authority = Authority(folder)
    options = tls.options(authority.issue("gateway")) if secure else {}
    server = HttpServer(app, "127.0.0.1:0", requests_max=32, tls=options, **bounds)
    await server.start()
    try:
        yield server, authority.file
    finally:
        await server.stop()


async def opened(
    server: HttpServer, trusted: Path | None = None, protocol: str = "http/1.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """With TLS where `trusted` is given."""
    context = None
    if trusted is not None:
        context = ssl.create_default_context(cafile=str(trusted))
        context.set_alpn_protocols([protocol])
    name = "localhost" if context else None
    return await asyncio.open_connection("127.0.0.1", server.port, ssl=context, server_hostname=name)


def http2() -> tuple[h2.connection.H2Connection, bytes]:
    """A connection that has begun, and what it sends for that."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    return connection, connection.data_to_send()


def get(path: str) -> bytes:
    connection, sent = http2()
    head = {":method": "GET", ":path": path, ":scheme": "http", ":authority": "x"}
    connection.send_headers(1, list(head.items()), end_stream=True)
    return sent + connection.data_to_send()


async def closed(ends: tuple[asyncio.StreamReader, asyncio.StreamWriter], sent: bytes) -> None:
    """Until the server closes it."""
    reader, writer = ends
    writer.write(sent)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        async with asyncio.timeout(30):
            while await reader.read(65_536):
                continue
    writer.close()


@SECURE
async def test_connections_that_ask_nothing_are_closed_and_no_request_that_is_under_way(
    tmp_path: Path, secure: bool
) -> None:
    app = Patient()
    async with serving(app, tmp_path, secure=secure, header_read_s=1.0) as (server, authority):
        trusted = authority if secure else None
        reader, writer = await opened(server, trusted)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(30):
            await app.asked.wait()
        _, begun = http2()
        unfinished_headers = b"\x00\x00\x01\x01\x01\x00\x00\x00\x01\x82"
        slow = [
            closed(await opened(server, trusted), b""),
            closed(await opened(server, trusted), b"GET / HT"),
            closed(await opened(server, trusted, "h2"), b"PRI * HT"),
            closed(await opened(server, trusted, "h2"), begun),
            closed(await opened(server, trusted, "h2"), begun + unfinished_headers),
        ]
        if secure:
            slow += [closed(await opened(server), b""), closed(await opened(server), b"\x16\x03\x01")]
        await asyncio.gather(*slow)
        app.go.set()
        async with asyncio.timeout(30):
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_an_answer_that_an_http2_client_does_not_take_gives_its_room_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    door = await cluster.gateway(sse_stall_ms=1000)
    content = {"kind": "other", "content": {"text": "x" * 3_000_000}}
    made = (await door.post("/v1/artifacts", msgspec.json.encode(content))).json()
    async with serving(door.gateway.front, tmp_path, secure=False) as (server, _):
        _, writer = await opened(server, protocol="h2")
        writer.write(get(f"/v1/artifacts/{made['id']}"))
        answers = door.gateway.front.answers
        await eventually(lambda: answers.free < ANSWERS_MAX)
        await eventually(lambda: answers.free == ANSWERS_MAX)
        writer.close()


async def test_a_stream_that_an_http2_client_does_not_take_loses_its_seat(cluster: Cluster, tmp_path: Path) -> None:
    """Its windows stay shut, while its connection lives."""
    door = await cluster.gateway(sse_stall_ms=1000)
    task = await door.submit()
    async with serving(door.gateway.front, tmp_path, secure=True) as (server, authority):
        _, writer = await opened(server, authority, "h2")
        writer.write(get(f"/v1/tasks/{task}/stream"))
        await eventually(lambda: bool(door.gateway.backend.router.seats))
        await cluster.publish(door.lane, task, STARTED, *(tokens(at, at + 999) for at in range(0, 10_000, 1000)))
        await eventually(lambda: not door.gateway.backend.router.seats)
        writer.close()
