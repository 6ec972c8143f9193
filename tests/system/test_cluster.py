"""Three servers that keep every stream together: the one that leads is killed under load, and comes back."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import BusError
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.run import RUN_DECODER
from llorch_shared.wire.task import Priority, TaskRequest, TaskState
from support.client import Refusal, Transcript, follow, task_request
from support.nats_server import NatsCluster
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

TOKENS = 30
BEFORE, MEANWHILE = 8, 24
ENDS = {"done", "failed", "cancelled", "expired", "dropped"}


async def test_the_leader_of_the_streams_is_killed_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    cluster = NatsCluster(tmp_path / "cluster")
    pool = mock_pool(replicas=1, slots=8, rate=40)
    async with System(tmp_path, pools=[pool], gateways=2, nodes=2, cluster=cluster) as system:
        requests = [task_request(max_tokens=TOKENS, prompt=f"task {number}") for number in range(BEFORE + MEANWHILE)]
        for number, request in enumerate(requests[:BEFORE]):
            await admitted(system, number, request)
        reading = [asyncio.create_task(read(system, each)) for each in requests[:BEFORE]]
        await asyncio.gather(*(system.client().read(each.task_id, tokens_max=1) for each in requests[:BEFORE]))

        queue = streams.admission_stream(pool.id, Priority.INTERACTIVE)
        leader = await leader_of(system, queue)
        system.kill9(leader)
        await asyncio.gather(*(admitted(system, number, each) for number, each in enumerate(requests[BEFORE:])))
        reading += [asyncio.create_task(read(system, each)) for each in requests[BEFORE:]]
        await system.restart(leader)

        for transcript in await asyncio.gather(*reading):
            transcript.check()
            assert transcript.error is None
            assert len(transcript.tokens) == TOKENS
        await until(system, "the server that was away to have everything again", lambda: caught_up(system, queue))
        await until(system, "every task to be done", lambda: all_done(system, len(requests)))
        await until(system, "an audited end of every task", lambda: audited(system, len(requests)))
        assert set((await ends(system)).values()) == {1}


async def admitted(system: System, number: int, request: TaskRequest) -> None:
    """As a client does it: the same task again, at another door, until it is accepted. Every third by the bus."""
    for turn in range(200):
        try:
            if number % 3:
                await system.clients[(number + turn) % 2].submit(request)
            else:
                subject = subjects.admission("mock", request.priority, "default")
                data = msgspec.json.encode(request)
                await system.bus.store(subject, data, msg_id=request.task_id, timeout_s=2)
        except (BusError, httpx.TransportError):
            await asyncio.sleep(0.2)
        except Refusal as refusal:
            if refusal.status != 503:
                raise
            await asyncio.sleep(0.2)
        else:
            return
    raise AssertionError(f"task {number} was never accepted")


async def read(system: System, request: TaskRequest) -> Transcript:
    return await follow(system.clients, request.task_id, deadline_s=120)


async def info(system: System, stream: str) -> dict:  # type: ignore[type-arg]
    message = await system.bus.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout_s=5)
    cluster: dict = msgspec.json.decode(message.data).get("cluster", {})  # type: ignore[type-arg]
    return cluster


async def leader_of(system: System, stream: str) -> str:
    return str((await info(system, stream))["leader"])


async def caught_up(system: System, queue: str) -> bool:
    for stream in (streams.RUN, streams.TOK, streams.REG, streams.AUD, streams.PLC, queue):
        try:
            cluster = await info(system, stream)
        except BusError:
            return False
        others = cluster.get("replicas", [])
        if not cluster.get("leader") or len(others) != 2 or not all(each.get("current") for each in others):
            return False
    return True


async def all_done(system: System, count: int) -> bool:
    """A copy answers, which may lag behind the leader for a moment."""
    records = [RUN_DECODER.decode(each.data) for each in await system.bus.replay(streams.RUN, subjects.ALL_RUNS)]
    return len(records) == count and all(record.state is TaskState.DONE for record in records)


async def ends(system: System) -> Counter[str]:
    records = [AUDIT_DECODER.decode(each.data) for each in await system.bus.replay(streams.AUD, subjects.ALL_AUDITS)]
    return Counter(record.task_id for record in records if record.event in ENDS)


async def audited(system: System, count: int) -> bool:
    return len(await ends(system)) == count


async def until(system: System, what: str, question: Callable[[], Awaitable[bool]]) -> None:
    await system.until(question, what, 60)
