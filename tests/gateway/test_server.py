"""The real HTTP server in front of a gateway: HTTP/1.1 and HTTP/2, leaving clients, stopping, sharing a port."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest

from llorch_gateway import open_files
from llorch_gateway.server import HttpServer, split_address
from llorch_shared.settings import SettingsError
from support.client import task_request
from support.gateways import STARTED, Cluster, Door, end, tokens

JSON = {"content-type": "application/json"}
FLOOD_BYTES = 64 * 1024 * 1024
BOTH = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2c"])


@contextlib.asynccontextmanager
async def served(door: Door) -> AsyncIterator[HttpServer]:
    server = HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=256)
    await server.start()
    yield server
    await server.stop()


def client(server: HttpServer, *, http2: bool) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, http1=not http2, http2=http2, timeout=30)


@BOTH
async def test_a_task_is_submitted_and_streamed(cluster: Cluster, door: Door, http2: bool) -> None:
    request = task_request()
    async with served(door) as server, client(server, http2=http2) as http:
        accepted = await http.post("/v1/tasks", content=msgspec.json.encode(request), headers=JSON)
        assert (accepted.status_code, accepted.http_version) == (202, "HTTP/2" if http2 else "HTTP/1.1")
        async with http.stream("GET", f"/v1/tasks/{request.task_id}/stream") as reply:
            pieces = reply.aiter_raw()
            assert await anext(pieces) == b"retry: 1000\n\n"
            await cluster.publish(door.lane, request.task_id, STARTED, tokens(0, 99), end(100))
            assert b"".join([piece async for piece in pieces]) == STARTED + tokens(0, 99) + end(100)


@BOTH
async def test_refusals_reach_a_client_that_is_still_sending(door: Door, http2: bool) -> None:
    async with served(door) as server, client(server, http2=http2) as http:
        refused = await http.post("/v1/tasks", content=b"x" * 20_000_000, headers=JSON)
        assert refused.status_code == 413
        assert refused.json()["code"] == "INVALID_PARAMS"
        assert (await http.get("/healthz")).status_code == 200


async def test_a_client_that_closes_its_connection_is_seen_at_once(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    async with served(door) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET /v1/tasks/{task}/stream HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await reader.readuntil(b"retry: 1000")
        assert len(door.gateway.backend.router.seats) == 1
        writer.close()
        async with asyncio.timeout(15):
            while door.gateway.backend.router.seats:
                await asyncio.sleep(0.002)


@BOTH
async def test_stopping_ends_streams_cleanly_and_the_server_within_seconds(
    cluster: Cluster, door: Door, http2: bool
) -> None:
    tasks = [await door.submit() for _ in range(2)]
    async with served(door) as server, client(server, http2=http2) as http:

        async def read(task: str) -> bytes:
            async with http.stream("GET", f"/v1/tasks/{task}/stream") as reply:
                return b"".join([piece async for piece in reply.aiter_raw()])

        reading = [asyncio.create_task(read(task)) for task in tasks]
        async with asyncio.timeout(15):
            while len(door.gateway.backend.router.seats) < 2:
                await asyncio.sleep(0.002)
            await door.gateway.stop_serving()
            await server.stop()
            assert await asyncio.gather(*reading) == [b"retry: 1000\n\nretry: 500\n\n"] * 2


class Flood:
    """An application that sends without end, and counts what was taken from it."""

    def __init__(self) -> None:
        self.taken = 0
        self.over = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(self._gone(receive))
        while not gone.done() and self.taken < FLOOD_BYTES:
            await send({"type": "http.response.body", "body": b"x" * 16 * 1024, "more_body": True})
            self.taken += 16 * 1024
        self.over.set()

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue


async def test_what_is_sent_to_a_client_that_reads_nothing_is_bounded_and_it_is_cut_off() -> None:
    flood = Flood()
    server = HttpServer(flood, "127.0.0.1:0", requests_max=16, stall_s=1)
    await server.start()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(30):
            await flood.over.wait()
    await server.stop()
    assert flood.taken < 2 * 1024 * 1024


async def test_a_door_that_closes_answers_who_came_before_and_leaves_new_ones_to_the_others() -> None:
    answered: Counter[str] = Counter()

    def named(name: str) -> Callable[..., Awaitable[None]]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            answered[name] += 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": name.encode()})

        return app

    leaving = HttpServer(named("leaving"), "127.0.0.1:0", requests_max=256)
    await leaving.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", leaving.port)
    staying = HttpServer(named("staying"), f"127.0.0.1:{leaving.port}", requests_max=256)
    await staying.start()
    await leaving.close_door()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"leaving" in await reader.readuntil(b"leaving")
    writer.close()

    async def ask() -> str:
        async with httpx.AsyncClient(base_url=leaving.url, timeout=20) as http:
            return (await http.get("/")).text

    asking = [asyncio.create_task(ask()) for _ in range(24)]
    await leaving.stop()
    assert await asyncio.gather(*asking) == ["staying"] * 24
    assert answered == {"leaving": 1, "staying": 24}
    await staying.stop()


async def test_gateway_processes_may_share_a_port(door: Door) -> None:
    async with served(door) as first:
        second = HttpServer(door.gateway.front, f"127.0.0.1:{first.port}", requests_max=16)
        await second.start()
        assert second.port == first.port
        await second.stop()
        async with client(first, http2=False) as http:
            assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("wanted", "files", "held"),
    [(6144, 20_000, (6144, 6144)), (6144, 6272, (6144, 6144)), (6144, 1024, (896, 672)), (6144, 100, (1, 1))],
)
def test_no_more_connections_are_taken_than_files_may_be_open(wanted: int, files: int, held: tuple[int, int]) -> None:
    assert open_files.fitting(wanted, files) == held


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), (":8080", ("0.0.0.0", 8080))],
)
def test_an_address_is_host_and_port(address: str, wanted: tuple[str, int]) -> None:
    assert split_address(address) == wanted


@pytest.mark.parametrize("address", ["8080", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_another_form_of_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(SettingsError, match=r"host:port"):
        split_address(address)
