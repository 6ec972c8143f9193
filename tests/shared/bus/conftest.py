"""One bus per test, in memory or on a real nats-server."""

from collections.abc import AsyncIterator

import pytest

from llorch_shared.bus.port import Bus
from support.bus_worlds import MemoryWorld, NatsWorld, World


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A server of its own, which the test may kill."""
    one: World = NatsWorld(request.getfixturevalue("nats_server")) if request.param == "nats" else MemoryWorld()
    yield one
    for bus in one.buses:
        await bus.close()


@pytest.fixture
async def bus(world: World) -> Bus:
    return await world.connect()


@pytest.fixture
async def other(world: World) -> Bus:
    """A second connection to the same server."""
    return await world.connect("other")
