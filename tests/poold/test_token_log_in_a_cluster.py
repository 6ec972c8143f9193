"""Three real servers: what the token log may lack although every connection of the node stands."""

import asyncio
from pathlib import Path

import pytest

from llorch_poold.token_log import TokenLog
from llorch_shared import streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus
from llorch_shared.settings import NatsSettings
from support.nats_cluster import TOKEN_LOG, WITHIN_S, done, lead, running, until
from support.nats_server import NatsCluster

pytestmark = [pytest.mark.nats, pytest.mark.timeout(180)]

HOME, LEADER, OTHER = "nats-1", "nats-2", "nats-3"
FRAMES = [b"%d" % number for number in range(20)]
SUBJECT = subjects.tokens("gw-1", "task")


async def test_an_election_and_a_lost_route_are_seen_and_what_follows_is_stored(tmp_path: Path) -> None:
    async with running(NatsCluster(tmp_path, linked=True)) as cluster:
        settings = [NatsSettings(url=cluster.named(name).url, replicas=3) for name in (HOME, OTHER)]
        bus, reader = [await connect(each, name=f"node-{number}") for number, each in enumerate(settings)]
        try:
            await until(lambda: done(bus.ensure(TOKEN_LOG)))
            await lead(bus, LEADER)
            log = TokenLog(bus, "node-1")
            await until(lambda: settled(log))

            await lead(bus, OTHER)
            await lead(bus, LEADER)
            await until(lambda: repaired(log))

            told = asyncio.Event()
            bus.on_cluster_change(told.set)
            for link in cluster.links_of(HOME):
                link.cut()
            await asyncio.wait_for(told.wait(), WITHIN_S)
            for link in cluster.links_of(HOME):
                link.mend()
            assert not log.sure
            await until(lambda: repaired(log))
            for frame in FRAMES:
                bus.publish(SUBJECT, frame)
            await until(lambda: holds_all(reader))
        finally:
            await bus.close()
            await reader.close()


async def settled(log: TokenLog) -> bool:
    return not await log.look() and log.sure


async def repaired(log: TokenLog) -> bool:
    """As a node does it, which publishes what it kept when this is true."""
    if not await log.look():
        return False
    if await log.stores():
        return True
    log.doubt()
    return False


async def holds_all(reader: Bus) -> bool:
    return [message.data for message in await reader.replay(streams.TOK, SUBJECT)] == FRAMES
