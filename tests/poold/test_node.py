"""A node on a real bus with mock engines: claim, run, cancel, break, drain."""

from pathlib import Path

import pytest

from llorch_poold.mock_generation import text_of
from llorch_shared.wire.task import TaskState
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool

pytestmark = pytest.mark.nats


async def test_a_placed_task_runs_to_its_end(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        ready = await node.ready()
        task = await node.place(max_tokens=12, seed=7)
        await node.until_ended(task)
        assert [token["i"] for token in task.tokens] == list(range(12))
        assert task.text == text_of("Say something.", 7, 12)
        (started,), (end,) = task.data("started"), task.data("end")
        assert (started["device"], started["replica_id"], started["seed"]) == ("cpu", "mock-node-1-1", 7)
        assert (end["tokens_out"], end["finish_reason"], end["tokens_in"]) == (12, "length", 2)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.tokens_out, run.incarnation) == (TaskState.DONE, 12, ready.incarnation)
        assert run.request is None
