"""The scheduler on a real nats-server: what the server itself must do right for a takeover to lose nothing."""

import asyncio
import os
import subprocess
import sys

import pytest

from llorch_shared import subjects
from llorch_shared.bus.port import Full
from llorch_shared.wire.registry import LEASE_DECODER
from llorch_shared.wire.task import TaskState
from scheduler.world import pool_spec, request, settings, town
from support.bus_worlds import NatsWorld, eventually
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats


async def test_tasks_go_through_in_order_and_within_the_slots(nats_server: NatsServer) -> None:
    async with town(NatsWorld(nats_server)) as place:
        await place.scheduler()
        node = await place.node(slots=3)
        node.ends_at_once = True
        tasks = [request() for _ in range(50)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(place.client.finals) == 50)
        assert node.held_max <= 3
        assert len(set(node.claims)) == len(node.claims) == 50


async def test_a_standby_takes_over_and_every_task_ends_once(nats_server: NatsServer) -> None:
    async with town(NatsWorld(nats_server)) as place:
        first = await place.scheduler()
        node = await place.node(slots=2)
        await eventually(lambda: first.active)
        second = await place.scheduler()
        tasks = [request() for _ in range(30)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(node.held) == 2)
        await first.kill()
        await eventually(lambda: second.active)
        node.ends_at_once = True
        for task_id in list(node.held):
            await node.end(task_id)
        await eventually(lambda: len(place.client.finals) == 30)
        assert all(states == [TaskState.DONE] for states in place.client.finals.values())
        assert node.claims == [task.task_id for task in tasks], "not in order of admission"


async def test_a_restarted_server_costs_no_task(nats_server: NatsServer) -> None:
    world = NatsWorld(nats_server)
    async with town(world) as place:
        process = await place.scheduler()
        node = await place.node(slots=2)
        tasks = [request() for _ in range(20)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(node.held) == 2)
        world.kill()
        await eventually(lambda: not process.active)
        world.start()
        await eventually(lambda: process.active)
        node.ends_at_once = True
        for task_id in list(node.held):
            await node.end(task_id)
        await eventually(lambda: len(place.client.finals) == 20)
        assert all(states == [TaskState.DONE] for states in place.client.finals.values())


async def test_a_placement_that_nobody_took_before_a_restart_is_there_after_it(nats_server: NatsServer) -> None:
    """Placements are kept in memory: what the server forgets, the scheduler's new term says again."""
    world = NatsWorld(nats_server)
    async with town(world) as place:
        process = await place.scheduler()
        node = await place.node(slots=2)
        node.claiming = False
        tasks = [request(), request()]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(node.placements) == 2)
        world.kill()
        await eventually(lambda: not process.active)
        node.claiming = node.ends_at_once = True
        world.start()
        await eventually(lambda: len(place.client.finals) == 2)
        for task in tasks:
            run = await place.client.run_of(task.task_id)
            assert run is not None
            assert (run.state, run.attempt) == (TaskState.DONE, 1)


async def test_a_full_queue_refuses_and_opens_when_the_cancelled_task_is_gone(nats_server: NatsServer) -> None:
    async with town(NatsWorld(nats_server), pool_spec(capacity=1)) as place:
        await place.scheduler()
        first, second = request(), request()
        await place.client.admit(first)
        await place.client.cancel(first.task_id)
        await eventually(lambda: first.task_id in place.client.finals)

        async def admitted() -> None:
            while True:
                try:
                    await place.client.admit(second)
                    return
                except Full:
                    await asyncio.sleep(0.01)

        await asyncio.wait_for(admitted(), 20)
        assert place.client.finals == {first.task_id: [TaskState.CANCELLED]}


async def test_a_process_killed_with_minus_nine_is_replaced_by_another(nats_server: NatsServer) -> None:
    async with town(NatsWorld(nats_server)) as place:
        leases: list[str] = []
        await place.client.bus.subscribe(
            subjects.registry_live(subjects.lease_key(subjects.shard_of("p1"))),
            lambda message: leases.append(LEASE_DECODER.decode(message.data).holder) if message.data else None,
        )
        environment = {**os.environ, "NATS_URL": nats_server.url, "LLORCH_LOG_LEVEL": "warning"}
        process = subprocess.Popen([sys.executable, "-m", "llorch_scheduler"], env=environment)
        try:
            node = await place.node(slots=1)
            tasks = [request() for _ in range(10)]
            for task in tasks:
                await place.client.admit(task)
            await eventually(lambda: len(node.held) == 1)
            await place.scheduler(settings())
        finally:
            process.kill()
            process.wait()
        node.ends_at_once = True
        for task_id in list(node.held):
            await node.end(task_id)
        await eventually(lambda: len(place.client.finals) == 10)
        assert all(states == [TaskState.DONE] for states in place.client.finals.values())
        assert node.claims == [task.task_id for task in tasks]
        assert len(set(leases)) == 2, "one lease after the other"
