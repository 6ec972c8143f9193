"""A connection that is given up sends nothing more, and is given up at once although its other end is silent."""

import asyncio
from pathlib import Path

import nats.errors
import pytest

from llorch_shared.bus.nats import NatsBus, connect
from llorch_shared.bus.port import Message
from llorch_shared.settings import NatsSettings
from support.bus_worlds import eventually
from support.link import Link
from support.nats_server import NatsServer, free_port

pytestmark = pytest.mark.nats

PIECE = b"x" * 65_536
PIECES = 900
"""More than sockets and the link between them hold, less than the connection may hold."""


async def stalled(bus: NatsBus, link: Link) -> None:
    link.stall()
    for number in range(PIECES):
        bus.publish("late", b"%d " % number + PIECE)
    await asyncio.sleep(0)


@pytest.mark.parametrize("why", ["hung up", "found dead", "dropped"])
async def test_what_a_silent_server_has_not_taken_is_dropped(why: str, nats_server: NatsServer, tmp_path: Path) -> None:
    link = Link(free_port(), nats_server.port)
    await link.start()
    seen: list[int] = []
    other = await connect(NatsSettings(url=nats_server.url), name="other")
    bus = await connect(NatsSettings(url=link.url), name="test")

    def note(message: Message) -> None:
        seen.append(int(message.data.partition(b" ")[0]) if message.subject == "late" else -1)

    await other.subscribe("late", note)
    await other.subscribe("fresh", note)
    gone, back = asyncio.Event(), asyncio.Event()

    async def returned() -> None:
        back.set()

    bus.on_disconnect(gone.set)
    bus.on_reconnect(returned)
    try:
        await stalled(bus, link)
        if why == "hung up":
            await bus.hang_up()
        elif why == "dropped":
            bus._link._client.drop_connection()
        else:
            await bus._link._client._process_op_err(nats.errors.StaleConnectionError())
        async with asyncio.timeout(15):
            await gone.wait()
        assert not bus.connected
        link.mend()
        async with asyncio.timeout(20):
            await back.wait()
        bus.publish("fresh", b"now")
        await eventually(lambda: -1 in seen)
        assert len(seen) - 1 < PIECES, "what waited in this process did not leave it"
    finally:
        await bus.close()
        await other.close()
        await link.close()
