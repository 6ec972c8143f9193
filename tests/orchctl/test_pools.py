"""Desired pools in the spec bucket."""

import msgspec
import pytest

from llorch_ctl import pools
from llorch_ctl.config_file import embedded_pool
from llorch_shared import streams
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus
from llorch_shared.settings import NatsSettings
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats


@pytest.fixture
async def bus(nats_server: NatsServer) -> Bus:
    made: Bus = await connect(NatsSettings(url=nats_server.url), name="test")
    await made.ensure(streams.base())
    return made


async def test_the_bucket_follows_the_config(bus: Bus) -> None:
    one, two = embedded_pool("one"), embedded_pool("two")
    assert await pools.apply(bus, [one, two]) == ["pool one is defined", "pool two is defined"]
    assert await pools.apply(bus, [one, two]) == []
    more = msgspec.structs.replace(one, replicas=3)
    said = await pools.apply(bus, [more])
    assert said == ["pool one is changed", "pool two is no longer in the config and is removed"]
    assert await pools.stored(bus) == {"one": more}
    assert await pools.apply(bus, [more, two]) == ["pool two is defined"]
    await bus.close()


async def test_a_write_of_somebody_else_is_not_overwritten_unseen(bus: Bus) -> None:
    await pools.apply(bus, [embedded_pool("one")])
    seen = []

    def edit(present: object) -> object:
        seen.append(present.replicas)  # type: ignore[attr-defined]
        if len(seen) == 1:
            bus.publish("$KV.SPEC.pool.one", msgspec.json.encode(msgspec.structs.replace(present, replicas=5)))
        return msgspec.structs.replace(present, slots=9)  # type: ignore[type-var]

    changed = await pools.change(bus, "one", edit)  # type: ignore[arg-type]
    assert seen == [1, 5]
    assert (changed.pool.replicas, changed.pool.slots) == (5, 9)
    await bus.close()
