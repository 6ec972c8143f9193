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
LONG_S = 600.0


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


async def test_the_lease_of_a_holder_that_is_gone_is_taken_by_compare_and_set(nats_server: NatsServer) -> None:
    """One that is not gone after all has renewed it, and keeps it; or finds at its renewal that it lost it."""
    bus = await nats.connect(NatsSettings(url=nats_server.url), name="scheduler")
    await bus.ensure(streams.base())
    registry, stale = (LiveTable(bus, bucket="REG", changed=lambda key, value: None) for _ in range(2))
    await registry.start()
    await stale.start()
    holder = Lease(bus, registry, shard=SHARD, holder="holder", ttl_s=LONG_S)
    first = await holder.acquire()
    assert first is not None
    await stale.refresh()
    await stale.close()
    await holder.release(first)
    second = await holder.acquire()
    assert second is not None
    late = Lease(bus, stale, shard=SHARD, holder="late", ttl_s=LONG_S, gone={"holder"})
    assert await late.acquire() is None, "it was renewed since it was last seen"
    await stale.refresh()
    taken = await late.acquire()
    assert taken is not None
    assert (taken.how, taken.epoch > second.epoch) == ("gone", True)
    quick = Lease(bus, registry, shard=SHARD, holder="holder", ttl_s=TTL_S)
    async with asyncio.timeout(15):
        await quick.keep(second)
    assert second.reason == "another scheduler took the shard"
    await bus.close()
