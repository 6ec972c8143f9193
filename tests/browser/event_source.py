"""A real browser reads a stream: its own EventSource, which comes back by itself where it was cut off.

`make test-browser`; skipped where chromium is not on PATH (Debian: `apt install chromium`). The page tells what it sees
to the server that served it, so nothing drives the browser but the page.
"""

import asyncio
import json
import shutil
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llorch_gateway import tls
from llorch_gateway.server import HttpServer
from llorch_shared.wire.task import TaskState
from support.authority import Authority
from support.gateways import STARTED, Cluster, cluster_of, end, run_record, tokens
from support.link import Link
from support.nats_server import free_port

PAGE = Path(__file__).with_name("page.html").read_bytes()
LONG = 60.0


class PageServer:
    """Serves the page and keeps what it reports."""

    def __init__(self) -> None:
        self.steps: list[list[Any]] = []
        self._grown = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def origin(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def seen(self, *kinds: str) -> list[list[Any]]:
        return [step for step in self.steps if step[0] in kinds]

    async def until(self, kind: str, count: int = 1) -> None:
        async with asyncio.timeout(LONG), self._grown:
            await self._grown.wait_for(lambda: len(self.seen(kind)) >= count)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            # A browser opens connections ahead of need and drops them unused.
            writer.close()
            return
        body = b""
        if head.startswith("POST /report"):
            length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
            async with self._grown:
                self.steps.append(json.loads(await reader.readexactly(length)))
                self._grown.notify_all()
        elif head.startswith("GET /?"):
            body = PAGE
        kind = "content-type: text/html; charset=utf-8\r\nconnection: close\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\n{kind}content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def page() -> AsyncIterator[PageServer]:
    one = PageServer()
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of() as one:
        yield one


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2 over TLS"])
@pytest.mark.timeout(180)
async def test_a_page_reads_a_stream_and_goes_on_where_its_connection_was_cut(
    cluster: Cluster, page: PageServer, tmp_path: Path, http2: bool
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not on PATH")
    door = await cluster.gateway(cors_origins=(page.origin,))
    secure = tls.options(Authority(tmp_path).issue("gateway")) if http2 else {}
    versions: list[str] = []

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        versions.append(scope["http_version"])
        await door.gateway.front(scope, receive, send)

    server = HttpServer(noted, "127.0.0.1:0", requests_max=64, tls=secure)
    await server.start()
    link = Link(free_port(), server.port)
    await link.start()
    task = await door.submit()
    stream = f"{'https' if http2 else 'http'}://localhost:{link.port}/v1/tasks/{task}/stream"
    process = await asyncio.create_subprocess_exec(
        browser,
        *("--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", "--no-proxy-server"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run", "--disable-background-networking"),
        f"{page.origin}/?{urllib.parse.urlencode({'stream': stream})}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await page.until("open")
        await cluster.publish(door.lane, task, STARTED, tokens(0, 4))
        await page.until("token", 5)
        link.cut()
        await page.until("broken")
        await cluster.publish(door.lane, task, tokens(5, 7))
        link.mend()
        await page.until("token", 8)
        await cluster.record(run_record(task, TaskState.DONE, lane=door.lane, tokens_out=10, finish_reason="stop"))
        await cluster.publish(door.lane, task, tokens(8, 9), end(10))
        await page.until("end")
        await page.until("closed")
    finally:
        process.kill()
        await process.wait()
        await link.close()
        await server.stop()
    assert [json.loads(data)["i"] for _, data, _ in page.seen("token")] == list(range(10))
    assert [mark for _, _, mark in page.seen("token")] == [f"1-{index}" for index in range(10)]
    assert [step[0] for step in page.seen("started", "end", "error")] == ["started", "end"]
    assert len(page.seen("open")) >= 2
    assert set(versions) == {"2" if http2 else "1.1"}
