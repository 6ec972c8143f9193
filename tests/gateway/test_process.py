"""The gateway as a process on a real nats-server: refusing to start, stopping, dying, and the bus dying under it."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus import nats
from llorch_shared.bus.port import Bus
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.task import TaskState
from support.client import StreamCut, TaskClient, Transcript, task_request
from support.gateways import STARTED, end, pool_spec, replica, run_record, tokens
from support.nats_server import NatsServer, free_port
from support.processes import ServiceProcess

pytestmark = pytest.mark.nats
NO_DRAIN = {"LLORCH_GATEWAY_DRAIN_MS": "0"}


class Node:
    """A node's side of the bus: registers a replica, publishes frames and records."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def prepare(self) -> None:
        spec, record = pool_spec(), replica()
        await self.bus.ensure(streams.base())
        await self.bus.ensure(streams.admission(spec))
        await self.bus.store(subjects.spec(subjects.pool_key(spec.id)), msgspec.json.encode(spec))
        key = subjects.replica_key(record.node_id, record.replica_id)
        await self.bus.store(subjects.registry(key), msgspec.json.encode(record))

    async def lane_of(self, task: str) -> str:
        for message in await self.bus.replay("ADM_p1_interactive", ">"):
            if message.headers["Nats-Msg-Id"] == task:
                return message.headers[subjects.LANE_HEADER]
        raise AssertionError(f"{task} is in no queue")

    async def publish(self, lane: str, task: str, *data: bytes) -> None:
        for one in data:
            self.bus.publish(subjects.tokens(lane, task), one)
        await self.bus.flush()

    async def record(self, task: str, state: TaskState, *, lane: str, tokens_out: int = 0) -> None:
        value = run_record(task, state, lane=lane, tokens_out=tokens_out, finish_reason="stop")
        await self.bus.store(subjects.run(task), msgspec.json.encode(value))


@pytest.fixture
async def node(nats_server: NatsServer) -> AsyncIterator[Node]:
    bus = await nats.connect(NatsSettings(url=nats_server.url), name="node")
    one = Node(bus)
    await one.prepare()
    yield one
    await bus.close()


@contextlib.asynccontextmanager
async def running(name: str, server: NatsServer, folder: Path) -> AsyncIterator[tuple[ServiceProcess, TaskClient]]:
    address = f"127.0.0.1:{free_port()}"
    process = ServiceProcess(
        name, ["llorch_gateway"], folder=folder, environment={"NATS_URL": server.url, "BIND_ADDR": address, **NO_DRAIN}
    )
    process.start()
    try:
        async with TaskClient(f"http://{address}") as client:
            await ready(client)
            yield process, client
    finally:
        process.stop()


async def ready(client: TaskClient, status: int = 200) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.http.get("/readyz")).status_code == status:
                    return
            await asyncio.sleep(0.02)


async def read_on(client: TaskClient, transcript: Transcript) -> None:
    transcript.connections += 1
    async for event in client.events(transcript.task_id, after=transcript.cursor):
        transcript.add(event)


def test_a_bind_beyond_loopback_without_a_token_refuses_to_start(tmp_path: Path) -> None:
    process = ServiceProcess("gateway", ["llorch_gateway"], folder=tmp_path, environment={"BIND_ADDR": "0.0.0.0:0"})
    process.start()
    assert process._popen is not None
    assert process._popen.wait(60) == 78
    said = process.log_path.read_text()
    assert "AUTH_TOKEN" in said
    assert "40301" in said
    assert len(said.splitlines()) == 1


async def test_a_stop_ends_streams_with_a_word_and_the_process_within_seconds(
    nats_server: NatsServer, node: Node, tmp_path: Path
) -> None:
    async with running("gateway", nats_server, tmp_path) as (process, client):
        request = task_request()
        await client.submit(request)
        async with client.http.stream("GET", f"/v1/tasks/{request.task_id}/stream") as reply:
            pieces = reply.aiter_raw()
            assert await anext(pieces) == b"retry: 1000\n\n"
            process.terminate()
            assert [piece async for piece in pieces] == [b"retry: 500\n\n"]
        assert await asyncio.to_thread(process.stop, 20) == 0


async def test_a_killed_gateway_costs_a_reader_no_token(nats_server: NatsServer, node: Node, tmp_path: Path) -> None:
    async with (
        running("one", nats_server, tmp_path) as (first, client),
        running("two", nats_server, tmp_path) as (_, other),
    ):
        request = task_request()
        await client.submit(request)
        task, lane = request.task_id, await node.lane_of(request.task_id)
        await node.record(task, TaskState.RUNNING, lane=lane)
        transcript = Transcript(task)
        reading = asyncio.create_task(read_on(client, transcript))
        await node.publish(lane, task, STARTED, tokens(0, 4))
        async with asyncio.timeout(15):
            while len(transcript.tokens) < 5:
                await asyncio.sleep(0.005)
        await asyncio.to_thread(first.kill9)
        with pytest.raises((StreamCut, httpx.TransportError)):
            await reading
        await node.publish(lane, task, tokens(5, 7))
        reading = asyncio.create_task(read_on(other, transcript))
        async with asyncio.timeout(15):
            while len(transcript.tokens) < 8:
                await asyncio.sleep(0.005)
        await node.publish(lane, task, tokens(8, 8), end(9))
        await reading
        transcript.check()
        assert len(transcript.tokens) == 9
        again = await other.submit(request)
        assert again.task_id == task


async def test_a_killed_bus_costs_a_reader_no_token_and_readiness_tells_of_it(
    nats_server: NatsServer, node: Node, tmp_path: Path
) -> None:
    async with running("gateway", nats_server, tmp_path) as (_, client):
        request = task_request()
        await client.submit(request)
        task, lane = request.task_id, await node.lane_of(request.task_id)
        transcript = Transcript(task)
        reading = asyncio.create_task(read_on(client, transcript))
        await node.publish(lane, task, STARTED, tokens(0, 4))
        async with asyncio.timeout(15):
            while len(transcript.tokens) < 5:
                await asyncio.sleep(0.005)
        back = asyncio.Event()

        async def stands_again() -> None:
            back.set()

        node.bus.on_reconnect(stands_again)
        await asyncio.to_thread(nats_server.kill)
        await ready(client, 503)
        await asyncio.to_thread(nats_server.start)
        await ready(client)
        async with asyncio.timeout(20):
            await back.wait()
        await node.publish(lane, task, STARTED, tokens(0, 4), tokens(5, 6), end(7))
        async with asyncio.timeout(20):
            await reading
        transcript.check()
        assert (len(transcript.tokens), transcript.connections) == (7, 1)
        await client.submit(request)
        assert len(await node.bus.replay("ADM_p1_interactive", ">")) == 1


async def test_a_gateway_that_starts_before_the_bus_says_so_and_serves_once_it_is_there(
    nats_server: NatsServer, node: Node, tmp_path: Path
) -> None:
    await asyncio.to_thread(nats_server.stop)
    address = f"127.0.0.1:{free_port()}"
    process = ServiceProcess(
        "early",
        ["llorch_gateway"],
        folder=tmp_path,
        environment={"NATS_URL": nats_server.url, "BIND_ADDR": address, **NO_DRAIN},
    )
    process.start()
    try:
        async with TaskClient(f"http://{address}") as client:
            await ready(client, 503)
            assert (await client.http.get("/readyz")).json()["reasons"] == ["the bus is not connected"]
            assert (await client.http.get("/healthz")).status_code == 200
            early = await client.http.post("/v1/tasks", content=b"{}")
            assert (early.status_code, early.json()["code"]) == (503, "POOL_UNAVAILABLE")
            assert early.headers["retry-after"] == "1"
            await asyncio.to_thread(nats_server.start)
            await ready(client)
            await client.submit()
    finally:
        assert process.stop() == 0


def test_a_gateway_that_waits_for_the_bus_stops_when_told(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    environment = {"NATS_URL": f"nats://127.0.0.1:{free_port()}", "BIND_ADDR": address}
    process = ServiceProcess("alone", ["llorch_gateway"], folder=tmp_path, environment=environment)
    process.start()
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.stop(20) == 0
