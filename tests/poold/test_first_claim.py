"""The claim of a first placement is its task's first record."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from llorch_poold.engine_call import EngineCall
from llorch_poold.node_context import INTERRUPTIBLE_DECODE
from llorch_poold.run_store import RunStore
from llorch_shared import streams, subjects
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.run import Placement, RunRecord
from llorch_shared.wire.task import TaskState
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, Placed, mock_pool

pytestmark = pytest.mark.nats

DEADLINE_S = 20


class LateClaim:
    """A claim that waits for `let`, as for a bus that does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()
        swap = RunStore.swap

        async def late(store: RunStore, record: RunRecord, expect_seq: int) -> int | None:
            if record.state is TaskState.RUNNING and not self.let.is_set():
                self.asked.set()
                await self.let.wait()
            return await swap(store, record, expect_seq)

        monkeypatch.setattr(RunStore, "swap", late)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    """Those that the engine has begun to answer."""
    begun: list[EngineCall] = []
    begin = EngineCall.on_begin

    def on_begin(call: EngineCall) -> None:
        begun.append(call)
        begin(call)

    monkeypatch.setattr(EngineCall, "on_begin", on_begin)
    return begun


class Asked(NamedTuple):
    """A node whose claim of a task waits for `let`."""

    node: NodeHarness
    replica: ReplicaRecord
    task: Placed
    let: asyncio.Event


@pytest.fixture
async def asked(nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asked]:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        replica = await node.ready()
        claim = LateClaim(monkeypatch)
        task = await node.place(max_tokens=3)
        await asyncio.wait_for(claim.asked.wait(), DEADLINE_S)
        yield Asked(node, replica, task, claim.let)


async def test_a_claim_makes_the_record_and_only_then_the_engine_is_called(
    asked: Asked, calls: list[EngineCall]
) -> None:
    node, _, task, let = asked
    assert await node.bus.last(streams.RUN, subjects.run(task.task_id)) is None
    assert not calls
    let.set()
    await node.until_ended(task)
    assert (len(task.tokens), len(calls)) == (3, 1)


async def test_a_placement_that_was_recorded_before_its_claim_is_claimed(asked: Asked) -> None:
    """The scheduler has heard of no claim for a moment."""
    node, _, task, let = asked
    seq = await node.record(task.run)
    let.set()
    await node.until_ended(task)
    assert len(task.tokens) == 3
    assert (await node.run_of(task.task_id))[1] == seq + 2, "the claim, and the end"


async def test_a_claim_that_is_lost_calls_no_engine_and_leaves_its_slot(asked: Asked, calls: list[EngineCall]) -> None:
    node, _, task, let = asked
    taken = msgspec.structs.replace(task.run, replica_id="mock-node-2-1")
    await node.record(taken)
    let.set()
    other = await node.until_ended(await node.place(max_tokens=3))
    assert (len(task.messages), len(other.tokens), len(calls)) == (0, 3, 1)
    assert (await node.run_of(task.task_id))[0] == taken


async def test_a_replica_that_drains_while_a_task_is_claimed_gives_it_back(
    asked: Asked, calls: list[EngineCall]
) -> None:
    node, replica, task, let = asked
    assert INTERRUPTIBLE_DECODE in replica.features
    (run,) = node.node.reconciler.replicas[replica.replica_id].slots.runs.values()
    run.hand_over()
    let.set()
    back = await node.until_preempted(task)
    assert (back.state, back.replica_id, back.preemptions) == (TaskState.PLACED, "", 1)
    assert not calls


async def test_a_claim_whose_engine_has_died_meanwhile_asks_nothing_of_the_next(
    asked: Asked, calls: list[EngineCall]
) -> None:
    """It names a life that is over: the scheduler takes the task back."""
    node, replica, task, let = asked
    os.kill(node.pid(), signal.SIGKILL)
    await node.ready(other_than=replica.incarnation)
    let.set()
    await node.until_ended(await node.place(max_tokens=3, ahead=False))
    assert len(calls) == 1
    assert not task.messages
    assert (await node.run_of(task.task_id))[0].incarnation == replica.incarnation


async def test_a_placement_that_is_stored_after_its_signal_begins_once(asked: Asked, calls: list[EngineCall]) -> None:
    """Whether it comes while the task is claimed, or after its end."""
    node, _, task, let = asked
    seq = await node.record(task.run)
    await node.store_placement(task.run, seq)
    let.set()
    await node.until_ended(task)
    await node.store_placement(task.run, seq)
    other = await node.until_ended(await node.place(max_tokens=3, ahead=False))
    assert (len(task.tokens), len(other.tokens), len(calls)) == (3, 3, 2)
    assert (await node.run_of(task.task_id))[1] == seq + 2


async def test_a_signal_that_is_heard_after_the_stored_placement_begins_nothing(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a node that slept both come at once."""
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(slots=2)]) as node:
        await node.ready()
        claim = LateClaim(monkeypatch)
        task = await node.place(max_tokens=3, ahead=False)
        await asyncio.wait_for(claim.asked.wait(), DEADLINE_S)
        node.bus.publish(subjects.placement_ahead("node-1"), msgspec.json.encode(Placement(run=task.run)))
        await node.bus.flush()
        await node.node_bus.flush()
        assert len(node.node._runs_of(task.task_id)) == 1
        claim.let.set()
        await node.until_ended(task)


async def test_a_signal_that_no_node_can_read_or_place_begins_nothing(
    nats_server: NatsServer, tmp_path: Path, calls: list[EngineCall]
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        node.bus.publish(subjects.placement_ahead("node-1"), b"no placement")
        await node.place(replica_id="mock-node-1-9", max_tokens=3)
        await node.until_ended(await node.place(max_tokens=3))
        assert len(calls) == 1


async def test_what_waits_for_a_slot_is_not_claimed_by_an_engine_that_has_died(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """It would have lost an attempt; so its replica is not ready, and it goes elsewhere."""
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)]) as node:
        before = await node.ready()
        running = await node.place(max_tokens=500)
        await node.until_tokens(running, 1)
        waiting = await node.place(max_tokens=3)
        await node.bus.flush()
        await node.node_bus.flush()
        os.kill(node.pid(), signal.SIGKILL)
        await node.ready(other_than=before.incarnation)
        await node.until_ended(await node.place(max_tokens=3))
        assert await node.bus.last(streams.RUN, subjects.run(waiting.task_id)) is None
