"""The refusals of a real server, and appointments over it."""

from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest

from llorch_gateway.gateway import Gateway
from llorch_shared import streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus, Message
from llorch_shared.lifecycle import Stop
from llorch_shared.metrics import Metrics
from llorch_shared.settings import GatewaySettings, NatsSettings, Secret, Settings
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.registry import Appointment
from support.bus_worlds import take
from support.client import task_request
from support.gateways import POOL, Door, pool_spec, replica
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats
SPEC = pool_spec(queue=QueueSpec(capacity=3, tenant_capacity=2))


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """With one pool of three places, two of them for any one tenant, and a ready replica."""
    bus = await connect(NatsSettings(url=nats_server.url), name="others")
    await bus.ensure(streams.base())
    await bus.ensure(streams.admission(SPEC))
    await bus.store(subjects.spec(subjects.pool_key(POOL)), msgspec.json.encode(SPEC))
    record = replica()
    key = subjects.replica_key(record.node_id, record.replica_id)
    await bus.store(subjects.registry(key), msgspec.json.encode(record), ttl_s=60)
    yield bus
    await bus.close()


@pytest.fixture
async def doors(nats_server: NatsServer, bus: Bus) -> AsyncIterator[tuple[Door, Door]]:
    """Gateways of two tenants."""
    made = []
    for tenant in ("one", "two"):
        own = await connect(NatsSettings(url=nats_server.url), name="gateway")
        settings = Settings(gateway=GatewaySettings(tenant=tenant))
        gateway = Gateway(settings, bus=own, token=Secret(""), metrics=Metrics())
        await gateway.start(Stop())
        made.append(Door(gateway, own))
    yield made[0], made[1]
    for door in made:
        await door.gateway.stop_serving()
        await door.gateway.close()
        await door.bus.close()


async def refused(door: Door) -> tuple[str | None, int | None]:
    reply = await door.post("/v1/tasks", msgspec.json.encode(task_request()))
    assert reply.status == 429, reply.body
    return reply.error.policy_label, reply.error.retry_after_ms


async def test_a_tenants_bound_and_a_full_queue_are_told_apart_and_the_scheduler_gives_the_appointment(
    bus: Bus, doors: tuple[Door, Door]
) -> None:
    one, two = doors
    for _ in range(2):
        await one.submit()
    assert await refused(one) == ("tenant-capacity", 1_000)
    await two.submit()
    assert await refused(two) == ("reject", 1_000), "no scheduler answers"

    async def later(message: Message) -> tuple[bytes, Mapping[str, str]]:
        return msgspec.json.encode(Appointment(admit=False, retry_after_ms=4_200, promised=True)), {}

    await bus.serve(subjects.appoint(subjects.shard_of(POOL)), later)
    await bus.flush()
    assert await refused(two) == ("reject", 4_200)
    consumer = await bus.consumer(streams.admission_stream(POOL, task_request().priority), "sched")
    await take(consumer, 3, at_once=1)
