"""A node on a real bus gives a pool another model, or lets it rest, while tasks run."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold import bring_up
from llorch_poold.core.reconcile import Desired
from llorch_poold.preparation import NoRoom, Prepared
from llorch_shared import streams, subjects
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.desired import RELOAD_DECODER, PoolDrain, PoolReload, ReloadState
from llorch_shared.wire.registry import ReplicaState
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec
from llorch_shared.wire.task import TaskState
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool

FIRST, SECOND = "mock-node-1-1", "mock-node-1-1-b"

pytestmark = pytest.mark.nats


async def asked(node: NodeHarness, model: str, **changes: Any) -> PoolReload:
    reload = PoolReload(
        id=f"to {model}",
        pool_id="mock",
        new_model_ref=model,
        old_model_ref="mock:words",
        state=ReloadState.UNDERWAY,
        requested_ms=now_ms(),
        identity="token:abc123",
        channel="http",
        **changes,
    )
    await node.bus.store(subjects.spec(subjects.reload_key("mock")), msgspec.json.encode(reload))
    return reload


async def outcome(node: NodeHarness) -> PoolReload:
    """Once it is decided, and audited with who asked."""
    reload = None
    async for reload in node.kept(subjects.reload_key("mock"), RELOAD_DECODER):
        if reload.state is not ReloadState.UNDERWAY:
            break
    assert reload is not None
    await node.until_audited("mock", "pool_changed")
    (record,) = await node.audits("mock")
    assert (record.identity, record.channel) == ("token:abc123", "http")
    assert record.detail["command"] == f"reload {reload.state}"
    return reload


async def spec(node: NodeHarness) -> PoolSpec:
    message = await node.bus.last(streams.SPEC, subjects.spec(subjects.pool_key("mock")))
    assert message is not None
    return POOL_DECODER.decode(message.data)


async def test_a_pool_changes_over_to_a_model_that_is_ready_while_a_task_runs_to_its_end_on_the_old_one(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)], drain_timeout_ms=100) as node:
        await node.ready()
        task = await node.place(max_tokens=60)
        await node.until_tokens(task, 2)
        await asked(node, "mock:other")
        assert (await outcome(node)).state is ReloadState.DONE
        assert (await node.ready(SECOND)).model_ref == "mock:other"
        held = [each.state for each in node.history if each.replica_id == SECOND and each.standby is not None]
        assert held, "it held back until the reload was decided"
        assert ReplicaState.READY not in held
        assert (await spec(node)).model == "mock:other"
        await node.until_ended(task)
        assert task.data("end")[0]["tokens_out"] == 60, "longer than a drain is given otherwise"
        await node.until("the old replica to go", lambda: FIRST not in node.node.reconciler.replicas)
        on_new = await node.place(max_tokens=3, replica_id=SECOND)
        await node.until_ended(on_new)


async def test_a_model_that_cannot_be_loaded_leaves_the_old_one_serving(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        before = await node.ready()
        await asked(node, "mock:missing")
        ended = await outcome(node)
        assert ended.state is ReloadState.FAILED
        assert "mock:missing cannot be loaded" in ended.last_error
        await node.until("the held replica to go", lambda: SECOND not in node.node.reconciler.replicas)
        now = await node.ready()
        assert (now.incarnation, now.model_ref) == (before.incarnation, "mock:words")
        assert (await spec(node)).model == "mock:words"


@pytest.mark.parametrize(("model", "serving"), [("mock:other", "mock:other"), ("mock:missing", "mock:words")])
async def test_without_memory_for_both_models_the_old_one_makes_way_and_comes_back_if_need_be(
    model: str, serving: str, nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:

        async def cramped(_provisioning: Any, _desired: Desired, *_: Any) -> Prepared:
            if any(each._life is not None for each in node.node.reconciler.replicas.values()):
                raise NoRoom("the device mask has room for one", fits_alone=True)
            return Prepared()

        monkeypatch.setattr(bring_up, "prepare", cramped)
        before = await node.ready()
        await asked(node, model)
        ended = await outcome(node)
        assert ended.state is (ReloadState.DONE if model == serving else ReloadState.FAILED)
        record = await node.ready(other_than=before.incarnation)
        assert (record.model_ref, record.standby) == (serving, None)


async def test_a_drained_pool_takes_nothing_lets_tasks_end_until_its_deadline_and_returns(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    key = subjects.spec(subjects.drain_key("mock"))

    async def drained(deadline_ms: int) -> None:
        drain = PoolDrain(pool_id="mock", requested_ms=now_ms(), deadline_ms=deadline_ms)
        await node.bus.store(key, msgspec.json.encode(drain))

    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)], drain_timeout_ms=100) as node:
        before = await node.ready()
        pid = node.pid()
        task = await node.place(max_tokens=1_000)
        await node.until_tokens(task, 2)
        await drained(600_000)
        await node.state(ReplicaState.DRAINING)
        seen = len(task.tokens)
        await node.until_tokens(task, seen + 5)
        await drained(0)
        await node.until("no replica", lambda: not node.node.reconciler.replicas)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.replica_id, run.preemptions) == (TaskState.PLACED, "", 1), "it made way"
        assert not Path(f"/proc/{pid}").exists()
        await node.bus.store(key, b"", headers={"KV-Operation": "DEL"})
        again = await node.ready(other_than=before.incarnation)

        task = await node.place(max_tokens=1_000)
        await node.until_tokens(task, 2)
        await drained(600_000)
        await node.state(ReplicaState.DRAINING)
        await node.bus.store(key, b"", headers={"KV-Operation": "DEL"})
        await node.ready(other_than=again.incarnation)
