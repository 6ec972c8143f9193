"""The scheduler on a real nats-server: what the server itself must do right for a takeover to lose nothing."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus
from llorch_shared.settings import NatsSettings
from scheduler.world import Client, Node, Process, pool_spec, request, scheduler
from support.bus_worlds import eventually
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats


async def _connect(server: NatsServer, name: str) -> Bus:
    return await connect(NatsSettings(url=server.url), name=name)


async def test_a_task_goes_through_a_real_server(nats_server: NatsServer) -> None:
    buses = [await _connect(nats_server, name) for name in ("scheduler", "test", "node")]
    client, node = Client(buses[1]), Node(buses[2])
    async with scheduler(buses[0]):
        await client.want(pool_spec())
        await client.start()
        await node.start()
        node.ends_at_once = True
        tasks = [request() for _ in range(20)]
        for task in tasks:
            await client.admit(task)
        await eventually(lambda: len(client.finals) == 20)
        assert node.held_max <= node.slots
    await node.stop()
    for bus in buses:
        await bus.close()
