"""The same task_id, however often and wherever it is sent: one admission, one result, one charge."""

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
import nats
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import NoStream, Unanswered
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.task import TaskRequest, TaskState
from support.client import task_request
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TOKENS = 40
TASKS = 4
WINDOW_S = 0.1
"""The shortest the server takes."""
QUEUE = "ADM_mock_batch"


async def shorten_window(system: System) -> None:
    """Make the queue's dedupe window as short as it can be."""
    connection = await nats.connect(system.nats.url)
    try:
        told = await connection.request(f"$JS.API.STREAM.INFO.{QUEUE}", b"", timeout=20)
        config = msgspec.json.decode(told.data)["config"] | {"duplicate_window": int(WINDOW_S * 1e9)}
        answer = await connection.request(f"$JS.API.STREAM.UPDATE.{QUEUE}", msgspec.json.encode(config), timeout=20)
        assert "error" not in msgspec.json.decode(answer.data), answer.data
    finally:
        await connection.close()


async def send_everywhere(system: System, requests: list[TaskRequest]) -> None:
    """Over both gateways and twice over NATS, with and without a message id, all at once."""

    async def on_nats(request: TaskRequest, msg_id: str) -> None:
        while True:
            try:
                data = msgspec.json.encode(request)
                await system.bus.store("llorch.adm.mock.batch.default", data, msg_id=msg_id)
                return
            except (NoStream, Unanswered):
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as tasks:
        for request in requests:
            tasks.create_task(system.client(1).submit(request))
            tasks.create_task(system.client(2).submit(request))
            tasks.create_task(on_nats(request, request.task_id))
            tasks.create_task(on_nats(request, ""))


async def until_empty(system: System) -> None:
    async def empty() -> bool:
        return (await system.bus.stream_state(QUEUE)).messages == 0

    await system.until(empty, "an empty queue", 20)


async def test_a_task_sent_again_by_every_door_beyond_the_window_and_a_restart_runs_once(tmp_path: Path) -> None:
    async with System(tmp_path, gateways=2, pools=[mock_pool(replicas=2, slots=1, rate=100)]) as system:
        await shorten_window(system)
        requests = [task_request(max_tokens=TOKENS, priority="batch", prompt=f"{n}") for n in range(TASKS)]
        await send_everywhere(system, requests)
        await asyncio.sleep(2 * WINDOW_S)
        await send_everywhere(system, requests)
        for request in requests:
            transcript = await system.client(1).read(request.task_id)
            transcript.check()
            assert len(transcript.tokens) == TOKENS
        await asyncio.sleep(2 * WINDOW_S)
        await send_everywhere(system, requests)
        await until_empty(system)
        system.kill9("nats")
        await system.restart("nats")
        await send_everywhere(system, requests)
        await until_empty(system)
        for request in requests:
            view = await system.client(2).get(request.task_id)
            assert (view.state, view.tokens_out, view.attempt) == (TaskState.DONE, TOKENS, 1)
        assert await system.metric("poold-1", "tasks_started_total") == TASKS
        assert await system.metric("poold-1", "tokens_out_total") == TASKS * TOKENS
        await audited_once(system, {request.task_id for request in requests})


async def audited_once(system: System, tasks: set[str]) -> None:
    """Each was admitted, placed, run and done once; a task that was sent last is on the record before it is looked."""
    mark = task_request(max_tokens=1, priority="batch")
    await system.client(1).submit(mark)
    found: Counter[tuple[str, str]] = Counter()

    async def marked() -> bool:
        found.clear()
        for message in await system.bus.replay(streams.AUD, subjects.ALL_AUDITS):
            record = AUDIT_DECODER.decode(message.data)
            found[record.task_id, record.event] += 1
        return bool(found[mark.task_id, "done"] and found[mark.task_id, "admitted"])

    await system.until(marked, "the audited end of the mark", 20)
    expected = {(task, event): 1 for task in tasks for event in ("admitted", "placed", "running", "done")}
    assert {key: count for key, count in found.items() if key[0] in tasks} == expected
