"""A process whose connection is gone is lost at once: no lease and no registry key has to expire. To show it, they
would not expire within the test."""

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Unanswered
from llorch_shared.here import here
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.registry import LEASE_DECODER, NodeRecord
from llorch_shared.wire.task import TaskState
from scheduler.world import Node, Process, Town, request, settings, town
from support.bus_worlds import NatsWorld, becomes_true, eventually
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats

LONG = settings(lease_ttl_ms=600_000)
TTL_S = 600


async def test_a_scheduler_killed_with_minus_nine_is_replaced_before_its_lease_expires(
    nats_server: NatsServer,
) -> None:
    environment = {
        **os.environ,
        "NATS_URL": nats_server.url,
        "LLORCH_SCHEDULER_LEASE_TTL_MS": str(LONG.scheduler.lease_ttl_ms),
    }
    async with town(NatsWorld(nats_server)) as place:
        holders: list[str] = []
        await place.client.bus.subscribe(
            subjects.registry_live(subjects.lease_key(subjects.shard_of("p1"))),
            lambda message: holders.append(LEASE_DECODER.decode(message.data).holder),
        )
        leader = subprocess.Popen([sys.executable, "-m", "llorch_scheduler"], env=environment)
        try:
            await eventually(lambda: bool(holders))
            standby = await place.scheduler(LONG)
            await eventually(lambda: holders[-1] in standby.scheduler.shares.peers.heard)
            tasks = [request() for _ in range(10)]
            for task in tasks:
                await place.client.admit(task)
            os.kill(leader.pid, signal.SIGSTOP)
            with pytest.raises(Unanswered):
                await place.client.bus.request(subjects.scheduler_here(holders[-1]), b"", timeout_s=0.5)
            assert not standby.active, "who sleeps is not gone"
        finally:
            leader.kill()
            leader.wait()
        await eventually(lambda: standby.active)
        assert counted(standby, "shards_taken_total", reason="gone") == 1
        node = await place.node()
        node.ends_at_once = True
        await eventually(lambda: len(place.client.finals) == len(tasks))
        assert all(states == [TaskState.DONE] for states in place.client.finals.values())


async def test_tasks_of_a_node_that_is_gone_are_placed_again_before_its_keys_expire(nats_server: NatsServer) -> None:
    async with town(NatsWorld(nats_server)) as place:
        process = await place.scheduler()
        lost, other = await asking_node(place, "node-1"), await asking_node(place, "node-2")
        tasks = [request() for _ in range(4)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(lost.held) == len(other.held) == 2)
        moved = set(lost.held)
        await heard(process, lost, other)
        await lost.stop()
        await lost.bus.close()
        other.slots = 4
        await eventually(lambda: moved <= other.held.keys())
        assert counted(process, "replicas_lost_total", pool_id="p1", reason="gone") == 1
        task_id = moved.pop()
        await becomes_true(lambda: requeued_as(place.client.bus, task_id, "node_gone"))
        for each in tuple(other.held):
            await other.end(each)
        await eventually(lambda: len(place.client.finals) == len(tasks))


async def test_a_node_that_comes_back_gets_tasks_again(nats_server: NatsServer) -> None:
    async with town(NatsWorld(nats_server)) as place:
        process = await place.scheduler()
        first = await asking_node(place, "node-1")
        await heard(process, first)
        await first.stop()
        await first.bus.close()
        await eventually(lambda: counted(process, "replicas_lost_total", pool_id="p1", reason="gone") == 1)
        second = await asking_node(place, "node-1")
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in second.held)


async def asking_node(place: Town, name: str) -> Node:
    """One that answers, and whose keys do not expire within the test."""
    node = await place.node(name=name, replica=f"p1-{name}-0", ttl_s=TTL_S)
    await node.bus.serve(subjects.node_here(name), here)
    record = NodeRecord(node_id=name, incarnation=node.incarnation, started_ms=0, version="test")
    await node.bus.store(subjects.registry(subjects.node_key(name)), msgspec.json.encode(record), ttl_s=TTL_S)
    return node


async def heard(process: Process, *nodes: Node) -> None:
    """Only those can be found gone."""
    names = {f"{node.name}/{node.incarnation}" for node in nodes}
    await eventually(lambda: process.scheduler.replicas.nodes.heard >= names)


def counted(process: Process, metric: str, **labels: str) -> float:
    return process.metrics.registry.get_sample_value(metric, labels) or 0.0


async def requeued_as(bus: Bus, task_id: str, reason: str) -> bool:
    """On the audit record."""
    found = await bus.replay(streams.AUD, subjects.audit(AuditEvent.REQUEUED, task_id))
    return [AUDIT_DECODER.decode(message.data).detail.get("reason") for message in found] == [reason]
