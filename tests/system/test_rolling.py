"""Everything is replaced one by one under load: no request is refused, no stream breaks, every task is done.

The clients are such as stand behind a load balancer: each request goes to a gateway that just said it is ready, and a
stream that ends with the word that its gateway stops goes on at another one with Last-Event-ID. Nothing else is tried
again: a refusal, a broken connection or a stream that ends without a word fails the test.
"""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest

from llorch_shared.settings import SchedulerSettings
from llorch_shared.wire.frames import split_events
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskState
from support.client import JSON, Transcript, task_request
from support.system import System, mock_pool

CLIENTS = 6
TOKENS, RATE = 20, 50.0
ENDLESS: Final[dict[str, Any]] = {
    "task_id": str(uuid.uuid4()),
    "max_tokens": 30_000,
    "ctx": 32_768,
    "deadline_ms": 3_600_000,
    "prompt": "go on and on",
}
"""One task that outlives every drain, and is cancelled in the end."""
ATTEMPTS_MAX = SchedulerSettings().attempts_max
GATEWAY_DRAIN_MS, NODE_DRAIN_MS = 3_000, 500
FAREWELL = b"retry: 500\n\n"

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


class Balanced:
    """Clients behind a load balancer, and what they saw."""

    def __init__(self, system: System, http: aiohttp.ClientSession) -> None:
        self.system = system
        self.http = http
        self.ended: list[Transcript] = []
        self.read: dict[str, Transcript] = {}
        """Every task that was begun."""
        self._turn = itertools.cycle(system.gateways)
        self._progress = asyncio.Condition()

    async def gateway(self) -> str:
        while True:
            for _ in self.system.gateways:
                url = self.system.url(next(self._turn))
                try:
                    async with self.http.get(f"{url}/readyz") as answer:
                        if answer.status == 200:
                            return url
                except aiohttp.ClientConnectorError:
                    continue
            await asyncio.sleep(0.02)

    async def client(self, number: int) -> None:
        """One task after the other, until cancelled."""
        for turn in itertools.count():
            transcript = await self.task(max_tokens=TOKENS, prompt=f"client {number}, task {turn}")
            assert transcript.end is not None, f"{transcript.task_id}: {transcript.error}"
            assert len(transcript.tokens) == TOKENS
            async with self._progress:
                self.ended.append(transcript)
                self._progress.notify_all()

    async def task(self, **changes: Any) -> Transcript:
        """Submit one, and read it to its end."""
        request = task_request(**changes)
        body = msgspec.json.encode(request)
        async with self.http.post(f"{await self.gateway()}/v1/tasks", data=body, headers=JSON) as answer:
            assert answer.status == 202, f"{answer.status}: {await answer.text()}"
        transcript = self.read[request.task_id] = Transcript(request.task_id)
        while not transcript.finished:
            await self._read(transcript)
        transcript.check()
        return transcript

    async def endless_streams(self) -> bool:
        transcript = self.read.get(ENDLESS["task_id"])
        return transcript is not None and bool(transcript.tokens)

    async def _read(self, transcript: Transcript) -> None:
        """One connection, to the end of the stream or the word that its gateway stops."""
        transcript.connections += 1
        url = f"{await self.gateway()}/v1/tasks/{transcript.task_id}/stream"
        headers = {"last-event-id": transcript.cursor} if transcript.cursor else {}
        async with self.http.get(url, headers=headers) as answer:
            assert answer.status == 200, f"{answer.status}: {await answer.text()}"
            body, last = b"", b""
            async for chunk in answer.content.iter_any():
                *whole, body = (body + chunk).split(b"\n\n")
                for event in split_events(b"\n\n".join(whole)):
                    if event.event != "started" or not transcript.started:
                        transcript.add(event)
                last = whole[-1] + b"\n\n" if whole else last
        assert transcript.finished or last == FAREWELL, f"{transcript.task_id}: ended with {last!r}"

    async def more(self, tasks: int) -> None:
        """Wait until so many more tasks have ended."""
        wanted = len(self.ended) + tasks
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.ended) >= wanted)


@asynccontextmanager
async def under_load(system: System) -> AsyncIterator[Balanced]:
    """While the block runs; what a client fails with fails the block, and at the end every task is looked up."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        load = Balanced(system, http)
        async with asyncio.timeout(200), asyncio.TaskGroup() as group:
            clients = [group.create_task(load.client(number)) for number in range(CLIENTS)]
            await load.more(CLIENTS)
            yield load
            await load.more(CLIENTS)
            for client in clients:
                client.cancel()
        for transcript in load.ended:
            view = await system.client().get(transcript.task_id)
            assert (view.state, view.tokens_out) == (TaskState.DONE, len(transcript.tokens))


async def rolled(system: System, name: str) -> None:
    """SIGTERM, the orderly end, start, ready."""
    process = system.processes[name]
    process.terminate()
    assert await asyncio.to_thread(process.finish, 30) == 0, process.tail()
    await system.restart(name)
    if name.startswith("poold-"):
        for pool in system.pools:
            await system.replicas_ready(pool.id, pool.replicas * 2)


async def reloaded(system: System, pool: PoolSpec, version: str) -> None:
    """The pool's engines are replaced by those of another version."""
    await system.put_pool(pool)

    async def all_new() -> bool:
        health = await system.health(pool.id)
        ready = [replica for replica in health.replicas if replica.state == "ready"] if health else []
        return len(ready) == 2 and {replica.engine_version for replica in ready} == {version}

    await system.until(all_new, f"two replicas of {version}", 60)


async def test_every_service_is_replaced_and_an_engine_reloaded_and_rolled_back_without_an_error(
    tmp_path: Path,
) -> None:
    old = mock_pool(replicas=1, slots=16, rate=RATE, ctx=32_768, env={"LLORCH_MOCK_VERSION": "mock-1"})
    new = mock_pool(replicas=1, slots=16, rate=RATE, ctx=32_768, env={"LLORCH_MOCK_VERSION": "mock-2"})
    settings = {"poold": {"drain_timeout_ms": NODE_DRAIN_MS}}
    drain = {"LLORCH_GATEWAY_DRAIN_MS": str(GATEWAY_DRAIN_MS)}
    async with System(
        tmp_path, pools=[old], gateways=2, schedulers=2, nodes=2, settings=settings, environment=drain
    ) as system:
        async with under_load(system) as load:
            endless = asyncio.create_task(load.task(**ENDLESS))
            await system.until(load.endless_streams, "the endless stream", 30)
            for name in list(system.processes):
                await rolled(system, name)
                await load.more(CLIENTS)
            await reloaded(system, new, "mock-2")
            await load.more(CLIENTS)
            await reloaded(system, old, "mock-1")
            assert await system.client().cancel(ENDLESS["task_id"]) in (202, 204)
        transcript = await endless
        assert transcript.end is not None
        assert transcript.end.finish_reason == "cancelled"
        assert transcript.connections >= 2, "its gateways stopped"
        attempts = [metrics.attempt or 1 for metrics in transcript.metrics]
        assert max(attempts) > ATTEMPTS_MAX, "orderly ends of engines do not count as lost attempts"
