"""The stored wish to cancel is read while the task is being claimed: what nobody told then is asked for again."""

import asyncio
from pathlib import Path

import pytest

from llorch_poold.cancellation import READ_TRIES_MAX
from llorch_poold.run_store import RunStore
from llorch_shared.bus.port import Message, Unanswered
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool

pytestmark = pytest.mark.nats


async def test_a_wish_that_could_not_be_read_before_the_claim_is_obeyed_after_it(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while nobody leads the stream: the question fails at once, the claim waits."""
    gave_up = asyncio.Event()
    asked = 0
    read, swap = RunStore.cancel_wish, RunStore.swap

    async def silent(store: RunStore, task_id: str) -> Message | None:
        nonlocal asked
        asked += 1
        if asked > READ_TRIES_MAX:
            return await read(store, task_id)
        if asked == READ_TRIES_MAX:
            gave_up.set()
        raise Unanswered("nobody leads the stream")

    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:

        async def late(store: RunStore, record: RunRecord, expect_seq: int) -> int | None:
            if record.state is TaskState.RUNNING:
                await gave_up.wait()
                await node.cancel(record.task_id, signal=False)
            return await swap(store, record, expect_seq)

        await node.ready()
        monkeypatch.setattr(RunStore, "cancel_wish", silent)
        monkeypatch.setattr(RunStore, "swap", late)
        task = await node.until_ended(await node.place(max_tokens=200))
        assert (await node.run_of(task.task_id))[0].state is TaskState.CANCELLED
        assert not task.tokens
