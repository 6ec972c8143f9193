"""kill -9 of each process while 50 tasks wait and run: every accepted task ends exactly once, no stream shows a gap."""

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from llorch_shared import streams
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.task import TaskState
from support.client import Transcript, follow, task_request
from support.system import System, mock_pool

TASKS = 50
TOKENS = 60
ENDS = {"done", "failed", "cancelled", "expired", "dropped"}

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.mark.parametrize("victim", ["gateway-1", "scheduler-1", "poold-1", "provisioner-1", "engine", "nats"])
async def test_fifty_tasks_end_once_when_a_process_is_killed(victim: str, tmp_path: Path) -> None:
    pool = mock_pool(replicas=2, slots=4, rate=100)
    async with System(tmp_path, pools=[pool], gateways=2) as system:
        requests = [task_request(max_tokens=TOKENS, prompt=f"task {number}") for number in range(TASKS)]
        for number, request in enumerate(requests):
            await system.client(1 + number % 2).submit(request)
        readers = [
            asyncio.create_task(follow(turned(system, number), request.task_id, deadline_s=90))
            for number, request in enumerate(requests)
        ]
        await tasks_started(system, 6)
        if victim == "engine":
            system.kill9_engine()
        else:
            system.kill9(victim)
            await system.restart(victim)
        transcripts = await asyncio.gather(*readers)
        for transcript in transcripts:
            ended_whole(transcript)
        texts = {transcript.text for transcript in transcripts}
        assert len(texts) == TASKS, "each prompt has its own text; a mix-up of streams would repeat one"
        for request in requests:
            view = await system.client(2).get(request.task_id)
            assert (view.state, view.tokens_out) == (TaskState.DONE, TOKENS)
        await audited_once(system, {request.task_id for request in requests})


async def test_submitting_again_after_a_crash_gives_the_same_task(tmp_path: Path) -> None:
    async with System(tmp_path, gateways=2) as system:
        request = task_request(max_tokens=5)
        first = await system.client(1).submit(request)
        system.kill9("gateway-1")
        again = await system.client(2).submit(request)
        assert again.task_id == first.task_id
        ended_whole(await follow([system.client(2)], request.task_id), tokens=5)
        third = await system.client(2).submit(request)
        assert third.task_id == first.task_id
        assert (await system.client(2).get(request.task_id)).state is TaskState.DONE
        await audited_once(system, {request.task_id})


async def test_a_stream_read_from_two_gateways_is_the_same(tmp_path: Path) -> None:
    async with System(tmp_path, gateways=2, pools=[mock_pool(rate=200)]) as system:
        accepted = await system.client(1).submit(max_tokens=100)
        both = await asyncio.gather(*(client.read(accepted.task_id) for client in system.clients))
        late = await system.client(2).read(accepted.task_id)
        assert both[0].text == both[1].text == late.text
        assert late.indices == list(range(100))


def turned(system: System, number: int) -> list:  # type: ignore[type-arg]
    """The gateways, beginning with the one that admitted task `number`."""
    first = number % len(system.clients)
    return system.clients[first:] + system.clients[:first]


def ended_whole(transcript: Transcript, tokens: int = TOKENS) -> None:
    transcript.check()
    assert transcript.error is None, f"{transcript.task_id}: {transcript.error}"
    assert transcript.end is not None
    assert transcript.end.finish_reason == "length"
    assert len(transcript.tokens) == tokens


async def tasks_started(system: System, count: int) -> None:
    async def enough() -> bool:
        return await system.metric("poold-1", "tasks_started_total") >= count

    await system.until(enough, f"{count} started tasks", 30)


async def audited_once(system: System, tasks: set[str]) -> None:
    """The audit stream names exactly one end for each task."""
    ends: Counter[str] = Counter()

    async def complete() -> bool:
        ends.clear()
        for message in await system.bus.replay(streams.AUD, "llorch.aud.>"):
            record = AUDIT_DECODER.decode(message.data)
            if record.event in ENDS:
                ends[record.task_id] += 1
        return tasks <= set(ends)

    await system.until(complete, "an audited end of every task", 30)
    assert {task: ends[task] for task in tasks if ends[task] != 1} == {}
    assert msgspec.json.encode(sorted(tasks)) == msgspec.json.encode(sorted(ends))
