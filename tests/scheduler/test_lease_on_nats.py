"""A lease on a real server, where a key that expires leaves a marker, and the marker expires, too."""

import asyncio

import pytest

from llorch_scheduler.lease import Lease
from llorch_shared import streams, subjects
from llorch_shared.bus import nats
from llorch_shared.live_table import LiveTable
from llorch_shared.settings import NatsSettings
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats

SHARD = 1
TTL_S = 1.0


async def test_a_shard_whose_expiry_nobody_could_use_in_time_is_taken_all_the_same(nats_server: NatsServer) -> None:
    """As when all schedulers are cut off from the bus until the marker of the expired lease is gone, too."""
    bus = await nats.connect(NatsSettings(url=nats_server.url), name="scheduler")
    await bus.ensure(streams.base())
    registry = LiveTable(bus, bucket="REG", changed=lambda key, value: None)
    await registry.start()
    lease = Lease(bus, registry, shard=SHARD, holder="late", ttl_s=TTL_S)
    first = Lease(bus, registry, shard=SHARD, holder="gone", ttl_s=TTL_S)
    assert await first.acquire() is not None
    async with asyncio.timeout(15):
        while await bus.last(streams.REG, subjects.registry(subjects.lease_key(SHARD))) is not None:
            await asyncio.sleep(0.05)
    assert await lease.acquire() is not None
    await bus.close()
