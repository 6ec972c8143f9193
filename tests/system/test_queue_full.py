"""A full queue refuses exactly, over HTTP and on the bus, and has room again after a placement."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Full
from llorch_shared.wire.task import Priority, TaskRequest, TaskState
from support.client import Refusal, task_request
from support.system import PATIENT, System, mock_pool

pytestmark = pytest.mark.system

CAPACITY = 5


@pytest.fixture
async def small(tmp_path: Path):  # type: ignore[no-untyped-def]
    """One slot, busy with a long task, and a full queue behind it."""
    pool = mock_pool(replicas=1, slots=1, rate=50, capacity=CAPACITY)
    async with System(tmp_path, pools=[pool], settings=PATIENT) as system:
        yield system


async def fill(system: System) -> tuple[str, list[TaskRequest]]:
    running = await system.client().submit(max_tokens=2000)
    await system.client().read(running.task_id, tokens_max=1)
    waiting = [task_request(max_tokens=2) for _ in range(CAPACITY)]
    for request in waiting:
        await system.client().submit(request)
    return running.task_id, waiting


async def test_http_is_refused_with_when_to_come_back(small: System) -> None:
    running, waiting = await fill(small)
    extra = task_request(max_tokens=2)
    with pytest.raises(Refusal) as caught:
        await small.client().submit(extra)
    refusal = caught.value
    assert refusal.status == 429
    assert (refusal.body.code, refusal.body.policy_label) == ("ADMISSION_REJECT", "reject")
    assert int(refusal.headers["retry-after"]) >= 1
    assert int(refusal.headers["x-backoff-ms"]) == refusal.body.retry_after_ms
    with pytest.raises(Refusal) as unknown:
        await small.client().get(extra.task_id)
    assert unknown.value.status == 404, "nothing is half accepted"
    again = await small.client().submit(waiting[0])
    assert again.task_id == waiting[0].task_id, "a task that is in the queue is not refused"
    assert await small.client().cancel(running) == 204
    ends = await asyncio.gather(*(small.client().read(request.task_id) for request in waiting))
    assert all(transcript.end is not None for transcript in ends)
    late = await small.client().submit(extra)
    assert (await small.client().read(late.task_id)).end is not None


async def test_a_bus_publish_is_refused_by_the_server(small: System) -> None:
    running, _ = await fill(small)
    extra = task_request(max_tokens=2)
    subject = subjects.admission("mock", Priority.INTERACTIVE, "default")
    with pytest.raises(Full):
        await small.bus.store(subject, msgspec.json.encode(extra), msg_id=extra.task_id)
    state = await small.bus.stream_state(streams.admission_stream("mock", Priority.INTERACTIVE))
    assert state.messages == CAPACITY
    assert await small.client().cancel(running) == 204

    async def has_room() -> bool:
        return (await small.bus.stream_state("ADM_mock_interactive")).messages < CAPACITY

    await small.until(has_room, "room in the queue", 30)
    await small.bus.store(subject, msgspec.json.encode(extra), msg_id=extra.task_id)
    transcript = await small.client().read(extra.task_id)
    assert transcript.end is not None


async def test_a_storm_is_admitted_to_the_last_place_and_not_beyond(small: System) -> None:
    running = await small.client().submit(max_tokens=2000)
    await small.client().read(running.task_id, tokens_max=1)

    async def attempt() -> str | None:
        request = task_request(max_tokens=1)
        try:
            await small.client().submit(request)
        except Refusal as refusal:
            statuses.add(refusal.status)
            return None
        return request.task_id

    statuses: set[int] = set()
    accepted = [task for task in await asyncio.gather(*(attempt() for _ in range(60))) if task]
    assert len(accepted) == CAPACITY
    assert statuses == {429}
    assert await small.client().cancel(running.task_id) == 204
    for task in accepted:
        await small.client().read(task)
        assert (await small.client().get(task)).state is TaskState.DONE
