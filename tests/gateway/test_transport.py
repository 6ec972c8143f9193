"""One stream over every transport: HTTP/1.1 and HTTP/2, in clear and over TLS, read by libraries and by curl; clients
that leave, and the ways in which streams end."""

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import httpx
import pytest

from llorch_gateway import tls
from llorch_gateway.server import HttpServer
from support.authority import Authority
from support.gateways import STARTED, Cluster, Door, end, tokens
from support.h2_client import H2Client

CURL = shutil.which("curl")
FIRST = b"retry: 1000\n\n"
LONG = 60
"""Deadline of what is waited for, seconds: far beyond what any of it takes."""


class Doors:
    """The gateway of a test on two ports, as `clear` and as `tls`."""

    def __init__(self, clear: HttpServer, secure: HttpServer, authority: Authority) -> None:
        self.clear = clear
        self.tls = secure
        self.ca = authority.file
        self.trust = ssl.create_default_context(cafile=str(authority.file))

    def url(self, *, secure: bool) -> str:
        return f"https://localhost:{self.tls.port}" if secure else self.clear.url


@pytest.fixture
async def doors(door: Door, tmp_path: Path) -> AsyncIterator[Doors]:
    authority = Authority(tmp_path)
    secure = tls.options(authority.issue("gateway"))
    servers = [HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=64, tls=wanted) for wanted in ({}, secure)]
    for server in servers:
        await server.start()
    yield Doors(servers[0], servers[1], authority)
    for server in servers:
        await server.stop()


async def seats(door: Door, count: int) -> None:
    """Until so many read."""
    async with asyncio.timeout(LONG):
        while len(door.gateway.backend.router.seats) != count:
            await asyncio.sleep(0.002)


async def by_httpx(doors: Doors, path: str, *, secure: bool, http2: bool) -> tuple[str, bytes]:
    """The version that was spoken, and the body."""
    async with (
        httpx.AsyncClient(
            base_url=doors.url(secure=secure), verify=doors.trust, http1=not http2, http2=http2, timeout=LONG
        ) as http,
        http.stream("GET", path) as reply,
    ):
        body = b"".join([piece async for piece in reply.aiter_raw()])
        return reply.http_version.removeprefix("HTTP/"), body


async def by_curl(doors: Doors, path: str, *options: str, secure: bool) -> tuple[str, bytes]:
    assert CURL is not None
    process = await asyncio.create_subprocess_exec(
        CURL,
        *("--silent", "--show-error", "--no-buffer", "--max-time", str(LONG), "--noproxy", "*"),
        *("--write-out", "%{http_version}", "--cacert", str(doors.ca), *options),
        doors.url(secure=secure) + path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, err.decode()
    body, newline, version = out.rpartition(b"\n\n")
    return version.decode(), body + newline


async def test_every_client_reads_the_same_bytes_over_every_version(cluster: Cluster, door: Door, doors: Doors) -> None:
    task = await door.submit()
    path = f"/v1/tasks/{task}/stream"
    reading: dict[str, Awaitable[tuple[str, bytes]]] = {
        "httpx h1": by_httpx(doors, path, secure=False, http2=False),
        "httpx h2 by prior knowledge": by_httpx(doors, path, secure=False, http2=True),
        "httpx h1 over TLS": by_httpx(doors, path, secure=True, http2=False),
        "httpx h2 over TLS": by_httpx(doors, path, secure=True, http2=True),
    }
    spoken = {"httpx h1": "1.1", "httpx h1 over TLS": "1.1"}
    if CURL:
        reading |= {
            "curl h1": by_curl(doors, path, "--http1.1", secure=False),
            "curl upgrade": by_curl(doors, path, "--http2", secure=False),
            "curl h2 by prior knowledge": by_curl(doors, path, "--http2-prior-knowledge", secure=False),
            "curl h2 over TLS": by_curl(doors, path, "--http2", secure=True),
        }
        spoken |= {"curl h1": "1.1", "curl upgrade": "1.1"}
    running = {name: asyncio.ensure_future(one) for name, one in reading.items()}
    await seats(door, len(running))
    for index in range(20):
        await cluster.publish(door.lane, task, *([STARTED] if index == 0 else []), tokens(index, index))
    await cluster.publish(door.lane, task, end(20))
    async with asyncio.timeout(LONG):
        read = {name: await one for name, one in running.items()}
    whole = FIRST + STARTED + tokens(0, 19) + end(20)
    assert read == {name: (spoken.get(name, "2"), whole) for name in running}


@pytest.mark.skipif(CURL is None, reason="curl is not installed here")
async def test_curl_goes_on_behind_the_last_event_it_has(cluster: Cluster, door: Door, doors: Doors) -> None:
    task = await door.submit()
    path = f"/v1/tasks/{task}/stream"
    await cluster.publish(door.lane, task, STARTED, tokens(0, 9), end(10))
    version, rest = await by_curl(doors, path, "--http2", "--header", "Last-Event-ID: 1-5", secure=True)
    assert (version, rest) == ("2", FIRST + tokens(6, 9) + end(10))


async def test_a_stream_that_is_taken_back_is_seen_and_its_connection_goes_on(
    cluster: Cluster, door: Door, doors: Doors
) -> None:
    left, read = await door.submit(), await door.submit()
    async with H2Client.connect(doors.clear.port) as client, asyncio.timeout(LONG):
        one = await client.get(f"/v1/tasks/{left}/stream")
        await client.read_until(one, FIRST)
        other = await client.get(f"/v1/tasks/{read}/stream")
        await client.read_until(other, FIRST)
        assert len(door.gateway.backend.router.seats) == 2
        await client.reset(one)
        await seats(door, 1)
        await cluster.publish(door.lane, read, STARTED, tokens(0, 4), end(5))
        assert await client.whole(other) == FIRST + STARTED + tokens(0, 4) + end(5)


async def test_a_gateway_that_prefers_http_1_speaks_nothing_else(door: Door, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    secure = tls.options(authority.issue("gateway"))
    server = HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=64, http2=False, tls=secure)
    await server.start()
    trust = ssl.create_default_context(cafile=str(authority.file))
    url = f"https://localhost:{server.port}"
    async with httpx.AsyncClient(base_url=url, verify=trust, http2=True, timeout=LONG) as http:
        assert (await http.get("/healthz")).http_version == "HTTP/1.1"
    await server.stop()


async def test_a_stop_ends_streams_of_one_connection_over_tls_with_a_word(door: Door, doors: Doors) -> None:
    paths = [f"/v1/tasks/{await door.submit()}/stream" for _ in range(2)]
    async with H2Client.connect(doors.tls.port, _h2_trust(doors)) as client, asyncio.timeout(LONG):
        streams = [await client.get(path) for path in paths]
        for stream in streams:
            await client.read_until(stream, FIRST)
        await door.gateway.stop_serving()
        assert [await client.whole(stream) for stream in streams] == [FIRST + b"retry: 500\n\n"] * 2
        assert set(client.ended.values()) == {"end"}


def _h2_trust(doors: Doors) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=str(doors.ca))
    trust.set_alpn_protocols(["h2"])
    return trust
