"""Three real servers: the gateway's connection stands, and the token log is another one."""

import asyncio
from pathlib import Path

import pytest

from llorch_gateway.relay import log_life
from llorch_gateway.relay.log_life import LogLife
from llorch_shared import streams
from llorch_shared.bus.nats import connect
from llorch_shared.settings import NatsSettings
from support.bus_worlds import eventually
from support.nats_cluster import TOKEN_LOG, WITHIN_S, done, lead, running, until
from support.nats_server import NatsCluster

pytestmark = [pytest.mark.nats, pytest.mark.timeout(180)]

HOME, LEADER, OTHER = "nats-1", "nats-2", "nats-3"


async def test_after_an_election_the_new_life_is_known_and_with_a_lost_server_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_life, "LOOK_EVERY_S", 0.05)
    async with running(NatsCluster(tmp_path)) as cluster:
        bus = await connect(NatsSettings(url=cluster.named(HOME).url, replicas=3), name="gateway")
        known = LogLife(bus)
        try:
            await until(lambda: done(bus.ensure(TOKEN_LOG)))
            keeping = asyncio.create_task(known.keep())

            async def follows() -> bool:
                return known.now == (await bus.stream_state(streams.TOK)).life

            for leader in (LEADER, OTHER):
                await lead(bus, leader)
                await until(follows)
            keeping.cancel()
            cluster.named(LEADER).kill()
            await eventually(lambda: known.now == "", WITHIN_S)
        finally:
            await bus.close()
