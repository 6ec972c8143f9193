"""Many readers of one stream, at several gateways: the same bytes for all, and one that stops reading harms nobody."""

import asyncio
import contextlib
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from bench.accounting import resident_mb
from support.client import TaskClient
from support.system import System, mock_pool

READERS = 200
BURST_TOKENS = 3_000
BURST_RATE = 1_500.0
FLOOD_TOKENS = 30_000
STOPPED = 24
STOPPED_COST_MB_MAX = 32.0
"""Of the gateway's memory, for all that take nothing: less than the 2 MB that each of them has not read."""
LAST_ID = re.compile(rb"id: (\d+-\d+)\n")

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


class Seen:
    """What one reader got over all its connections: bytes of whole events, in order."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.connections = 0
        self.grown = asyncio.Condition()

    @property
    def tokens(self) -> list[bytes]:
        return [event for event in self.events if b"event: token\n" in event]

    @property
    def ended(self) -> bool:
        return bool(self.events) and b"event: end\n" in self.events[-1]

    @property
    def cursor(self) -> str:
        for event in reversed(self.events):
            if found := LAST_ID.match(event):
                return found[1].decode()
        return ""

    async def take(self, events: Sequence[bytes]) -> None:
        async with self.grown:
            self.events += events
            self.grown.notify_all()

    async def reached(self, events: int) -> None:
        async with self.grown:
            await self.grown.wait_for(lambda: len(self.events) >= events)

    async def read(self, http: aiohttp.ClientSession, url: str, *, leave_after: int = 0) -> "Seen":
        """One connection, to the end of the stream or until so many more events have come."""
        self.connections += 1
        cursor = self.cursor
        before, buffer = len(self.events), b""
        async with http.get(url, headers={"last-event-id": cursor} if cursor else {}) as answer:
            assert answer.status == 200, await answer.text()
            async for chunk in answer.content.iter_any():
                *whole, buffer = (buffer + chunk).split(b"\n\n")
                await self.take([event for event in whole if b"event: " in event])
                if self.ended or (leave_after and len(self.events) - before >= leave_after):
                    break
        return self


async def test_two_hundred_readers_at_three_gateways_see_the_same_bytes_also_late_and_resuming_in_a_burst(
    tmp_path: Path,
) -> None:
    pool = mock_pool(replicas=1, rate=BURST_RATE, ctx=8192)
    async with System(tmp_path, pools=[pool], gateways=3) as system, session() as http:
        task = (await system.client(1).submit(max_tokens=BURST_TOKENS, ctx=8192)).task_id
        urls = [f"{system.url(name)}/v1/tasks/{task}/stream" for name in system.gateways]
        first = Seen()
        everybody = [first, *(Seen() for _ in range(READERS - 1))]

        async def reader(number: int) -> None:
            seen, url = everybody[number], urls[number % 3]
            match number % 10:
                case 1 | 2:
                    await first.reached(number * BURST_TOKENS // READERS)
                    await seen.read(http, url)
                case 3:
                    while not seen.ended:
                        await seen.read(http, urls[seen.connections % 3], leave_after=200)
                case _:
                    await seen.read(http, url)

        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for number in range(READERS):
                group.create_task(reader(number))
        wanted = first.tokens
        assert len(wanted) == BURST_TOKENS
        assert [index_of(event) for event in wanted] == list(range(BURST_TOKENS))
        for number, seen in enumerate(everybody):
            assert seen.tokens == wanted, f"reader {number} after {seen.connections} connections"
            assert seen.ended
        assert sum(seen.connections for seen in everybody) > READERS


async def test_readers_that_stop_reading_cost_little_and_nobody_else_and_resume_later(tmp_path: Path) -> None:
    pool = mock_pool(replicas=1, rate=0, ctx=32_768)
    settings = {"gateway": {"auth_optional": True, "sse_stall_ms": 5_000, "cancel_on_disconnect": False}}
    async with System(tmp_path, pools=[pool], settings=settings) as system, session() as http:
        client = system.client()
        await flood(client, http, system)
        before = resident_mb(system.pid_of("gateway-1"))
        task = (await client.submit(max_tokens=FLOOD_TOKENS, ctx=32_768)).task_id
        url = f"{system.url()}/v1/tasks/{task}/stream"
        with contextlib.ExitStack() as stack:
            for _ in range(STOPPED):
                stack.enter_context(stopped_reader(system.addresses["gateway-1"], task))
            others = await asyncio.gather(*(Seen().read(http, url) for _ in range(3)))
            assert [len(seen.tokens) for seen in others] == [FLOOD_TOKENS] * 3
            grown = resident_mb(system.pid_of("gateway-1")) - before

            async def nobody_reads() -> bool:
                return await system.metric("gateway-1", "sse_streams_open") == 0

            await system.until(nobody_reads, "the stopped readers to lose their seats", 30)
        assert grown < STOPPED_COST_MB_MAX, f"{grown:.1f} MB more"
        resumed = Seen()
        resumed.events = others[0].events[:500]
        await resumed.read(http, url)
        assert resumed.tokens == others[0].tokens


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_read=60)
    )


def stopped_reader(address: str, task: str) -> socket.socket:
    """It asks for the stream, and takes nothing of it."""
    host, _, port = address.partition(":")
    stopped = socket.socket()
    stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    stopped.connect((host, int(port)))
    stopped.sendall(f"GET /v1/tasks/{task}/stream HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return stopped


async def flood(client: TaskClient, http: aiohttp.ClientSession, system: System) -> None:
    """The same once before, so that what is measured is not the first use of anything."""
    task = (await client.submit(max_tokens=FLOOD_TOKENS, ctx=32_768)).task_id
    url = f"{system.url()}/v1/tasks/{task}/stream"
    await asyncio.gather(*(Seen().read(http, url) for _ in range(3)))


def index_of(event: bytes) -> int:
    found = LAST_ID.match(event)
    assert found is not None, event
    return int(found[1].partition(b"-")[2])
