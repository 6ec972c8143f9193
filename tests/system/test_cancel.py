"""A cancel has a receipt: after the 204 the slot is free and no token follows, in whatever phase it came."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llorch_shared.wire.registry import PoolHealth
from llorch_shared.wire.task import TaskState
from support.client import Refusal, Transcript, task_request
from support.system import PATIENT, System, mock_pool

pytestmark = pytest.mark.system

DEADLINE_MS = 24 * 3_600_000
"""However slow the machine: deadlines are not the matter here."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    pool = mock_pool(replicas=1, slots=1, rate=20)
    async with System(tmp_path_factory.mktemp("slow"), pools=[pool], gateways=2, settings=PATIENT) as system:
        yield system


async def running(system: System, task_id: str, tokens: int = 3) -> Transcript:
    return await system.client().read(task_id, tokens_max=tokens)


def free_slots(health: PoolHealth | None) -> int:
    assert health is not None
    return sum(replica.slots_total - len(replica.active) for replica in health.replicas)


async def test_a_running_task_stops_and_its_slot_is_free(slow: System) -> None:
    accepted = await slow.client().submit(max_tokens=2000, deadline_ms=DEADLINE_MS)
    transcript = await running(slow, accepted.task_id)
    reader = asyncio.create_task(slow.client(2).read(accepted.task_id))
    await slow.client(1).read(accepted.task_id, into=transcript, tokens_max=8)
    assert await slow.client().cancel(accepted.task_id) == 204
    view = await slow.client(2).get(accepted.task_id)
    assert view.state is TaskState.CANCELLED
    whole = await reader
    assert whole.end is not None
    assert whole.end.finish_reason == "cancelled"
    assert whole.indices == list(range(len(whole.tokens)))
    after = await slow.client().read(accepted.task_id, into=transcript)
    assert len(after.tokens) <= view.tokens_out
    next_task = await slow.client().submit(max_tokens=1)
    done = await slow.client().read(next_task.task_id)
    assert done.end is not None


async def test_no_token_reaches_an_open_stream_after_the_receipt(slow: System) -> None:
    accepted = await slow.client().submit(max_tokens=2000, deadline_ms=DEADLINE_MS)
    seen: list[tuple[str, bool]] = []
    receipt = False

    async def watch() -> None:
        async with contextlib.aclosing(slow.client().events(accepted.task_id)) as events:
            async for event in events:
                seen.append((event.event, receipt))

    watcher = asyncio.create_task(watch())
    await running(slow, accepted.task_id)
    assert await slow.client().cancel(accepted.task_id) == 204
    receipt = True
    await asyncio.wait_for(watcher, 30)
    assert ("token", True) not in seen
    assert seen[-1][0] == "end"


async def test_a_queued_task_leaves_the_queue(slow: System) -> None:
    first = await slow.client().submit(max_tokens=2000, deadline_ms=DEADLINE_MS)
    await running(slow, first.task_id)
    queued = await slow.client().submit(max_tokens=5)
    assert (await slow.client(2).get(queued.task_id)).state is TaskState.QUEUED
    assert await slow.client(2).cancel(queued.task_id) == 204
    transcript = await slow.client().read(queued.task_id)
    assert transcript.end is not None
    assert (transcript.end.finish_reason, transcript.tokens) == ("cancelled", [])
    assert (await slow.client().get(queued.task_id)).state is TaskState.CANCELLED
    assert await slow.client().cancel(first.task_id) == 204


async def test_cancelling_twice_or_after_the_end_is_fine(slow: System) -> None:
    accepted = await slow.client().submit(max_tokens=2000, deadline_ms=DEADLINE_MS)
    await running(slow, accepted.task_id)
    answers = await asyncio.gather(*(client.cancel(accepted.task_id) for client in slow.clients * 2))
    assert set(answers) == {204}
    assert await slow.client().cancel(accepted.task_id) == 204
    done = await slow.client().submit(max_tokens=2)
    await slow.client().read(done.task_id)
    assert await slow.client().cancel(done.task_id) == 204
    view = await slow.client().get(done.task_id)
    assert (view.state, view.finish_reason) == (TaskState.DONE, "length")


async def test_an_unknown_task_cannot_be_cancelled(slow: System) -> None:
    with pytest.raises(Refusal) as refusal:
        await slow.client().cancel(str(uuid.uuid4()))
    assert refusal.value.status == 404
    assert refusal.value.body.code == "INVALID_PARAMS"


async def test_delete_is_cancel(slow: System) -> None:
    accepted = await slow.client().submit(max_tokens=2000, deadline_ms=DEADLINE_MS)
    await running(slow, accepted.task_id)
    response = await slow.client().http.delete(f"/v1/tasks/{accepted.task_id}")
    assert (response.status_code, response.content) == (204, b"")


async def test_the_slots_of_many_cancelled_tasks_are_free(tmp_path: Path) -> None:
    async with System(tmp_path, pools=[mock_pool(replicas=1, slots=16, rate=20)], settings=PATIENT) as system:
        requests = [task_request(max_tokens=2000, deadline_ms=DEADLINE_MS) for _ in range(32)]
        for request in requests:
            await system.client().submit(request)
        await running(system, requests[0].task_id)
        answers = await asyncio.gather(*(system.client().cancel(request.task_id) for request in requests))
        assert set(answers) == {204}

        async def all_free() -> bool:
            return free_slots(await system.health("mock")) == 16

        await system.until(all_free, "16 free slots", 30)
